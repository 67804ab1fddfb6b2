"""Batch sizes over time are the changes that a server tells of, and are drawn."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from benchmarks.bench.report import draw
from benchmarks.bench.rows import Row
from benchmarks.policies.watching import batch_sizes, plots
from hapi.errors import ServerUnreachableError


class Server:
    """Decides 4, is away for a moment, and then decides 8."""

    def __init__(self) -> None:
        self.asked, self.done = 0, threading.Event()

    def status(self) -> SimpleNamespace:
        self.asked += 1
        if self.asked == 1:
            return SimpleNamespace(prefixes=[])
        if self.asked == 4:
            raise ServerUnreachableError("away")
        if self.asked > 6:
            self.done.set()
        return SimpleNamespace(prefixes=[SimpleNamespace(batch=4 if self.asked < 4 else 8)])


def test_changes_are_noted_and_the_last_one_lasts_to_the_end() -> None:
    server = Server()
    with batch_sizes(server, every_seconds=0.001) as sizes:  # type: ignore[arg-type]
        assert server.done.wait(30.0)
    assert [batch for _, batch in sizes] == [4, 8, 8]
    seconds = [when for when, _ in sizes]
    assert seconds == sorted(seconds)


def test_policies_are_drawn_also_where_none_survived_or_decided_anything() -> None:
    died = Row("memory", "whole", "vgg11").filled(survived="killed by the kernel", budget_bytes=9)
    alive = Row("memory", "ours", "vgg11").filled(
        survived="yes", images_per_s=3.0, anonymous_peak_bytes=7, budget_bytes=9, batches=[(0.1, 4), (2.0, 8)]
    )
    for rows in ([died], [died, alive]):
        for plot in plots():
            assert draw(plot, rows)[0].startswith(b"\x89PNG")
