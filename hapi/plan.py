"""What the planner reads and what it answers: link, profile, plan. Plain values with a strict JSON form.

All quantities are per sample. A profile lists the cuts in graph order, `input` first and `output` last; the
`input` cut ships the stored object bytes, so its `out_bytes` is the mean object size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hapi.errors import ProfileError

INPUT = "input"
OUTPUT = "output"
TRIMMED = "trimmed"
"""Compression of stored pictures, at cut `input` only: the part that the transform reads (see `hapi.data.trimming`)."""


@dataclass(frozen=True)
class Link:
    """What the network between the tiers gives one client: payload bits per second and round-trip seconds."""

    bandwidth_bits_per_s: float
    latency_seconds: float = 0.0


@dataclass(frozen=True)
class WireCost:
    """One way in which the features at a cut may travel, per sample.

    `out_bytes` is what crosses the link, compressed; `server_seconds` and `client_seconds` are those of the cut when
    it is taken in this way, of which `encode_seconds` and `decode_seconds` are for writing and reading the stream.
    """

    codec: str
    compression: str
    out_bytes: float
    server_seconds: float
    client_seconds: float
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class CutCost:
    """One cut and what it costs, per sample.

    `server_seconds` is the whole prefix up to the cut (reading and decoding included); `client_seconds` all that is
    left after it. `*_bytes_per_sample` are the peak live bytes of either part. `flops` is the prefix's, 0 if unknown.
    `wire` are the ways among which a plan may choose, the first with the cut's own bytes and seconds; empty if there
    is only that one.
    """

    name: str
    out_bytes: float
    server_seconds: float
    client_seconds: float
    server_bytes_per_sample: int = 0
    client_bytes_per_sample: int = 0
    flops: int = 0
    wire: tuple[WireCost, ...] = ()

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        ways = document.pop("wire")
        return {**document, "wire": list(ways)} if ways else document


@dataclass(frozen=True)
class Profile:
    """Costs of every cut of one model on one pair of tiers, and the job they are for."""

    model: str
    input_bytes: float
    cuts: tuple[CutCost, ...]
    link: Link | None = None
    samples: int = 0
    batch_size: int = 256
    epochs: int = 1
    server_memory_bytes: int | None = None
    client_memory_bytes: int | None = None
    weight_bytes: int = 0
    """Of the whole backbone; 0 if unknown."""
    kept_share: float = 0.0
    """Part of the samples whose features the client keeps: in epochs after the first they cost the head only."""
    head_seconds: float = 0.0
    """Of `client_seconds`, what training the head takes, per sample."""
    server_fits_to: str = OUTPUT
    """The deepest cut that the server says it has the memory for."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping (devices, engine, library versions); never read by the planner."""

    def __post_init__(self) -> None:
        names = [cut.name for cut in self.cuts]
        if len(names) < 2 or names[0] != INPUT or names[-1] != OUTPUT:
            raise ProfileError(
                f"profile of {self.model!r}: the cuts must start with 'input' and end with 'output', "
                f"got {names[:1]} ... {names[-1:]}. Add the missing rows."
            )
        if self.server_fits_to not in names:
            raise ProfileError(
                f"profile of {self.model!r}: 'server_fits_to' is {self.server_fits_to!r}, which is no cut of it."
            )
        if len(set(names)) != len(names):
            raise ProfileError(f"profile of {self.model!r}: a cut name appears twice. Give each cut its own name.")

    def cut(self, name: str) -> CutCost:
        for cut in self.cuts:
            if cut.name == name:
                return cut
        raise ProfileError(
            f"profile of {self.model!r} has no cut {name!r}. It has: {', '.join(c.name for c in self.cuts)}."
        )

    def to_json(self) -> dict[str, Any]:
        """The document that `hapi profile --json` prints and `hapi plan` reads."""
        document = {**asdict(self), "cuts": [cut.to_json() for cut in self.cuts]}
        return {key: value for key, value in document.items() if value is not None and value != {}}

    @classmethod
    def from_json(cls, document: Any) -> Profile:
        """Reads the document, refusing what is missing, negative, not finite or of the wrong type (ProfileError)."""
        if not isinstance(document, dict):
            raise ProfileError("profile: not a JSON object. Pass the document that `hapi profile --json` prints.")
        rows = document.get("cuts")
        if not isinstance(rows, list):
            raise ProfileError("profile: 'cuts' must be a list of objects, one per cut, input first.")
        link, details = document.get("link"), document.get("details")
        return cls(
            model=str(document.get("model", "unknown")),
            input_bytes=_number(document, "input_bytes", "profile"),
            cuts=tuple(_cut_from_json(row, position) for position, row in enumerate(rows)),
            link=None if link is None else _link_from_json(link),
            samples=int(_number(document, "samples", "profile", 0)),
            batch_size=int(_number(document, "batch_size", "profile", 256)),
            epochs=int(_number(document, "epochs", "profile", 1)),
            server_memory_bytes=_optional_int(document, "server_memory_bytes"),
            client_memory_bytes=_optional_int(document, "client_memory_bytes"),
            weight_bytes=int(_number(document, "weight_bytes", "profile", 0)),
            kept_share=min(1.0, _number(document, "kept_share", "profile", 0.0)),
            head_seconds=_number(document, "head_seconds", "profile", 0.0),
            server_fits_to=str(document.get("server_fits_to", OUTPUT)),
            details=details if isinstance(details, dict) else {},
        )

    @classmethod
    def loads(cls, text: str | bytes) -> Profile:
        try:
            return cls.from_json(json.loads(text))
        except ProfileError:
            raise
        except (ValueError, RecursionError) as error:
            raise ProfileError(
                f"profile: not JSON ({error}). Pass the document that `hapi profile --json` prints."
            ) from error


def unknown_fields(text: str | bytes) -> list[str]:
    """Names in a profile that was read which say nothing to the planner: somebody's own, or misspelt; sorted."""
    document = json.loads(text)
    found = set(document) - {item.name for item in fields(Profile)}
    link = document.get("link") or {}
    found |= {f"link.{name}" for name in set(link) - {item.name for item in fields(Link)}}
    for cut in document["cuts"]:
        found |= {f"cuts.{name}" for name in set(cut) - {item.name for item in fields(CutCost)}}
        for way in cut.get("wire", []):
            found |= {f"cuts.wire.{name}" for name in set(way) - {item.name for item in fields(WireCost)}}
    return sorted(found)


@dataclass(frozen=True)
class Share:
    """A cut and the fraction of the samples that take it.

    `codec` and `compression` are set where the plan decided that features travel otherwise than the job's default.
    """

    name: str
    share: float
    codec: str | None = None
    compression: str | None = None

    @property
    def way(self) -> str:
        """How features travel, for people; empty if that is the default. Stored objects have no codec."""
        codec = None if self.name == INPUT else self.codec
        return ", ".join(part for part in (codec, self.compression) if part and part != "none")

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Change:
    """A plan was changed while its job ran: when (seconds since 1970), from which cuts to which, and why."""

    at: float
    before: tuple[Share, ...]
    after: tuple[Share, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        before, after = ([share.to_json() for share in cuts] for cuts in (self.before, self.after))
        return {"at": self.at, "before": before, "after": after, "reason": self.reason}

    def __str__(self) -> str:
        return f"{_mix(self.before)} -> {_mix(self.after)}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """What was decided, what it should take, and why.

    `predicted_seconds` is for all samples and epochs under this plan; `limit_seconds` the same for the optimum of the
    linear program over mixes of cuts: no split execution on these tiers can be faster. `history` are the changes that
    led to it, the first plan's cuts in the first; empty for a plan as it was made.
    """

    policy: str
    cuts: tuple[Share, ...]
    predicted_seconds: float | None
    limit_seconds: float | None
    reasons: tuple[str, ...] = ()
    history: tuple[Change, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Without a `history` where nothing was changed."""
        document = asdict(self)
        del document["history"]
        changed = {"history": [change.to_json() for change in self.history]} if self.history else {}
        return {**document, "cuts": [share.to_json() for share in self.cuts], "reasons": list(self.reasons), **changed}

    def __str__(self) -> str:
        reasons = [f"  - {reason}" for reason in self.reasons]
        return "\n".join(
            [f"plan {self.policy}: {_mix(self.cuts)}", *reasons, *(f"  changed: {change}" for change in self.history)]
        )


def _mix(cuts: Sequence[Share]) -> str:
    return ", ".join(f"{share.share:.0%} {share.name}" + (f" ({share.way})" if share.way else "") for share in cuts)


def _cut_from_json(row: Any, position: int) -> CutCost:
    where = f"profile, cut {position}"
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise ProfileError(f"{where}: needs an object with a 'name'.")
    where = f"profile, cut {row['name']!r}"
    ways = row.get("wire", [])
    if not isinstance(ways, list):
        raise ProfileError(f"{where}: 'wire' must be a list of objects, one per codec and compression.")
    return CutCost(
        name=row["name"],
        out_bytes=_number(row, "out_bytes", where),
        server_seconds=_number(row, "server_seconds", where),
        client_seconds=_number(row, "client_seconds", where),
        server_bytes_per_sample=int(_number(row, "server_bytes_per_sample", where, 0)),
        client_bytes_per_sample=int(_number(row, "client_bytes_per_sample", where, 0)),
        flops=int(_number(row, "flops", where, 0)),
        wire=tuple(_way_from_json(way, where) for way in ways),
    )


def _way_from_json(row: Any, where: str) -> WireCost:
    codec, compression = (row.get("codec"), row.get("compression")) if isinstance(row, dict) else (None, None)
    if not isinstance(codec, str) or not isinstance(compression, str):
        raise ProfileError(f"{where}, wire: needs objects with a 'codec' and a 'compression'.")
    where = f"{where}, {codec} {compression}"
    return WireCost(
        codec=codec,
        compression=compression,
        out_bytes=_number(row, "out_bytes", where),
        server_seconds=_number(row, "server_seconds", where),
        client_seconds=_number(row, "client_seconds", where),
        encode_seconds=_number(row, "encode_seconds", where, 0.0),
        decode_seconds=_number(row, "decode_seconds", where, 0.0),
    )


def _link_from_json(document: Any) -> Link:
    if not isinstance(document, dict):
        raise ProfileError("profile: 'link' must be an object with 'bandwidth_bits_per_s'.")
    bandwidth = _number(document, "bandwidth_bits_per_s", "profile, link")
    if bandwidth == 0:
        raise ProfileError("profile, link: 'bandwidth_bits_per_s' is 0; give the measured rate.")
    return Link(bandwidth, _number(document, "latency_seconds", "profile, link", 0.0))


def _number(row: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = row.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= sys.float_info.max:  # comparing, unlike isfinite, takes integers of any size
        raise ProfileError(f"{where}: {key!r} must be a number, zero or more, got {_short(value)}.")
    return value


def _optional_int(row: Mapping[str, Any], key: str) -> int | None:
    return None if row.get(key) is None else int(_number(row, key, "profile"))


def _short(value: Any) -> str:
    """The value for a message; a number may have thousands of digits."""
    return repr(value)[:40] if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
