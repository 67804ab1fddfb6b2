"""`import hapi` is cheap, and every name it offers exists."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hapi


def test_all_is_sorted_and_resolves() -> None:
    assert hapi.__all__ == sorted(hapi.__all__)
    for name in hapi.__all__:
        assert getattr(hapi, name) is not None
    assert set(hapi.__all__) <= set(dir(hapi))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="DataLoadr"):
        _ = hapi.DataLoadr


@pytest.mark.parametrize("statement", ["import hapi", "from hapi.cli import build_app; build_app()"])
def test_neither_import_nor_command_line_loads_torch(statement: str) -> None:
    probe = f"{statement}\nimport sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
