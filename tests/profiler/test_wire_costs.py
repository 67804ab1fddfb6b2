"""What features cost on their way into the network and out of it."""

from __future__ import annotations

import threading

import pytest

from hapi.wire import get_codec
from profiler.wire import ROW_VALUES, ROWS, wire_seconds_per_byte


@pytest.mark.parametrize("name", ["float32", "float16", "int8"])
def test_either_side_costs_something(name: str) -> None:
    write, read = wire_seconds_per_byte(get_codec(name), messages=1)
    assert 0 < write < 1e-6
    assert 0 < read < 1e-6


def test_each_side_is_charged_what_its_own_thread_worked_the_last_time() -> None:
    here = threading.current_thread()
    ticks = {True: iter([0.0, 9.0, 11.0, 13.0]), False: iter([0.0, 1.0, 10.0, 15.0])}
    codec = get_codec("float32")
    write, read = wire_seconds_per_byte(
        codec, messages=2, clock=lambda: next(ticks[threading.current_thread() is here])
    )
    shipped = 2 * ROWS * codec.bytes_per_row((ROW_VALUES,))
    assert (write * shipped, read * shipped) == (pytest.approx(5.0), pytest.approx(2.0))
    assert not [thread for thread in threading.enumerate() if thread.name == "hapi-measure"]


def test_no_proxy_of_the_environment_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert min(wire_seconds_per_byte(get_codec("float32"), messages=1)) > 0
