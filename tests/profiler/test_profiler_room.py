"""The room's door: its names are sorted and there, and opening it does not load torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import profiler


def test_names() -> None:
    assert profiler.__all__ == sorted(profiler.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert set(profiler.__all__) == set(profiler._HOMES)
    for name in profiler.__all__:
        assert getattr(profiler, name) is not None
        assert name in dir(profiler)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        profiler.nothing  # noqa: B018


def test_commands_start_without_torch() -> None:
    code = "import sys, profiler.commands; print(sorted({'torch', 'scipy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
