"""What compiled code calls for the operations of ours."""

from __future__ import annotations

from pathlib import Path

import torch

from hapi.engine.kernels.attention import FUSED
from hapi.engine.kernels.convolution import WINOGRAD

HERE = Path(__file__).parent


def shims(threads: int) -> dict[torch._ops.OpOverload, list[str]]:
    """The kernels as text, for PyTorch's setting `aot_inductor.custom_ops_to_c_shims`.

    Each text is meant to be a declaration and is written after `extern`. These are definitions, so that the library is
    one file that needs no other.
    """
    common = f"#define HAPI_THREADS {threads}\n{_source('common')}"
    return {FUSED: [_outside(common), _outside(_source("attention"))], WINOGRAD: [_outside(_source("convolution"))]}


def _source(name: str) -> str:
    return (HERE / f"{name}.h").read_text(encoding="utf-8")


def _outside(text: str) -> str:
    return f'"C++" {{\n{text}\n}}'
