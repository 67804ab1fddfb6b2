"""A rate that is measured again and again: smooth where measurements scatter, quick where they step."""

from __future__ import annotations

HALF_LIFE = 4.0
"""Observations after which an observation counts half."""
FAR = 1.5
"""An observation that is off by more than this factor waits for the next: if that is off to the same side, it is no
accident but a step, and what was before does not count any more."""


class Ratio:
    """Amounts over units: the quotient of two exponentially weighted sums. Not thread-safe."""

    def __init__(self) -> None:
        self.count = 0
        """Observations so far."""
        self._amount = 0.0
        self._units = 0.0
        self._far = 0

    @property
    def value(self) -> float:
        """The present estimate; 0 before the first observation."""
        return self._amount / self._units if self._units > 0 else 0.0

    def add(self, amount: float, units: float) -> None:
        """One observation: so much in so many units."""
        if units <= 0:
            return
        side = _side(amount / units, self.value) if self.count else 0
        if side:
            before, self._far = self._far, side
            if before != side:
                return  # alone it may be an accident, as of a pause
            self._amount = self._units = 0.0  # the first of the two may be half from before
        self._far = 0
        keep = 0.5 ** (1 / HALF_LIFE)
        self._amount = keep * self._amount + amount
        self._units = keep * self._units + units
        self.count += 1

    def forget(self) -> None:
        """Begins anew."""
        self.count, self._amount, self._units, self._far = 0, 0.0, 0.0, 0


def _side(seen: float, expected: float) -> int:
    """1 if far above, -1 if far below, 0 if near."""
    if seen > FAR * expected:
        return 1
    return -1 if seen * FAR < expected else 0
