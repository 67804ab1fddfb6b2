"""Which processors the kernels are for."""

from __future__ import annotations

import pytest
import torch

from hapi.engine.kernels.processor import has_kernels


@pytest.mark.parametrize(
    ("name", "capability", "flags", "dtypes"),
    [
        ("AMD EPYC", "AVX512", {"avx512f", "avx512_bf16"}, {torch.float32, torch.bfloat16}),
        ("AMD EPYC", "AVX512", {"avx512f"}, {torch.float32}),
        ("AMD EPYC", "AVX2", {"avx512f", "avx512_bf16"}, set()),
        ("Intel(R) Xeon(R)", "AVX512", {"avx512f", "avx512_bf16"}, set()),
    ],
)
def test_there_are_kernels_where_they_were_measured(
    name: str, capability: str, flags: set[str], dtypes: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("hapi.engine.kernels.processor.cpu_name", lambda: name)
    monkeypatch.setattr("hapi.engine.kernels.processor.processor_flags", lambda: frozenset(flags))
    assert {dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if has_kernels(dtype)} == dtypes
