"""What shows which of the three resources sets the pace, and what each of them gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from compute_client.replanning.activity import Activity
from compute_client.replanning.link import LinkPace
from compute_client.replanning.observer import Observer
from compute_client.replanning.rates import Rates
from hapi.plan import WireCost
from hapi.wire.work import Work
from tests.profiler.example_profiles import profile_of

PROFILE = profile_of((100_000, 0.001, 0.02), (50_000, 0.01, 0.01), (1_000, 0.02, 0.001), bits_per_s=80e6)
RAW = ("float32", "none")


@dataclass
class Seen:
    """An observer, and time."""

    now: float = 0.0
    observer: Observer = field(init=False)
    activity: Activity = field(init=False)

    def __post_init__(self) -> None:
        self.activity = Activity(lambda: self.now)
        self.observer = Observer(PROFILE, self.activity, lambda: self.now)

    def message(
        self, seconds: float, *, count: int = 800_000, server: float = 0.0, client: float = 0.0, pause: float = 0.0,
        share: float = 1.0, cut: str = "cut1",
    ) -> None:  # fmt: skip
        """So many bytes in so long, of which server and client worked for a part; first a pause."""
        self.now += pause
        answer = self.observer.answer(cut, RAW)
        answer.received(1)
        for _ in range(20):
            with self.activity.working():
                self.now += client * seconds / 20
            self.now += (1 - client) * seconds / 20
            answer.received(count // 20)
        answer.completed(Work(16, server * seconds, seconds + pause, share))

    def worked(self, cut: str, work: Work) -> None:
        self.observer.answer(cut, RAW).completed(work)

    @property
    def rates(self) -> Rates:
        found = self.observer.rates()
        assert found is not None
        return found


def test_nothing_is_known_of_a_server_that_says_nothing() -> None:
    seen = Seen()
    for _ in range(100):
        seen.now += 0.1
        seen.observer.answer("cut1", RAW).received(1000)
    assert seen.observer.rates() is None


def test_a_link_that_sets_the_pace_gives_what_arrives() -> None:
    seen = Seen()
    for _ in range(3):
        seen.message(1.0, server=0.3, client=0.3)
    assert seen.rates.bits_per_s == pytest.approx(8 * 800_000)
    assert seen.observer.is_link_full


def test_a_link_that_rests_is_not_full_any_more() -> None:
    seen = Seen()
    for _ in range(3):
        seen.message(1.0, server=0.3, client=0.3)
    answer = seen.observer.answer("cut1", RAW)
    answer.received(1000)
    seen.now += 0.5  # the rest of a message that has begun is awaited
    assert seen.observer.is_link_full
    answer.completed(None)
    seen.now += 0.2
    assert not seen.observer.is_link_full


@pytest.mark.parametrize("busy", [{"server": 1.0}, {"client": 1.0}, {"server": 0.5, "share": 0.5}])
def test_a_link_that_waits_for_a_tier_gives_at_least_what_arrives(busy: dict[str, float]) -> None:
    seen = Seen()
    for _ in range(4):
        seen.message(1.0, **busy)
    assert not seen.observer.is_link_full
    for _ in range(4):
        seen.message(1.0, count=10_000_000, **busy)
    assert seen.rates.bits_per_s == 80e6
    assert seen.observer.is_link_full, "it gives all that it is known to give"
    for _ in range(4):
        seen.message(1.0, count=20_000_000, **busy)
    assert seen.rates.bits_per_s == pytest.approx(160e6)
    assert not seen.observer.is_link_full, "it may give more"


@pytest.mark.parametrize(("sent", "passed", "scale"), [(0, 1.6, 1.0), (160, 1.6, 0.5), (160, 3.2, 2 / 3)])
def test_reading_what_is_sent_as_stored_takes_of_the_servers_time(sent: int, passed: float, scale: float) -> None:
    seen = Seen()
    for _ in range(3 * 3):  # of 16 samples at 10 ms each; those that are sent take 1 ms
        if sent:
            seen.worked("input", Work(sent, 0.0, passed / 10, 1.0))
        seen.now += passed / 10
        seen.worked("cut1", Work(16, 0.16, passed / 10, 1.0))
    assert seen.rates.server_scale == pytest.approx(scale, rel=0.01)


def test_pauses_are_not_the_links() -> None:
    seen = Seen()
    for _ in range(5):
        seen.message(1.0, pause=2.0)
    assert seen.rates.bits_per_s == pytest.approx(6.4e6)
    assert not seen.observer.is_link_full


def test_messages_that_come_at_once_say_nothing_of_the_link() -> None:
    seen = Seen()
    for _ in range(30):
        seen.message(0.001, pause=0.5)
    assert seen.rates.bits_per_s == 80e6


def test_an_answer_that_breaks_off_is_not_on_its_way_for_ever() -> None:
    seen = Seen()
    broken = seen.observer.answer("cut1", RAW)
    broken.received(1000)
    broken.ended()
    for _ in range(5):
        seen.message(1.0, pause=9.0)
    assert seen.rates.bits_per_s == pytest.approx(6.4e6)


def test_the_server_says_what_its_samples_cost() -> None:
    seen = Seen()
    for cut, seconds in [("cut1", 16 * 0.01), ("output", 16 * 0.02)] * 4:
        seen.worked(cut, Work(64, 4 * 3 * seconds, 1.0))
    assert seen.rates.server_scale == pytest.approx(3.0)
    seen.worked("input", Work(100, 9.0, 1.0))  # reading says nothing of computing
    seen.worked("cut1", Work(0, 9.0, 1.0))
    assert seen.rates.server_scale == pytest.approx(3.0)
    seen.observer.finished("output", RAW, 5000)
    assert seen.observer.unseen_samples == 5000
    seen.observer.forget_server()
    assert (seen.rates.server_scale, seen.observer.unseen_samples) == (1.0, 0)


def test_the_share_is_what_the_server_says() -> None:
    seen = Seen()
    for _ in range(4):
        seen.message(0.5, share=0.4)
    assert seen.rates.server_share == pytest.approx(0.4)


def test_the_client_is_measured_by_the_time_that_it_worked() -> None:
    seen = Seen()
    for _ in range(4):
        with seen.activity.working(), seen.activity.working():
            seen.now += 1.0
        seen.now += 5.0
        seen.worked("cut1", Work(200, 2.0, 1.0))
        seen.observer.finished("cut1", RAW, 200)
    assert seen.rates.client_scale == pytest.approx(1.0 / (200 * 0.01))


def test_training_counts_while_it_has_a_batch() -> None:
    seen = Seen()
    seen.activity.trains(True)
    seen.activity.trains(True)
    seen.now += 2
    assert seen.activity.seconds == 2
    seen.activity.trains(False)
    seen.activity.trains(False)
    seen.now += 2
    assert seen.activity.seconds == 2


def test_more_of_the_link_is_believed_when_it_is_seen_twice_or_probed() -> None:
    link = LinkPace(10e6)
    link.seen(10_000_000, 1.0)
    assert link.bits_per_s == 10e6
    link.seen(1000, 1.0)
    link.seen(10_000_000, 1.0)
    assert link.bits_per_s == 10e6
    link.seen(5_000_000, 1.0)
    assert link.bits_per_s == 40e6
    link.at_least(20e6)
    link.at_least(41e6)
    assert link.bits_per_s == 40e6
    link.at_least(100e6)
    assert link.bits_per_s == 100e6


def test_rates_scale_a_profile_and_its_ways() -> None:
    way = WireCost("int8", "none", 10.0, 0.01, 0.02, 0.001, 0.002)
    profile = replace(PROFILE, cuts=(*PROFILE.cuts[:2], replace(PROFILE.cuts[2], wire=(way,))), head_seconds=0.1)
    rates = Rates(1e6, server_scale=2.0, server_share=0.5, client_scale=3.0)
    applied = rates.applied(profile)
    assert applied.link is not None
    assert applied.link.bandwidth_bits_per_s == 1e6
    assert [cut.server_seconds for cut in applied.cuts] == [2 * cut.server_seconds for cut in profile.cuts]
    assert [cut.client_seconds for cut in applied.cuts] == [3 * cut.client_seconds for cut in profile.cuts]
    assert applied.cuts[2].wire == (WireCost("int8", "none", 10.0, 0.02, 0.06, 0.002, 0.006),)
    assert applied.head_seconds == pytest.approx(0.3)


def test_rates_say_what_is_noticeably_other() -> None:
    before, now = Rates(100e6), Rates(10e6, 1.05, 0.5, 3.0)
    assert now.differs(before)
    assert not Rates(104e6, 1.1, 0.95, 0.9).differs(before)
    assert now.changes(before) == (
        "the link gives 10 Mbit/s, 0.1 times the 100 Mbit/s before; "
        "50% of the server's time is this job's, 100% before; "
        "the client takes 3 times the time per sample that it took"
    )
