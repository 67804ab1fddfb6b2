"""How fast a tier is beside what its profile said."""

from __future__ import annotations

from compute_client.replanning.ratio import Ratio

LEAST_COUNT = 3
"""Observations before they are believed: the first may be of a network that was just loaded."""


class Pace:
    """Measured seconds over those of the profile: 2 is half as fast. Not thread-safe.

    Observations are of `least_samples` samples at least; smaller ones are put together.
    """

    def __init__(self, least_samples: int) -> None:
        self._least = least_samples
        self._ratio = Ratio()
        self._forget_part()

    @property
    def scale(self) -> float:
        """The estimate; 1, as the profile says, until there are enough observations."""
        return self._ratio.value if self._ratio.count >= LEAST_COUNT else 1.0

    def add(self, samples: int, seconds: float, predicted_seconds: float) -> None:
        """So many samples took so long, and the profile says how long they should."""
        self._samples += samples
        self._seconds += seconds
        self._predicted += predicted_seconds
        if self._samples >= self._least:
            self._ratio.add(self._seconds, self._predicted)
            self._forget_part()

    def forget(self) -> None:
        """As the profile says again."""
        self._ratio.forget()
        self._forget_part()

    def _forget_part(self) -> None:
        self._samples, self._seconds, self._predicted = 0, 0.0, 0.0
