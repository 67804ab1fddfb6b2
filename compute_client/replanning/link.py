"""The link's bandwidth, from bytes that arrive anyway."""

from __future__ import annotations

from compute_client.replanning.ratio import Ratio

CLEARLY_MORE = 1.1
LEAST_WINDOWS = 2


class LinkPace:
    """What the link gives, bits per second: at first as it was measured for the plan. Not thread-safe.

    Where nothing else can have held bytes back, what arrived is what it gives; otherwise it gives at least that much.
    """

    def __init__(self, bits_per_s: float) -> None:
        self.bits_per_s = bits_per_s
        self.is_full = False
        """Whether the link set the pace when it was last looked at."""
        self._is_least = False
        """Whether it is known only to give so much at least, from what came while a tier was busy."""
        self._ratio = Ratio()
        self._more: float | None = None

    def measured(self, count: int, seconds: float, *, is_full: bool = True) -> None:
        """So many bytes came in so long, and nothing but the link held them back; `is_full` if always."""
        self.is_full, self._is_least, self._more = is_full, False, None
        self._ratio.add(8.0 * count, seconds)
        if self._ratio.count >= LEAST_WINDOWS:
            self.bits_per_s = self._ratio.value

    def seen(self, count: int, seconds: float, *, is_full: bool = False) -> None:
        """So many bytes came in so long, and there may have been room for more. Twice in a row it is believed.

        `is_full` if always: then it sets the pace if that is what it gives, not only what it gives at least.
        """
        rate = 8.0 * count / seconds
        if rate > CLEARLY_MORE * self.bits_per_s and self._more is not None:
            self.at_least(min(rate, self._more))
            self._is_least = True
        self.is_full = is_full and not self._is_least and CLEARLY_MORE * rate > self.bits_per_s
        self._more = rate if rate > CLEARLY_MORE * self.bits_per_s else None

    def at_least(self, bits_per_s: float) -> None:
        """It was seen to give so much, when there was more than enough to send."""
        self._is_least = False
        if bits_per_s > CLEARLY_MORE * self.bits_per_s:
            self.bits_per_s = bits_per_s
            self._ratio.forget()
