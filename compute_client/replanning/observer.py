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

WINDOW_SECONDS = 0.25
"""Least time over which bytes are counted: longer than the bursts of a socket's buffer or a traffic shaper."""
SILENCE_SECONDS = 0.1
"""A link that sets the pace is never silent for so long."""
SATURATED = 0.85
"""A tier that works for so much of the time may be what sets the pace."""
OBSERVED_SAMPLES = 24
"""Least samples of one observation of a tier's speed."""
LEAST_SHARE = 0.01


class Observer:
    """Estimates of one job. Thread-safe.

    The three resources of the planner's model are told apart like this: how long either tier works per sample it says
    itself; when neither works most of the time, and yet bytes come without a pause, the link is what sets the pace.
    """

    def __init__(self, profile: Profile, activity: Activity, clock: Callable[[], float] = time.monotonic) -> None:
        assert profile.link is not None
        self._profile, self._activity, self._clock = profile, activity, clock
        self._lock = threading.Lock()
        self._link = LinkPace(profile.link.bandwidth_bits_per_s)
        self._server, self._client, self._share = Pace(OBSERVED_SAMPLES), Pace(OBSERVED_SAMPLES), Ratio()
        self._reports = 0
        self._unseen_samples = 0
        self._last_byte = clock()
        self._client_seconds = activity.seconds
        self._begin_window()

    def rates(self) -> Rates | None:
        """The present estimates; None while the server has said nothing (an older one never does)."""
        with self._lock:
            if not self._reports:
                return None
            return Rates(self._link.bits_per_s, self._server.scale, self._server_share(), self._client.scale)

    @property
    def reports(self) -> int:
        """How often the server has told of its work."""
        with self._lock:
            return self._reports

    @property
    def is_link_full(self) -> bool:
        """Whether the link set the pace lately."""
        with self._lock:
            return self._link.is_full

    @property
    def unseen_samples(self) -> int:
        """Samples that were finished since the server last computed any."""
        with self._lock:
            return self._unseen_samples

    def received(self, count: int) -> None:
        """Bytes arrived."""
        with self._lock:
            now = self._clock()
            if now - self._last_byte > SILENCE_SECONDS:
                self._silence += now - max(self._last_byte, self._window_began)
            self._last_byte = now
            self._bytes += count

    def worked(self, cut: str, way: tuple[str, str] | None, work: Work) -> None:
        """The server has told what samples at a cut have cost it."""
        with self._lock:
            self._reports += 1
            if work.samples:
                cost = self._cost(cut, way)
                if cut != INPUT:  # reading says little of how fast it computes
                    self._server.add(work.samples, work.seconds, work.samples * cost.server_seconds)
                    self._unseen_samples = 0
            self._own_seconds += work.seconds
            self._shares += work.share * work.elapsed
            self._share_seconds += work.elapsed
            self._look()

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

    def _look(self) -> None:
        """Closes a window that is long enough, when a message is there: what the server says belongs to its bytes."""
        elapsed = self._clock() - self._window_began
        if elapsed < WINDOW_SECONDS:
            return
        self._share.add(self._shares, self._share_seconds)
        server = self._own_seconds / elapsed / self._server_share()
        client = (self._activity.seconds - self._window_activity) / elapsed
        if max(server, client) < SATURATED and self._silence < elapsed / 2:
            self._link.full(self._bytes, elapsed - self._silence)
        else:
            self._link.idle(self._bytes, elapsed)
        self._begin_window()

    def _begin_window(self) -> None:
        self._window_began = self._clock()
        self._window_activity = self._activity.seconds
        self._bytes, self._silence = 0, 0.0
        self._own_seconds = self._shares = self._share_seconds = 0.0

    def _server_share(self) -> float:
        return max(self._share.value, LEAST_SHARE) if self._share.count >= LEAST_COUNT else 1.0

    def _cost(self, cut: str, way: tuple[str, str] | None) -> CutCost | WireCost:
        """What the profile says of a cut, in the way that its features travel."""
        cost = self._profile.cut(cut)
        return next((other for other in cost.wire if (other.codec, other.compression) == way), cost)
