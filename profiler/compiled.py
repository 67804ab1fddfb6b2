"""What compiled programs that lie on disk already change in a measurement, which is made without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hapi.engine import Compiler, Precision
from hapi.model import Graph, Program
from profiler.tier import TierProfile, TierRow


def with_compiled(
    tier: TierProfile,
    graph: Graph,
    compiler: Compiler,
    precision: Precision,
    threads: int,
    timed: Callable[[str], float | None] | None = None,
) -> TierProfile:
    """The tier as it will be, since its engine finds compiled code before its first call.

    The seconds of each part for which there is some are divided by the gain that was measured when it was made, over
    what the engine runs otherwise; or, of prefixes, they are what `timed` says of the cut, unless that is None.
    `threads` are those of one operation on the tier.
    """

    def gain(part: Program) -> float:
        found = compiler.lying(part.to(tier.device), precision, threads) if part.nodes else None
        return found.gain if found is not None else 1.0

    def prefix_seconds(row: TierRow, part: Program) -> float:
        factor = gain(part)
        measured = timed(row.name) if timed is not None and factor != 1.0 else None
        return row.prefix_seconds / factor if measured is None else measured

    rows = []
    for row in tier.rows:
        prefix, suffix = graph.split(row.name)
        rows.append(
            replace(
                row,
                prefix_seconds=prefix_seconds(row, prefix),
                suffix_seconds=row.suffix_seconds / gain(suffix),
            )
        )
    return replace(tier, rows=tuple(rows))
