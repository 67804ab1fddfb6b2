"""Shallower cuts from whose kept tensors a prefix can be continued."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hapi.cache import FeatureKeys
from hapi.errors import UnknownCutError
from hapi.plan import INPUT
from storage_server.extraction.engine import Prefix

if TYPE_CHECKING:
    from storage_server.library.models import Lease

MOST = 4
"""Shallower cuts that are looked for, the deepest of those that were served."""


@dataclass(frozen=True)
class Start:
    """`part` leads from a shallower cut to the one that is asked for; `keys` name the shallower features."""

    part: Prefix
    keys: FeatureKeys


def starts_of(
    lease: Lease, prefix: Prefix, served: Iterable[str], keys_of: Callable[[str], FeatureKeys], queue_bytes: int
) -> tuple[Start, ...]:
    """The cuts among those served from which `prefix` can be continued, the deepest first.

    They carry one tensor, which a row of a batch is, and the queues have room for a sample of them. Memory needs no
    other look: a part holds weights of its prefix only, and a batch is sized for it as for any other.
    """
    found: dict[int, Start] = {}
    for name in served:
        try:
            cut = lease.graph.cut(name)
            if cut.name == INPUT or cut.index >= prefix.cut.index or len(cut.values) != 1:
                continue
            if cut.bytes_per_sample + prefix.cut.bytes_per_sample > queue_bytes:
                continue
            found[cut.index] = Start(lease.part(cut.name, prefix.cut.name, prefix.precision), keys_of(cut.name))
        except UnknownCutError:  # remembered of another version of the graph, or not to be continued
            continue
    return tuple(found[index] for index in sorted(found, reverse=True)[:MOST])
