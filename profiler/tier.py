"""What one tier measured of one model, and how two such tables and a link become a profile for the planner."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hapi.errors import ProfileError
from hapi.plan import INPUT, OUTPUT, CutCost, Link, Profile, WireCost


@dataclass(frozen=True)
class TierWay:
    """A codec and a compression at one cut, per sample: bytes on the wire, seconds to write and to read them here."""

    codec: str
    compression: str
    out_bytes: int
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class TierRow:
    """One cut on one tier, per sample.

    Attributes:
        name: of the cut.
        out_bytes: what the cut ships, before compression (the input tensor's size at `input`).
        prefix_seconds, suffix_seconds: the graph's two parts on this tier's device, without reading and decoding.
        flops: of the prefix; one multiply-add counts as two.
        prefix_bytes_per_sample, suffix_bytes_per_sample: peak live bytes of either part.
        ways: in which its features may travel, as far as that was measured; the default first.
    """

    name: str
    out_bytes: int
    prefix_seconds: float
    suffix_seconds: float
    flops: int = 0
    prefix_bytes_per_sample: int = 0
    suffix_bytes_per_sample: int = 0
    ways: tuple[TierWay, ...] = ()

    @classmethod
    def from_json(cls, document: Any, where: str) -> TierRow:
        values = _checked(cls, document, where)
        ways = values.get("ways", [])
        if not isinstance(ways, list | tuple):
            raise ProfileError(f"{where}: 'ways' must be a list.")
        values["ways"] = tuple(TierWay(**_checked(TierWay, way, f"{where}, ways")) for way in ways)
        return cls(**values)


@dataclass(frozen=True)
class TierProfile:
    """One model on one tier. Times are seconds per sample at the tier's own parallelism (wall time / samples).

    Attributes:
        device: of the measurement, `cpu` or `cuda` and the like.
        batch_size: at which the graph was timed.
        rows: one per cut, in graph order.
        load_seconds: to read, decode and transform one sample, as far as these overlap; 0 if it was not measured.
        read_seconds, decode_seconds: only to read it; only to decode and transform it.
        input_bytes: mean size of a stored object; 0 if unknown.
        weight_bytes: of the whole model.
        encode_seconds_per_byte, decode_seconds_per_byte: to write features as a stream, and to read them.
        compress_seconds: of a fixed piece of compressing (`ways.compress_seconds`), to compare two tiers; 0 if unknown.
        fits_to: the deepest cut that the tier has the memory for; the rows after it were not run, but estimated.
        details: anything else worth keeping.
    """

    device: str
    batch_size: int
    rows: tuple[TierRow, ...]
    load_seconds: float = 0.0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    input_bytes: float = 0.0
    weight_bytes: int = 0
    encode_seconds_per_byte: float = 0.0
    decode_seconds_per_byte: float = 0.0
    compress_seconds: float = 0.0
    fits_to: str = OUTPUT
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def computes_while_loading(self) -> bool:
        """Whether decoding and the graph use different processors, so that they overlap instead of adding up."""
        return self.device.partition(":")[0] != "cpu"

    def busy_seconds(self, load_seconds: float, graph_seconds: float) -> float:
        """Seconds per sample that this tier needs for both, in a steady state."""
        return max(load_seconds, graph_seconds) if self.computes_while_loading else load_seconds + graph_seconds

    def to_json(self) -> dict[str, Any]:
        """The answer of `POST /v1/profile`."""
        document = asdict(self)
        return {**document, "rows": [asdict(row) for row in self.rows], "details": dict(self.details)}

    @classmethod
    def from_json(cls, document: Any) -> TierProfile:
        """Reads `to_json`'s document; ProfileError for what is missing, unknown, negative or not finite."""
        values = _checked(cls, document, "tier profile")
        rows = values.get("rows")
        if not isinstance(rows, list) or not rows:
            raise ProfileError("tier profile: 'rows' must be a list with one object per cut.")
        values["rows"] = tuple(
            TierRow.from_json(row, f"tier profile, row {position}") for position, row in enumerate(rows)
        )
        return cls(**values)


def combine(
    server: TierProfile,
    client: TierProfile,
    *,
    link: Link | None,
    samples: int,
    batch_size: int,
    epochs: int = 1,
    model: str = "unknown",
    head_seconds: float = 0.0,
    server_memory_bytes: int | None = None,
    client_memory_bytes: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> Profile:
    """The profile of a model on two tiers: everything that happens to one sample is charged to one of them.

    The server reads, and unless the cut is `input` decodes, transforms, runs the prefix and encodes. The client reads
    the stream, runs what is left and trains the head (`head_seconds` per sample); at cut `input` it decodes what it has
    received, too.
    What a cut ships is counted by the client's rows: it chooses the codec, the server measures without knowing it. What
    the client measured of writing in its `ways` is scaled by how fast the server is at such work.
    Raises ProfileError if the two tables are not of the same cuts.
    """
    if [row.name for row in server.rows] != [row.name for row in client.rows]:
        raise ProfileError("the two tiers measured different cuts; profile the same model, captured the same way.")
    known = server.compress_seconds > 0 and client.compress_seconds > 0
    slowness = server.compress_seconds / client.compress_seconds if known else 1.0
    cuts = []
    for far, near in zip(server.rows, client.rows, strict=True):
        ways: tuple[WireCost, ...] = ()
        out_bytes: float
        if far.name == INPUT:
            out_bytes = server.input_bytes or client.input_bytes or far.out_bytes
            server_seconds = server.read_seconds
            received = out_bytes * client.decode_seconds_per_byte
            client_seconds = client.busy_seconds(received + client.decode_seconds, near.suffix_seconds)
        elif near.ways:
            ways = tuple(_way(server, client, far, near, way, slowness, head_seconds) for way in near.ways)
            out_bytes, server_seconds = ways[0].out_bytes, ways[0].server_seconds
            client_seconds = ways[0].client_seconds - head_seconds
        else:
            out_bytes = near.out_bytes
            encode = out_bytes * server.encode_seconds_per_byte
            server_seconds = server.busy_seconds(server.load_seconds + encode, far.prefix_seconds)
            client_seconds = client.busy_seconds(out_bytes * client.decode_seconds_per_byte, near.suffix_seconds)
        cuts.append(
            CutCost(
                name=far.name,
                out_bytes=out_bytes,
                server_seconds=server_seconds,
                client_seconds=client_seconds + head_seconds,
                server_bytes_per_sample=far.prefix_bytes_per_sample,
                client_bytes_per_sample=near.suffix_bytes_per_sample,
                flops=far.flops,
                wire=ways,
            )
        )
    return Profile(
        model=model,
        input_bytes=cuts[0].out_bytes,
        cuts=tuple(cuts),
        link=link,
        samples=samples,
        batch_size=batch_size,
        epochs=epochs,
        server_memory_bytes=server_memory_bytes,
        client_memory_bytes=client_memory_bytes,
        server_fits_to=server.fits_to,
        weight_bytes=max(server.weight_bytes, client.weight_bytes),
        details=details or {},
    )


def _way(
    server: TierProfile,
    client: TierProfile,
    far: TierRow,
    near: TierRow,
    way: TierWay,
    slowness: float,
    head_seconds: float,
) -> WireCost:
    encode = way.encode_seconds * slowness
    return WireCost(
        codec=way.codec,
        compression=way.compression,
        out_bytes=way.out_bytes,
        server_seconds=server.busy_seconds(server.load_seconds + encode, far.prefix_seconds),
        client_seconds=client.busy_seconds(way.decode_seconds, near.suffix_seconds) + head_seconds,
        encode_seconds=encode,
        decode_seconds=way.decode_seconds,
    )


def _checked(cls: type, document: Any, where: str) -> dict[str, Any]:
    """The document's values for the dataclass `cls`, numbers checked by their annotation."""
    if not isinstance(document, dict):
        raise ProfileError(f"{where}: not a JSON object.")
    known = {item.name: item for item in fields(cls)}
    unknown = document.keys() - known.keys()
    if unknown:
        raise ProfileError(f"{where}: unknown {', '.join(sorted(map(repr, unknown)))}. Is the other side newer?")
    for name, item in known.items():
        if name in document:
            _check_value(document[name], str(item.type), f"{where}: {name!r}")
        elif item.default is item.default_factory:  # both MISSING: the field is required
            raise ProfileError(f"{where}: {name!r} is missing.")
    return dict(document)


def _check_value(value: Any, kind: str, where: str) -> None:
    if kind == "str" and not isinstance(value, str):
        raise ProfileError(f"{where} must be text, got {value!r}.")
    if kind.startswith("Mapping") and not isinstance(value, dict):
        raise ProfileError(f"{where} must be an object, got {value!r}.")
    if kind in ("int", "float"):
        allowed = int if kind == "int" else (int, float)
        is_number = isinstance(value, allowed) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= sys.float_info.max:  # comparing takes integers of any size
            raise ProfileError(f"{where} must be a number of kind {kind}, zero or more, got {repr(value)[:40]}.")
