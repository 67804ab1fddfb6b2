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
        busy: part of that time, 0 to 1, in which the server worked for anybody.
        fair: part of the server, 0 to 1, that is this tenant's when all tenants of the moment want as much as they can.
    """

    samples: int
    seconds: float
    elapsed: float
    busy: float
    fair: float = 1.0

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
            busy=_number(document, "busy", 1.0),
            fair=_number(document, "fair", 1.0),
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
