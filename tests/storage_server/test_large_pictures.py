"""However many threads decode, large pictures are never more than the bound together, and all have their turn."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from storage_server.memory.pictures import LargePictures


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=40))
def test_the_bound_holds_and_everybody_has_a_turn(sizes: list[int]) -> None:
    pictures, lock = LargePictures(100, ordinary_bytes=10), threading.Lock()
    now: list[int] = []
    peaks: list[list[int]] = []

    def decode(size: int) -> None:
        with pictures.decoding(size):
            with lock:
                now.append(size)
                peaks.append([one for one in now if one > 10])
            with lock:
                now.remove(size)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode, sizes))
    assert len(peaks) == len(sizes)
    assert all(sum(large) <= 100 or len(large) == 1 for large in peaks)
    assert pictures.used_bytes == 0


def test_an_ordinary_picture_waits_for_none() -> None:
    pictures = LargePictures(100, ordinary_bytes=10)
    with pictures.decoding(500), pictures.decoding(10):
        assert pictures.used_bytes == 500
