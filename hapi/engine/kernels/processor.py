"""Which processors the kernels are for."""

from __future__ import annotations

import torch

from hapi.engine.precision import processor_flags
from hapi.machine import cpu_name


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether compiled programs for this processor have kernels of ours for numbers of this type.

    On AMD's processors with AVX-512. Measured on family 26 (Zen 5) alone.
    """
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    is_wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not (has_onednn and is_wide and cpu_name().startswith("AMD ")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and "avx512_bf16" in processor_flags())
