"""What a loader keeps of finished features: in memory, and in a folder that later jobs find."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from compute_client.dataset import Dataset
from compute_client.pipeline import Finished
from compute_client.stats import LoaderStats
from compute_client.table import FeatureTable, in_order
from hapi.cache import KEY_BYTES, DiskCache, FeatureKeys, layout
from hapi.errors import InputError
from hapi.machine import free_bytes

log = logging.getLogger(__name__)

DEFAULT_MEMORY_BYTES = 2**30
DEFAULT_DISK_BYTES = 16 * 2**30
FREE_PART = 4
"""By default no more than a quarter of the memory that is free."""

Tensors = tuple[torch.Tensor, ...]
Indices = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class CacheOptions:
    """Where a loader keeps features. `memory_bytes` None: 1 GiB, but at most a quarter of what is free.

    `views`: how many variants of a random transform are kept: epoch e then sees that of epoch e modulo `views`.
    """

    memory_bytes: int | None = None
    folder: Path | None = None
    disk_bytes: int = DEFAULT_DISK_BYTES
    views: int | None = None

    def __post_init__(self) -> None:
        if (self.memory_bytes or 0) < 0 or self.disk_bytes < 0:
            raise InputError("cache_bytes and disk_cache_bytes must not be negative; 0 keeps nothing.")
        if self.views is not None and self.views < 1:
            raise InputError(f"augment_views {self.views}: at least 1, or None to see new variants in every epoch.")

    @property
    def memory(self) -> int:
        """Bytes of the memory tier."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        return min(DEFAULT_MEMORY_BYTES, free_bytes("cpu") // FREE_PART)

    @property
    def is_off(self) -> bool:
        return self.memory_bytes == 0 and self.folder is None


class LoaderCache:
    """Features by sample and view, for all iterations of a loader and its subsets. Thread-safe.

    A sample is *kept* when it is in memory or was found on disk; the latter are brought into memory while that has
    room. Labels belong to the dataset, not to what is kept.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: CacheOptions,
        *,
        views: int,
        keys: Callable[[], list[FeatureKeys]],
        stats: LoaderStats,
    ) -> None:
        """`keys` gives those of every view, for the disk, or none if there can be none; asked when first needed."""
        self.views = views
        self._dataset, self._options, self._stats = dataset, options, stats
        self._make_keys = keys
        self._table = FeatureTable(views * dataset.samples, options.memory)
        self._known = np.zeros(views * dataset.samples, bool)
        """Whether `missing` found it, and it was not lost on disk since."""
        self._labels = np.full(dataset.samples, -1, np.int64)
        self._disk = DiskCache(options.folder, options.disk_bytes, keep_used=True) if options.folder else None
        if self._disk is not None:
            _ = dataset.listing  # names the files on disk; asked for now, while there is a server to ask
        rows = views * dataset.samples if self._disk is not None else 0
        self._keys, self._has_key = np.zeros((rows, KEY_BYTES), np.uint8), np.zeros(rows, bool)
        self._places = np.full(rows, -1, np.int64)
        """Where on disk each lies, as far as was asked."""
        self._key_makers: list[FeatureKeys] | None = None
        self._description: bytes | None = None
        self._version: Hashable = None
        self._is_used = False  # whether something was kept, or found
        self._lock = threading.RLock()

    def begin(self, version: Hashable) -> None:
        """Called at first, and before an epoch. Another `version` of the weights makes what is kept worthless."""
        with self._lock:
            if self._version is not None and version != self._version:
                if self._is_used:
                    log.warning("the backbone's weights changed: the features that were kept are computed anew")
                self._table.clear()
                self._known[:], self._is_used = False, False
                if self._key_makers is not None:
                    self._disk = None  # its keys name the weights that were
            self._version = version

    def missing(self, indices: Indices, view: int) -> np.ndarray:
        """Positions in `indices` of the samples that are not kept, int64."""
        chosen = np.asarray(indices, np.int64)
        numbers = self._numbers(chosen, view)
        absent = np.flatnonzero(~self._known[numbers])
        if len(absent):
            asked = numbers[absent]
            found = self._table.has(asked)
            found[~found] = self._from_disk(asked[~found], view)
            self._known[asked[found]] = True
            self._is_used |= bool(found.any())
            absent = absent[~found]
        return absent

    def gather(self, indices: Indices, view: int) -> tuple[np.ndarray, Tensors, torch.Tensor]:
        """Samples that `missing` did not name: positions that are still there, their features and labels.

        Features (n, *shape) in host memory, the caller's own. Others were lost on disk in the meantime.
        """
        chosen = np.asarray(indices, np.int64)
        numbers = self._numbers(chosen, view)
        slots = self._table.slots(numbers)
        if slots.min(initial=0) >= 0:
            return np.arange(len(chosen)), self._table.gather(numbers), torch.from_numpy(self._labels[chosen])
        if (description := self._described(numbers, slots >= 0)) is None:
            there = np.flatnonzero(slots >= 0)
            return there, self._table.gather(numbers[there]), torch.from_numpy(self._labels[chosen[there]])
        fetch = partial(self._read, description)
        there, features = self._table.gather_with(numbers, slots, fetch, layout.kinds(description))
        labels = self._labels[chosen if len(there) == len(chosen) else chosen[there]]
        return there, features, torch.from_numpy(labels)

    def is_on_disk(self, indices: Indices, view: int) -> bool:
        """Whether some of these are not in memory, so that `gather` has to read."""
        return self._disk is not None and not self._table.has(self._numbers(np.asarray(indices, np.int64), view)).all()

    def put(self, finished: Finished, version: Hashable) -> None:
        """Keeps what a span brought; its epoch is the view. `version` is that of the weights now: after they were
        written to in mid-epoch nothing is kept, as on disk it would have the name of those before."""
        rows = finished.rows
        if not len(rows) or version != self._version:
            return
        indices = np.array(finished.span.indices, np.int64)[rows]
        features = tuple(feature.detach().to("cpu") for feature in finished.features)
        self._labels[indices], self._is_used = finished.labels[rows], True
        self._table.put(self._numbers(indices, finished.span.epoch), features)
        numbers = self._numbers(indices, finished.span.epoch)
        if self._disk is not None and self._know_keys(numbers, finished.span.epoch):
            self._description = layout.describe(tuple(feature[0] for feature in features))
            for row, number in enumerate(numbers):
                self._disk.put(self._keys[number].tobytes(), tuple(feature[row] for feature in features))

    def holds(self, indices: Sequence[int], views: Sequence[int]) -> bool:
        """Whether all of these are kept, in these views; cheap when they are not."""
        return all(
            not len(self.missing(indices[start : start + 256], view))
            for view in views
            for start in range(0, len(indices), 256)
        )

    def share(self, row_bytes: int) -> float:
        """The part of all features that there is room for, if a sample's take `row_bytes`.

        What is in memory is on disk as well, as far as that has room.
        """
        room = max(self._table.budget_bytes, self._options.disk_bytes if self._disk is not None else 0)
        return max(0.0, min(1.0, room / max(1, row_bytes * self.views * self._dataset.samples)))

    @property
    def nbytes(self) -> int:
        """Bytes of the memory tier."""
        return self._table.nbytes

    def close(self) -> None:
        """Ends writing to the folder."""
        if self._disk is not None:
            self._disk.close()

    def _numbers(self, indices: np.ndarray, view: int) -> np.ndarray:
        return indices + view * self._dataset.samples

    def _from_disk(self, numbers: np.ndarray, view: int) -> np.ndarray:
        """Which of these the disk has; brings them into memory while there is room."""
        if self._disk is None:
            return np.zeros(len(numbers), bool)
        found = self._places[numbers] >= 0
        if not found.all():
            if not self._know_keys(numbers, view):
                return np.zeros(len(numbers), bool)
            unknown = numbers[~found]
            self._places[unknown] = self._disk.locate(self._keys[unknown])
            found = self._places[numbers] >= 0
        if found.any() and not self._table.is_full:
            positions = np.flatnonzero(found)
            found[:] = False
            if (description := self._described(numbers[positions])) is not None:
                rows = layout.allocate_rows(description, len(positions))
                there, features = in_order(self._read(description, numbers[positions], rows), rows)
                found[positions[there]] = True
                self._table.put(numbers[found], features)
        return found

    def _described(self, numbers: np.ndarray, here: np.ndarray | None = None) -> bytes | None:
        """What a sample's features are on disk; None if nothing is there of these samples, those left out that are
        `here`, in memory."""
        if self._description is None and self._disk is not None:
            absent = numbers if here is None else numbers[~here]
            kept = (self._disk.get(key.tobytes()) for key in self._keys[absent])
            first = next((tensors for tensors in kept if tensors is not None), None)
            if first is None:
                self._places[absent], self._known[absent] = -1, False
            else:
                self._description = layout.describe(first)
        return self._description

    def _read(self, description: bytes, numbers: np.ndarray, into: Tensors) -> np.ndarray:
        """Which of these samples stands in each row of `into`, see DiskCache.read_rows."""
        if self._disk is None:
            self._known[numbers] = False
            return np.full(len(numbers), -1)
        found = self._disk.read_rows(self._places[numbers], description, into)
        lost = 0
        if found.min() < 0:
            gone = np.delete(numbers, found[found >= 0])
            self._places[gone], self._known[gone], lost = -1, False, len(gone)
        self._stats.add(disk_samples=len(found) - lost)
        return found

    def _know_keys(self, numbers: np.ndarray, view: int) -> bool:
        """Sees to it that `_keys` has those of these samples; False if they can have none."""
        with self._lock:
            if self._key_makers is None:
                self._key_makers = self._prepare_keys()
            if not self._key_makers:
                return False
            unknown = np.unique(numbers[~self._has_key[numbers]])
            if len(unknown):
                made = self._key_makers[view].many((unknown - view * self._dataset.samples).tolist())
                self._keys[unknown] = np.frombuffer(b"".join(made), np.uint8).reshape(-1, KEY_BYTES)
                self._has_key[unknown] = True
        return True

    def _prepare_keys(self) -> list[FeatureKeys]:
        makers = self._make_keys()
        if makers and self._dataset.listing.labels is not None:
            self._labels[:] = self._dataset.listing.labels
        return makers
