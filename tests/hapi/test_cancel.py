"""Cancelling calls back once, keeps the first reason, and wakes sleepers."""

from __future__ import annotations

import pytest

from hapi.cancel import Cancel, CancelledWork


def test_it_calls_what_is_registered_at_that_moment_once() -> None:
    cancel, calls = Cancel(), []
    with cancel.calling(lambda: calls.append("over before")):
        cancel.check()
    with cancel.calling(lambda: calls.append("outer")), cancel.calling(lambda: calls.append("inner")):
        cancel.set("first")
        cancel.set("second")
    assert calls == ["outer", "inner"]
    assert cancel.reason == "first"


def test_after_it_nothing_begins_and_nothing_sleeps() -> None:
    cancel, calls = Cancel(), []
    cancel.wait(0)
    cancel.set("the caller left")
    with pytest.raises(CancelledWork, match="the caller left"):
        cancel.wait(3600)
    with pytest.raises(CancelledWork), cancel.calling(lambda: calls.append("late")):
        calls.append("begun")
    assert calls == []
