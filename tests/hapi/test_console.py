"""What programs read of a command."""

from __future__ import annotations

import json

import pytest

from hapi.console import emit


def test_a_document_has_null_for_numbers_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"loss": float("nan"), "losses": [1.5, float("inf")], "plan": {"limits": (float("-inf"), 2)}, "name": "NaN"})
    written = capsys.readouterr().out
    assert written.endswith("\n")
    assert json.loads(written, parse_constant=pytest.fail) == {
        "loss": None, "losses": [1.5, None], "plan": {"limits": [None, 2]}, "name": "NaN",
    }  # fmt: skip
