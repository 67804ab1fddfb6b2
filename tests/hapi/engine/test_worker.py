"""How a program is compiled, with kernels of ours and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hapi.engine import worker
from hapi.engine.agreement import Run, outputs
from hapi.engine.compiler import cxx
from hapi.engine.worker import best_of
from hapi.model import Program, capture


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(worker, "with_kernels", lambda program: True)
    return capture(nn.Linear(3, 2), torch.randn(2, 3), name="linear").whole


def library(program: Program, off: float) -> Callable[[Path, torch.device], Run]:
    """In place of loading: what the program computes, off by `off` where it was compiled with kernels."""

    def load(path: Path, device: torch.device) -> Run:
        factor = 1 + off if path.parent.name == "kernels" else 1.0
        return lambda *tensors: [factor * tensor for tensor in outputs(program(*tensors))]

    return load


@pytest.mark.parametrize(
    ("off", "fails", "folder", "remark"),
    [
        (0.0, False, "kernels", ""),
        (0.1, False, "plain", "with them it is off by 1.0e-01, over the limit of 1e-05"),
        (0.0, True, "plain", "with them it cannot be compiled (no such instruction)"),
    ],
)
def test_kernels_that_do_not_do_are_done_without(
    off: float, fails: bool, folder: str, remark: str, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_to(program: Program, target: Path, *, has_ours: bool) -> Path:
        if fails and has_ours:
            raise RuntimeError("no such instruction")
        return target

    monkeypatch.setattr(worker, "Library", library(program, off))
    monkeypatch.setattr(worker, "compile_to", compile_to)

    made = best_of(program, program, 1e-5, tmp_path)

    assert (made.path.parent.name, made.remark, made.error) == (folder, remark, 0.0)


def test_a_program_that_cannot_be_compiled_at_all_is_an_error(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_to(program: Program, target: Path, *, has_ours: bool) -> Path:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(worker, "compile_to", compile_to)
    with pytest.raises(RuntimeError, match="no such instruction"):
        best_of(program, program, 1e-5, tmp_path)


@pytest.mark.skipif(cxx() is None, reason="no C++ compiler on this machine")
def test_programs_of_other_processors_have_no_kernels(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "with_kernels", lambda program: False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    made = best_of(program, program, 1e-5, tmp_path)
    assert (made.path.parent.name, made.remark) == ("plain", "")
    assert made.error < 1e-6
