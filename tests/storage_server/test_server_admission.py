"""Turns: who runs, who waits, who is sent away."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapi.cancel import Cancel, CancelledWork
from hapi.errors import BusyError
from storage_server.metrics import Metrics
from storage_server.scheduling.admission import Admission
from storage_server.scheduling.fair import SERVER, Flow


class Request:
    """Takes a turn and holds it until told to end."""

    def __init__(self, admission: Admission, flow: Flow = SERVER, seconds: float = 1.0) -> None:
        self.flow, self.seconds = flow, seconds
        self.cancel = Cancel()
        self.begun = asyncio.Event()
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run(admission))

    async def _run(self, admission: Admission) -> None:
        async with admission.turn(self.cancel, self.flow, self.seconds):
            self.begun.set()
            with self.cancel.calling(self.end.set):
                await self.end.wait()


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_turns_are_passed_on_in_order_and_never_exceed_the_limit() -> None:
    async def story() -> None:
        admission = Admission(2, 8, Metrics(), is_shared=False)
        requests = [Request(admission) for _ in range(5)]
        await settle()
        assert [request.begun.is_set() for request in requests] == [True, True, False, False, False]
        assert (admission.running, admission.waiting) == (2, 3)
        requests[1].end.set()
        await settle()
        assert [request.begun.is_set() for request in requests] == [True, True, True, False, False]
        for request in requests:
            request.end.set()
        await asyncio.gather(*(request.task for request in requests))
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(story())


def test_a_full_server_says_when_to_come_back() -> None:
    async def story() -> None:
        admission = Admission(1, 1, Metrics(), is_shared=False)
        requests = [Request(admission) for _ in range(2)]
        await settle()
        with pytest.raises(BusyError, match="1 requests run and 1 wait") as caught:
            async with admission.turn(Cancel()):
                pytest.fail("a full server gave a turn")
        assert caught.value.retry_after_seconds >= 1
        for request in requests:
            request.end.set()
        await asyncio.gather(*(request.task for request in requests))

    asyncio.run(story())


def test_who_leaves_while_waiting_gives_the_place_free() -> None:
    async def story() -> None:
        admission = Admission(1, 2, Metrics(), is_shared=False)
        first, second, third = (Request(admission) for _ in range(3))
        await settle()
        second.cancel.set("left")
        with pytest.raises(CancelledWork):
            await second.task
        assert admission.waiting == 1
        first.end.set()
        await settle()
        assert third.begun.is_set()
        third.end.set()
        await third.task

    asyncio.run(story())


def test_a_turn_that_comes_as_the_caller_leaves_is_passed_on() -> None:
    async def story() -> None:
        admission = Admission(1, 2, Metrics(), is_shared=False)
        first, second, third = (Request(admission) for _ in range(3))
        await settle()
        first.end.set()
        while admission.waiting == 2:  # until the turn is on its way to the second
            await asyncio.sleep(0)
        second.task.cancel()
        await asyncio.gather(second.task, return_exceptions=True)
        await settle()
        assert third.begun.is_set()
        third.end.set()
        await third.task
        assert admission.running == 0

    asyncio.run(story())


def test_draining_refuses_newcomers_and_waits_for_those_that_run() -> None:
    async def story() -> None:
        admission = Admission(1, 4, Metrics(), is_shared=False)
        running, waiting = Request(admission), Request(admission)
        await settle()
        drained = asyncio.create_task(admission.drain(60))
        await settle()
        with pytest.raises(BusyError):
            await waiting.task
        with pytest.raises(BusyError):
            await Request(admission).task
        assert not drained.done()
        running.end.set()
        await drained
        assert not running.cancel.is_set

    asyncio.run(story())


def test_after_the_grace_time_what_runs_is_ended() -> None:
    async def story() -> None:
        admission = Admission(1, 4, Metrics(), is_shared=False)
        running = Request(admission)
        await settle()
        await admission.drain(0)
        assert running.cancel.reason == "the server is stopping"
        await running.task

    asyncio.run(story())


def admission_of(running: int, waiting: int) -> Admission:
    return Admission(running, waiting, Metrics(), lambda: 100.0)


def test_one_tenant_alone_leaves_half_of_the_turns_to_who_comes_next() -> None:
    async def story() -> None:
        admission = admission_of(8, 8)
        large = [Request(admission, Flow("large")) for _ in range(7)]
        await settle()
        assert admission.running == 4
        small = Request(admission, Flow("small"))
        await settle()
        assert small.begun.is_set()
        await end([*large, small])
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(story())


def test_a_tenant_that_runs_nothing_gets_the_next_turn() -> None:
    async def story() -> None:
        admission = admission_of(1, 8)
        large = [Request(admission, Flow("large"), seconds=10.0) for _ in range(3)]
        await settle()
        small = Request(admission, Flow("small"), seconds=0.1)
        await settle()
        large[0].end.set()
        await settle()
        assert small.begun.is_set()
        assert not large[1].begun.is_set()
        await end([*large, small])

    asyncio.run(story())


def test_one_tenant_cannot_fill_the_waiting_line() -> None:
    async def story() -> None:
        admission = admission_of(1, 4)
        greedy = [Request(admission, Flow("greedy")) for _ in range(3)]
        await settle()
        assert (admission.running, admission.waiting) == (1, 2)
        with pytest.raises(BusyError, match="of tenant 'greedy'") as caught:
            await Request(admission, Flow("greedy")).task
        assert caught.value.retry_after_seconds == 30.0, "bounded, whatever the backlog"
        others = [Request(admission, Flow(name)) for name in "abcdef"]
        await settle()
        assert admission.waiting == 8, "each may have one that waits"
        assert admission.tenants()["greedy"] == (1, 2)
        await end([*greedy, *others])

    asyncio.run(story())


def test_the_time_to_come_back_follows_the_backlog() -> None:
    admission = Admission(4, 4, Metrics(), lambda: 12.0)
    assert admission.retry_seconds == 12.0
    assert Admission(4, 4, Metrics(), lambda: 0.0).retry_seconds == 1.0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60), st.integers(1, 6), st.integers(0, 6))
def test_turns_are_never_exceeded_and_nobody_is_forgotten(
    steps: list[tuple[int, bool]], running: int, waiting: int
) -> None:
    async def story() -> None:
        admission = admission_of(running, waiting)
        requests: list[Request] = []
        for tenant, leaves in steps:
            if leaves and requests:
                requests[tenant % len(requests)].cancel.set("left")
            else:
                requests.append(Request(admission, Flow(str(tenant))))
            await settle()
            assert admission.running <= running
            assert admission.waiting <= waiting + 4
        await end(requests)
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(story())


async def end(requests: list[Request]) -> None:
    """Lets every request finish, in whatever order they get their turns."""
    for request in requests:
        request.end.set()
    await asyncio.gather(*(request.task for request in requests), return_exceptions=True)
