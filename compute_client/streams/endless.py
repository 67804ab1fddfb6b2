"""An epoch that nobody sees the end of: what is measured is a steady stream, without its beginning and its end."""

from __future__ import annotations

from collections.abc import Iterator

ENDLESS = 10**9


class Endless:
    """The samples of a dataset in turn, again and again: the sampler of a stream that is left when it was watched."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[int]:
        return (number % self._samples for number in range(ENDLESS))

    def __len__(self) -> int:
        return ENDLESS
