"""What a running job shows of its rates: bytes as they arrive, what the server says of its work, spans as they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from compute_client.replanning.activity import Activity
from compute_client.replanning.link import LinkPace
from compute_client.replanning.pace import LEAST_COUNT, Pace
from compute_client.replanning.rates import Rates
from compute_client.replanning.ratio import Ratio
from hapi.plan import INPUT, CutCost, Profile, WireCost
from hapi.wire.work import Work

WINDOW_SECONDS, FLOWING_SECONDS = 0.25, 0.1
"""Least time over which bytes are counted, and of it that in which they were on their way: longer than the bursts of a
socket's buffer or a traffic shaper."""
SATURATED = 0.85
"""A tier that works for so much of the time may be what sets the pace."""
LONGEST_SECONDS = 5.0
FULL = 0.8
"""A link on which something is on its way for so much of the time sets the pace."""
SERVER_SAMPLES, CLIENT_SAMPLES = 48, 192
"""Least samples of one observation of a tier's speed. The client's seconds are those of all its spans together, so that
a few of them begin and end elsewhere."""
LEAST_SHARE = 0.01


class Answer:
    """One answer as it arrives, from one thread."""

    def __init__(self, observer: Observer, cut: str, way: tuple[str, str] | None) -> None:
        self.cut, self.way = cut, way
        self.is_on_its_way = False
        """Whether a part of a message is here, and the rest of it is not."""
        self._observer = observer

    def received(self, count: int) -> None:
        """Bytes arrived."""
        self._observer.received(self, count)

    def completed(self, work: Work | None) -> None:
        """A message is whole."""
        self._observer.completed(self, work)

    def ended(self) -> None:
        """Nothing more comes, whether it is complete or not."""
        self._observer.completed(self)


class Observer:
    """Estimates of one job. Thread-safe.

    The three resources of the planner's model are told apart like this: how long either tier works per sample it says
    itself. The link is measured while a part of a message is here and the rest is not: the server hands over whole
    messages, so the rest is on its way. When a tier works nearly all the time it may be slow in sending or receiving as
    well, and the link gives at least as much as arrives.
    """

    def __init__(self, profile: Profile, activity: Activity, clock: Callable[[], float] = time.monotonic) -> None:
        assert profile.link is not None
        self._profile, self._activity, self._clock = profile, activity, clock
        self._lock = threading.Lock()
        self._link = LinkPace(profile.link.bandwidth_bits_per_s)
        self._server, self._client, self._share = Pace(SERVER_SAMPLES), Pace(CLIENT_SAMPLES), Ratio()
        self._reports = 0
        self._unseen_samples = 0
        self._on_their_way = 0
        self._last_byte = clock()
        self._client_seconds = activity.seconds
        self._begin_window()
        self._begin_computing()

    def rates(self) -> Rates | None:
        """The present estimates; None while the server has said nothing (an older one never does)."""
        with self._lock:
            if not self._reports:
                return None
            share = self._server_share() if self._share.count >= LEAST_COUNT else 1.0
            return Rates(self._link.bits_per_s, self._server.scale, share, self._client.scale)

    @property
    def reports(self) -> int:
        """How often the server has told of its work."""
        with self._lock:
            return self._reports

    @property
    def is_link_full(self) -> bool:
        """Whether the link set the pace lately. Not any more when it has rested since: a link that was restored carries
        little for a plan that was made for less, and would otherwise count as full until enough has come over it."""
        with self._lock:
            now = self._clock()
            elapsed = now - self._window_began
            if elapsed < WINDOW_SECONDS:
                return self._link.is_full
            under_way = now - max(self._last_byte, self._window_began) if self._on_their_way else 0.0
            return self._link.is_full and self._flowing + under_way > FULL * elapsed

    @property
    def unseen_samples(self) -> int:
        """Samples that were finished since the server last computed any."""
        with self._lock:
            return self._unseen_samples

    def answer(self, cut: str, way: tuple[str, str] | None) -> Answer:
        """An answer that is about to arrive."""
        return Answer(self, cut, way)

    def received(self, answer: Answer, count: int) -> None:
        """Bytes of an answer arrived."""
        with self._lock:
            now = self._clock()
            if self._on_their_way:
                self._flowing += now - max(self._last_byte, self._window_began)
                self._bytes += count
            self._last_byte = now
            if not answer.is_on_its_way:
                answer.is_on_its_way = True
                self._on_their_way += 1

    def completed(self, answer: Answer, work: Work | None = None) -> None:
        """A message of an answer is whole, or the answer has ended; the server may have told what it has cost."""
        with self._lock:
            if answer.is_on_its_way:
                answer.is_on_its_way = False
                self._on_their_way -= 1
            if work is None:
                return
            self._reports += 1
            predicted = work.samples * self._cost(answer.cut, answer.way).server_seconds
            if answer.cut == INPUT:  # reading says little of how fast it computes
                self._sent_seconds += predicted
            elif work.samples:
                self._computed(work, predicted)
            self._share.add(work.share * work.elapsed, work.elapsed)
            self._own_seconds += work.seconds
            self._look()

    def _computed(self, work: Work, predicted: float) -> None:
        """The server has computed; reading what it sent as stored meanwhile has taken of its time as well."""
        self._unseen_samples = 0
        self._computed_samples += work.samples
        self._computed_seconds += work.seconds
        self._predicted_seconds += predicted
        if self._computed_samples < SERVER_SAMPLES:
            return
        part = min(1.0, self._computed_seconds / max(self._clock() - self._computing_since, 1e-9))
        predicted = self._predicted_seconds + part * self._sent_seconds
        self._server.add(self._computed_samples, self._computed_seconds, predicted)
        self._begin_computing()

    def finished(self, cut: str, way: tuple[str, str] | None, samples: int) -> None:
        """A span is finished here."""
        with self._lock:
            seconds = self._activity.seconds
            predicted = samples * self._cost(cut, way).client_seconds
            self._client.add(samples, seconds - self._client_seconds, predicted)
            self._client_seconds = seconds
            self._unseen_samples += samples

    def probed(self, bits_per_s: float) -> None:
        """The link was seen to give so much beside what was under way."""
        with self._lock:
            self._link.at_least(bits_per_s)

    def forget_server(self) -> None:
        """What was known of the server is too old: it counts as it was in the profile."""
        with self._lock:
            self._server.forget()
            self._share.forget()
            self._unseen_samples = 0
            self._begin_computing()

    def _look(self) -> None:
        """Closes a window that is long enough, when a message is there: what the server says belongs to its bytes."""
        elapsed = self._clock() - self._window_began
        if elapsed < WINDOW_SECONDS or (self._flowing < FLOWING_SECONDS and elapsed < LONGEST_SECONDS):
            return
        server = self._own_seconds / elapsed / self._server_share()
        client = (self._activity.seconds - self._window_activity) / elapsed
        is_full = self._flowing > FULL * elapsed
        if self._flowing >= FLOWING_SECONDS:
            if max(server, client) < SATURATED:
                self._link.measured(self._bytes, self._flowing, is_full=is_full)
            else:
                self._link.seen(self._bytes, self._flowing, is_full=is_full)
        self._begin_window()

    def _begin_computing(self) -> None:
        self._computing_since = self._clock()
        self._computed_samples, self._computed_seconds = 0, 0.0
        self._predicted_seconds, self._sent_seconds = 0.0, 0.0

    def _begin_window(self) -> None:
        self._window_began = self._clock()
        self._window_activity = self._activity.seconds
        self._bytes, self._flowing, self._own_seconds = 0, 0.0, 0.0

    def _server_share(self) -> float:
        return max(self._share.value, LEAST_SHARE) if self._share.count else 1.0

    def _cost(self, cut: str, way: tuple[str, str] | None) -> CutCost | WireCost:
        """What the profile says of a cut, in the way that its features travel."""
        cost = self._profile.cut(cut)
        return next((other for other in cost.wire if (other.codec, other.compression) == way), cost)
