"""A job on simulated time: six requests in flight through a server, a link and a client that work one after the other.

Noise, rates and a second tenant may change while it runs. It drives the real observer, replanner and dealing.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from compute_client.replanning.activity import Activity
from compute_client.replanning.dealing import Dealing, Need
from compute_client.replanning.observer import Answer, Observer
from compute_client.replanning.replanner import Replanner
from compute_client.spans import Span, span_size, take_first
from hapi.cancel import Cancel
from hapi.plan import Link, Plan, Profile
from hapi.wire.work import Work
from profiler.planner import plan

IN_FLIGHT, BUFFERED, SPAN, MESSAGE, AHEAD = 6, 14, 64, 16, 16
CHUNK = 16_384


@dataclass
class World:
    """What is really so at a moment; the profile says how it was."""

    bits_per_s: float
    server_slowness: float = 1.0
    client_slowness: float = 1.0
    tenants: int = 1


@dataclass(eq=False)
class Request:
    span: Span
    answer: Answer
    left: int
    unsent: int = 0
    arrived: int = 0
    told_at: float = 0.0


@dataclass(eq=False)
class Message:
    request: Request
    work: Work
    left: int


class SimulatedJob:
    """`run(seconds)` goes on for so long; `finished` lists (time, samples) of the spans that came out."""

    def __init__(self, profile: Profile, *, noise: float = 0.0, replan: bool = True, reports: bool = True) -> None:
        assert profile.link is not None
        self.profile, self.world = profile, World(profile.link.bandwidth_bits_per_s)
        self.now = 0.0
        self.finished: list[tuple[float, int]] = []
        self.begun = self.probes = 0
        self._noise, self._random, self._reports = noise, random.Random(0), reports
        self._activity = Activity(self.clock)
        self.observer = Observer(profile, self._activity, self.clock)
        made = plan(profile, "mix")
        self.replanner = Replanner(
            made, profile, "mix", self.observer, probe=self._probe, clock=self.clock, wall_clock=self.clock
        )
        consider = self.replanner.consider if replan else lambda cancel: None
        way = ("float32", "none")
        self._dealing = Dealing(
            lambda: self.replanner.plan, consider, way, self._sizes, self._seconds, self._needs, self.clock
        )
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._numbers = count()
        self._requests: deque[Request] = deque()
        self._in_flight = self._buffered = 0
        self._sending: deque[Message] = deque()
        self._waiting: deque[Span] = deque()
        self._pending: deque[Span] = deque()
        self._server_busy = self._link_busy = self._client_busy = False
        self._begin_spans()

    def clock(self) -> float:
        return self.now

    @property
    def plan(self) -> Plan:
        return self.replanner.plan

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = end

    def rate(self, since: float, until: float | None = None) -> float:
        """Samples per second that came out between the first and the last span of a time."""
        times = [(at, samples) for at, samples in self.finished if since <= at <= (until or self.now)]
        return sum(samples for _, samples in times[1:]) / (times[-1][0] - times[0][0])

    def limit(self) -> float:
        """Samples per second of the best mix for the world as it is."""
        world, link = self.world, self.profile.link
        assert link is not None
        cuts = tuple(
            replace(
                cut,
                server_seconds=cut.server_seconds * world.server_slowness,
                client_seconds=cut.client_seconds * world.client_slowness,
            )
            for cut in self.profile.cuts
        )
        now = replace(self.profile, cuts=cuts, link=Link(world.bits_per_s), samples=0, epochs=1)
        limit = plan(now, "mix", server_share=1 / world.tenants).limit_seconds
        assert limit is not None
        return 1 / limit

    def _probe(self, known: float, cancel: Cancel) -> float | None:
        self.probes += 1
        return self.world.bits_per_s * (0.5 if self._link_busy else 1.0)

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def _noisy(self, seconds: float) -> float:
        return seconds * self._random.uniform(1 - self._noise, 1 + self._noise)

    def _seconds(self, made: Plan) -> float:
        assert made.predicted_seconds is not None
        return made.predicted_seconds / (self.profile.samples or 1)

    def _needs(self, made: Plan) -> dict[str, Need]:
        return {share.name: self.replanner.need(share) for share in made.cuts}

    def _sizes(self, made: Plan) -> dict[str, int]:
        """As a loader has them."""
        return {
            cut.name: span_size(
                self.profile.samples,
                1.0,
                limit_bytes=10**9,
                in_flight=IN_FLIGHT,
                share=cut.share,
                per_second=1 / self._seconds(made),
            )
            for cut in made.cuts
        }

    def _begin_spans(self) -> None:
        while self._in_flight < IN_FLIGHT and self._in_flight + self._buffered < BUFFERED:
            self._dealing.consider(Cancel())
            while len(self._pending) < AHEAD:
                number = next(self._numbers) * SPAN
                self._pending.append(Span(number, "", 0, tuple(range(number, number + SPAN))))
            span = self._dealing.next(self._pending)
            if span is None:
                break
            take_first(self._pending, len(span))
            self._dealing.begun(span)
            self._in_flight += 1
            self.begun += 1
            self._requests.append(Request(span, self.observer.answer(span.cut, span.way), len(span), told_at=self.now))
        self._serve()

    def _serve(self) -> None:
        """A message's samples of the next request whose caller takes what it gets."""
        if self._server_busy:
            return
        for _ in range(len(self._requests)):
            request = self._requests[0]
            self._requests.rotate(-1)
            if request.left and request.unsent < 2:
                break
        else:
            return
        samples = min(MESSAGE, request.left)
        cost = samples * self.profile.cut(request.span.cut).server_seconds * self.world.server_slowness
        cost = self._noisy(cost)
        self._server_busy = True
        self._at(cost * self.world.tenants, lambda: self._served(request, samples, cost))

    def _served(self, request: Request, samples: int, cost: float) -> None:
        self._server_busy = False
        request.left -= samples
        request.unsent += 1
        work = Work(samples, cost, self.now - request.told_at, 1 / self.world.tenants)
        request.told_at = self.now
        if request.left == 0:
            self._requests.remove(request)
        self._sending.append(Message(request, work, round(samples * self.profile.cut(request.span.cut).out_bytes)))
        self._send()
        self._serve()

    def _send(self) -> None:
        """One piece of the next answer: connections share the link."""
        if self._link_busy or not self._sending:
            return
        self._link_busy = True
        message = self._sending.popleft()
        size = min(CHUNK, message.left)
        self._at(self._noisy(8 * size / self.world.bits_per_s), lambda: self._sent(message, size))

    def _sent(self, message: Message, size: int) -> None:
        self._link_busy = False
        message.request.answer.received(size)
        message.left -= size
        if message.left:
            self._sending.append(message)
        else:
            self._arrived(message.request, message.work)
        self._send()

    def _arrived(self, request: Request, work: Work) -> None:
        request.answer.completed(work if self._reports else None)
        request.unsent -= 1
        request.arrived += work.samples
        if request.arrived == len(request.span):
            self._in_flight -= 1
            self._buffered += 1
            self._dealing.arrived(request.span)
            self._waiting.append(request.span)
            self._finish()
            self._begin_spans()
        self._serve()

    def _finish(self) -> None:
        if self._client_busy or not self._waiting:
            return
        span = self._waiting.popleft()
        self._client_busy = True
        self._activity.trains(True)
        cost = len(span) * self.profile.cut(span.cut).client_seconds * self.world.client_slowness
        self._at(self._noisy(cost), lambda: self._finished(span))

    def _finished(self, span: Span) -> None:
        self._client_busy = False
        self._dealing.ended(span)
        self._activity.trains(False)
        self.observer.finished(span.cut, span.way, len(span))
        self.finished.append((self.now, len(span)))
        self._buffered -= 1
        self._finish()
        self._begin_spans()


def shares(made: Plan) -> dict[str, float]:
    return {share.name: share.share for share in made.cuts}
