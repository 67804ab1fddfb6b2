"""What a server says of the work behind a message: how a client learns how fast the server is, and how busy.

It travels as JSON in the custom metadata of a record batch (Arrow columnar format, "Custom Application Metadata"),
where readers that do not know it pass over it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hapi.errors import WireError

KEY = b"hapi.work"
MOST_CHARACTERS = 4096


@dataclass(frozen=True)
class Work:
    """What was done for one answer since its last message.

    Attributes:
        samples: read or computed for it; those that were kept, done for another request, or failed do not count.
        seconds: of the whole server that they took: what one sample of them costs, times their number.
        elapsed: seconds since the answer's last message.
        share: part of the server in that time, 0 to 1, that this tenant had or could have had: what others left, and at
            least its fair part among the tenants of the moment.
    """

    samples: int
    seconds: float
    elapsed: float
    share: float = 1.0

    def metadata(self) -> dict[bytes, bytes]:
        """As custom metadata of a message."""
        return {KEY: json.dumps(asdict(self)).encode()}

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes]) -> Work | None:
        """What a message says, None if it says nothing; WireError for nonsense. Further keys are a newer server's."""
        text = metadata.get(KEY)
        if text is None:
            return None
        try:
            document = json.loads(text) if len(text) <= MOST_CHARACTERS else None
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise WireError(
                f"feature stream: {KEY.decode()} is no JSON object of {MOST_CHARACTERS} characters at most."
            )
        return cls(
            samples=int(_number(document, "samples", 2**31)),
            seconds=_number(document, "seconds", 1e9),
            elapsed=_number(document, "elapsed", 1e9),
            share=_number(document, "share", 1.0),
        )


def _number(document: Mapping[str, Any], name: str, most: float) -> float:
    value = document.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= most
        or not math.isfinite(value)
    ):
        raise WireError(f"feature stream: {KEY.decode()} must have {name!r}, a number from 0 to {most:g}.")
    return value
