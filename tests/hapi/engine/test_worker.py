"""How a program is compiled, with kernels of ours and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from hapi.engine import worker
from hapi.engine.compiler import cxx
from hapi.engine.worker import best_of
from hapi.model import Program, capture


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(worker, "with_kernels", lambda program: True)
    return capture(nn.Linear(3, 2), torch.randn(2, 3), name="linear").whole


class Fake:
    """In place of a library: the path says whether it is of a program with kernels, and these are off by `off`."""

    off = 0.0

    def __init__(self, path: Path, device: torch.device) -> None:
        self._factor = 1 + self.off if path.parent.name == "kernels" else 1.0

    def __call__(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        return [self._factor * PROGRAMS[0](*tensors)]


PROGRAMS: list[Program] = []


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

    monkeypatch.setattr(Fake, "off", off)
    monkeypatch.setattr(worker, "Library", Fake)
    monkeypatch.setattr(worker, "compile_to", compile_to)
    monkeypatch.setitem(globals(), "PROGRAMS", [program])

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
