"""What an answer has cost: overlapping stages are not counted twice, and others' work is not this one's."""

from __future__ import annotations

import pytest
import torch
from awkward_models import Archive
from fastapi.testclient import TestClient
from test_server_routes import upload

from hapi.data import TransformSpec
from hapi.wire import read_stream
from hapi.wire.work import Work
from storage_server.extraction.mail import Arrival
from storage_server.extraction.tally import Tally
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.occupancy import Occupancy
from storage_server.service import Service


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


MINE, OTHER = Flow("mine"), Flow("other")


def test_the_server_is_busy_while_any_stage_works() -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    with occupancy.working({MINE: 1.0}):
        clock.now += 2
        with occupancy.working({MINE: 0.1, OTHER: 0.4}):
            clock.now += 3
            assert occupancy.read().busy == 5
        clock.now += 1
    clock.now += 10
    reading = occupancy.read()
    assert (reading.at, reading.busy, dict(reading.worked)) == (
        116.0,
        6.0,
        {MINE: pytest.approx(6 + 0.1 * 3), OTHER: pytest.approx(0.4 * 3)},
    )


def test_stages_that_share_a_processor_add_up_to_the_time_that_passed() -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    tally = Tally(occupancy, MINE, lambda: 0.5, clock)
    with occupancy.working({MINE: 1.0}), occupancy.working({MINE: 1.0}):  # decoding and the device, at half speed each
        clock.now += 4
    clock.now += 4
    tally.arrived([Arrival(index, (torch.zeros(1),), read_seconds=0.1, work_seconds=4.0) for index in range(2)])
    assert tally.take() == Work(2, pytest.approx(4.0), 8.0, 1.0)
    assert tally.take().samples == 0


def test_reading_counts_where_it_takes_longer_than_the_work_beside_it() -> None:
    tally = Tally(Occupancy(), MINE, lambda: 1.0)
    tally.arrived([Arrival(index, (torch.zeros(1),), read_seconds=0.5, work_seconds=0.1) for index in range(4)])
    assert tally.take().seconds == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("others", "fair", "share"), [(2.0, 0.5, 0.8), (8.0, 0.5, 0.5), (8.0, 0.1, 0.2), (0.0, 1.0, 1.0)]
)
def test_the_share_is_what_others_leave_and_at_least_the_fair_one(others: float, fair: float, share: float) -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    tally = Tally(occupancy, MINE, lambda: fair, clock)
    with occupancy.working({OTHER: 1.0}):
        clock.now += others
    clock.now += 10 - others
    assert tally.take().share == pytest.approx(share)


def test_work_that_goes_on_is_not_taken_for_others() -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    tally = Tally(occupancy, MINE, lambda: 0.5, clock)
    with occupancy.working({MINE: 1.0}):
        clock.now += 1
        with occupancy.working({MINE: 1.0}):
            clock.now += 1
        assert tally.take().share == 1.0


def test_what_was_not_done_for_the_answer_does_not_count() -> None:
    tally = Tally(Occupancy(), MINE, lambda: 1.0)
    shared = Arrival(0, (torch.zeros(1),), is_shared=True, work_seconds=1.0)
    tally.arrived([shared, Arrival(1, failed="broken", work_seconds=1.0)])
    work = tally.take()
    assert (work.samples, work.seconds) == (0, 0.0)


def test_encoding_is_told_with_the_next_message() -> None:
    clock = Clock()
    tally = Tally(Occupancy(clock), MINE, lambda: 1.0, clock)
    tally.take()
    with tally.encoding():
        clock.now += 0.5
    assert tally.take().seconds == pytest.approx(0.5)


@pytest.mark.parametrize("cut", ["input", "stem.2", "output"])
def test_a_server_tells_what_its_answers_cost(
    client: TestClient, service: Service, archive: Archive, transform: TransformSpec, cut: str
) -> None:
    assert upload(client, archive).status_code == 201
    dataset = client.post("/v1/datasets", json={"uri": service.roots.uris[0]}).json()["digest"]
    body = {
        "dataset": dataset,
        "indices": list(range(13)),
        "model": archive.digest,
        "cut": cut,
        "transform": transform.to_json(),
    }

    def works() -> list[Work]:
        found = [batch.work for batch in read_stream([client.post("/v1/extract", json=body).content])]
        return [work for work in found if work is not None]

    first = works()
    assert sum(work.samples for work in first) == (13 if cut == "input" else 12)  # one is no picture
    assert 0 < sum(work.seconds for work in first) < 10
    assert {work.share for work in first} == {1.0}
    again = sum(work.samples for work in works())
    assert again == (13 if cut == "input" else 0)  # features were kept, stored objects are read again
