"""The names that others build on, and that moving bytes needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hapi.data


def test_every_exported_name_is_there_and_listed_in_order() -> None:
    assert hapi.data.__all__ == sorted(hapi.data.__all__)
    for name in hapi.data.__all__:
        assert getattr(hapi.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hapi.data.nothing


def test_commands_and_stores_do_not_import_torch() -> None:
    code = (
        "import sys, hapi.data.commands, hapi.data.transfer, hapi.data.buckets, hapi.data.build\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
