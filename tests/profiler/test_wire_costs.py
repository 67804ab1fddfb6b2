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


def test_each_side_is_charged_what_its_own_thread_worked() -> None:
    here = threading.current_thread()
    ticks = {True: iter([1.0, 3.0]), False: iter([10.0, 15.0])}
    codec = get_codec("float32")
    write, read = wire_seconds_per_byte(
        codec, messages=2, clock=lambda: next(ticks[threading.current_thread() is here])
    )
    shipped = 2 * ROWS * codec.bytes_per_row((ROW_VALUES,))
    assert (write * shipped, read * shipped) == (pytest.approx(2.0), pytest.approx(5.0))
