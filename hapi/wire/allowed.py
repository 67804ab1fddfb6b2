"""What the user lets features become on the wire."""

from __future__ import annotations

from dataclasses import dataclass

from hapi.errors import InputError
from hapi.wire.codecs import get_codec
from hapi.wire.stream import COMPRESSIONS

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Allowed:
    """Codecs and compressions among which a plan may choose; the first codec is used where nothing is measured.

    `compression` is `auto` (whichever lossless one pays by measurement, or none), or the one that is always used. A
    codec that changes values is used only if it is named here. InputError for names that do not exist.
    """

    codecs: tuple[str, ...] = ("float32",)
    compression: str = NONE

    def __post_init__(self) -> None:
        if not self.codecs or len(set(self.codecs)) != len(self.codecs):
            raise InputError(f"codecs {self.codecs}: name at least one, and none twice.")
        for codec in self.codecs:
            get_codec(codec)
        if self.compression not in (AUTO, *COMPRESSIONS):
            raise InputError(
                f"unknown compression {self.compression!r}; there are: {', '.join((AUTO, *COMPRESSIONS))}."
            )

    @property
    def compressions(self) -> tuple[str, ...]:
        """Those to choose from; of `auto`, `none` first."""
        return COMPRESSIONS if self.compression == AUTO else (self.compression,)

    @property
    def default(self) -> tuple[str, str]:
        """(codec, compression) where nothing is measured."""
        return self.codecs[0], self.compressions[0]

    @property
    def is_exact(self) -> bool:
        """Whether features arrive bit for bit, whatever is chosen."""
        return all(get_codec(codec).exact for codec in self.codecs)

    @property
    def is_choice(self) -> bool:
        """Whether there is anything to measure."""
        return len(self.codecs) > 1 or self.compressions != (NONE,)

    def check(self, codec: str) -> None:
        """InputError for a codec that changes values and was not named."""
        if not get_codec(codec).exact and codec not in self.codecs:
            raise InputError(f"the plan sends features as {codec}, which changes them. Allow it with codecs=[...].")
