"""Where a loader is: a small JSON document of what was yielded, never of what was fetched."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hapi.errors import InputError

VERSION = 1


@dataclass(frozen=True)
class LoaderState:
    """`batches` of epoch `epoch` were yielded; the next one is the next. People may edit both.

    Attributes:
        samples: of the dataset.
        dataset: its order digest.
        seed: of order and random transforms.
        order: digest of the indices yielded in this epoch, to notice an order that cannot be repeated; "" in a state
            that was edited by hand, which is then not checked.
        generator: state of the user's generator at the beginning of the epoch, base64; None if there is none.
    """

    epoch: int
    batches: int
    samples: int
    dataset: str
    seed: int
    order: str = ""
    generator: str | None = None
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LoaderState:
        """Reads `to_json`'s document; InputError for a damaged one or one of another version."""
        kinds = {
            "version": int,
            "epoch": int,
            "batches": int,
            "samples": int,
            "dataset": str,
            "seed": int,
            "order": str,
            "generator": str | None,
        }
        if not isinstance(document, Mapping) or document.get("version") != VERSION:
            raise InputError(f"loader state: not of version {VERSION}. Use the document that state_dict() gave.")
        if document.keys() - kinds.keys() or kinds.keys() - document.keys() - {"order", "generator"}:
            raise InputError(f"loader state: needs {', '.join(kinds)}, has {', '.join(map(str, document))}.")
        for name, value in document.items():
            if isinstance(value, bool) or not isinstance(value, kinds[name]):
                raise InputError(f"loader state: {name!r} must not be {value!r}.")
            if isinstance(value, int) and value < 0:
                raise InputError(f"loader state: {name!r} must not be negative, got {value}.")
        return cls(**document)

    def check_fits(self, *, samples: int, dataset: str, seed: int) -> None:
        """InputError when the state is of another dataset or seed: it would be another order."""
        if self.samples != samples or self.dataset != dataset:
            raise InputError(
                f"loader state: it is of a dataset with {self.samples} samples (order digest {self.dataset[:12]}), "
                f"this loader reads {samples} ({dataset[:12]}). The dataset changed; start the epoch anew."
            )
        if self.seed != seed:
            raise InputError(
                f"loader state: it was saved with seed {self.seed}, this loader has {seed}. Use that seed."
            )


class OrderDigest:
    """A running digest of the batches of an epoch: cheap to extend and to read."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: Sequence[int] | np.ndarray) -> None:
        """A batch's indices; faster for int64 (n,)."""
        self._hash.update(array("q", [len(batch)]).tobytes())
        self._hash.update(np.asarray(batch, np.int64).tobytes())

    def read(self) -> str:
        return self._hash.hexdigest()
