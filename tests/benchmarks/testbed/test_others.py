"""What others do on the testbed's processors, told from what is ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.testbed.host import Host
from benchmarks.testbed.links import RelayLink
from benchmarks.testbed.others import TRIES, Watcher, Worked, least_disturbed, worked_seconds
from benchmarks.testbed.testbed import Testbed as Hosts


class Bed(Hosts):
    """Two hosts whose processes have worked as long as the test says."""

    worked: dict[str, float]
    __test__ = False

    def cpu_seconds(self, host: Host) -> float:
        return self.worked[host.name]


def bed(storage: Sequence[int], compute: Sequence[int]) -> Bed:
    hosts = Host("storage", "", cpus=tuple(storage)), Host("compute", "", cpus=tuple(compute))
    made = Bed("relay", *hosts, RelayLink(), Path(), "mark")
    object.__setattr__(made, "worked", {"storage": 10.0, "compute": 20.0})
    return made


def usage(made: Bed, busy: Sequence[float], ours: tuple[float, float], low: float = 0.0) -> tuple[float, ...]:
    """After two seconds in which the processors were busy for so long, and the hosts' processes worked so long."""
    worked = Worked([100.0] * len(busy), 50.0), Worked([100.0 + one for one in busy], 50.0 + low)
    readings, clock = iter(worked), iter([0.0, 2.0])
    watcher = Watcher(made, read=lambda: next(readings), clock=lambda: next(clock))
    before = watcher.now()
    object.__setattr__(made, "worked", {"storage": 10.0 + ours[0], "compute": 20.0 + ours[1]})
    found = watcher.since(before)
    return found.storage_seconds, found.compute_seconds, found.others, found.low


def test_what_is_ours_does_not_count() -> None:
    assert usage(bed([0], [1]), [2.0, 1.0], (2.0, 1.0)) == pytest.approx((2.0, 1.0, 0.0, 0.0))


def test_of_the_host_where_others_had_more() -> None:
    assert usage(bed([0], [1]), [2.0, 2.0], (1.8, 0.6))[2] == pytest.approx(0.7)
    assert usage(bed([0, 1], [2]), [2.0, 2.0, 0.0], (3.0, 0.0))[2] == pytest.approx(0.25)


def test_hosts_that_share_all_processors_are_one() -> None:
    assert usage(bed([], []), [1.0, 1.0], (0.5, 0.5))[2] == pytest.approx(0.25)


def test_it_is_a_part() -> None:
    assert usage(bed([0], [1]), [0.0, 0.0], (1.0, 1.0))[2] == 0.0  # clocks differ a little
    assert usage(bed([0], [1]), [2.2, 0.0], (0.0, 0.0))[2] == 1.0


def test_work_at_a_low_priority_is_told_apart() -> None:
    assert usage(bed([0], [1]), [1.0, 1.0], (1.0, 1.0), low=1.0)[2:] == pytest.approx((0.0, 0.25))


@pytest.mark.parametrize(
    ("others", "tries", "chosen"),
    [([0.05], 1, 0), ([0.5, 0.02], 2, 1), ([0.5, 0.2, 0.4, 0.0], TRIES, 1)],
    ids=["undisturbed", "once", "always"],
)
def test_what_was_disturbed_is_measured_again(others: list[float], tries: int, chosen: int) -> None:
    worked = 100.0
    answers = iter(range(10))

    def measure() -> int:
        nonlocal worked
        answer = next(answers)
        worked += others[answer]
        return answer

    clock = iter(map(float, range(20)))  # a second for each try
    watcher = Watcher(bed([0], [1]), read=lambda: Worked([worked, 0.0]), clock=lambda: next(clock))
    answer, found, count = least_disturbed(watcher, measure)
    assert (answer, found.others, count) == (chosen, pytest.approx(others[chosen]), tries)


def test_every_processor_has_worked_since_the_machine_started() -> None:
    assert min(worked_seconds().ordinary) > 0
    assert worked_seconds().low >= 0
