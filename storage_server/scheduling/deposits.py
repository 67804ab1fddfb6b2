"""What one request holds of the queues for one sample.

A sample that is on its way takes its stored object, its input tensor and its features: whoever brings it about holds
the bytes of all three. Who joins it, or finds it kept, holds those of the features only, which may be with a slow
reader long after all others have sent them. Once the sample is done that is what everybody holds, until the row is
encoded. If who holds the whole goes away before, the next one takes it over.
"""

from __future__ import annotations

from storage_server.scheduling.holding import Holding


class Deposit:
    """Guarded by the lock of the table that the sample is in while it is on its way, then its request's own."""

    __slots__ = ("_holding", "held", "row", "whole")

    def __init__(self, holding: Holding, whole: int, row: int) -> None:
        """`whole` are the bytes of all that a sample takes, `row` those of its features, of these."""
        self._holding = holding
        self.whole = whole
        self.row = row
        self.held = 0

    def take(self, *, is_first: bool) -> bool:
        """Takes the whole for the first who wants the sample, or else a row; says whether there was room.

        What is held already counts: a row can be made a whole.
        """
        count = self.whole if is_first else self.row
        if not self._holding.take(count - self.held):
            return False
        self.held = count
        return True

    def take_over(self, other: Deposit) -> None:
        """Holds what `other`, of another request for the same sample, held beyond a row. There is always room."""
        more = other.held - other.row
        other._holding.hand_on(self._holding, more)
        other.held -= more
        self.held += more

    def give_back(self) -> None:
        """Holds nothing any longer: the sample is not on its way after all."""
        self._holding.give(self.held)
        self.held = 0

    def landed(self) -> int:
        """The sample is done; answers what is to be given back."""
        over, self.held = self.held - self.row, self.row
        return over
