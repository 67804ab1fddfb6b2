"""What peers need beside the store of photographs: shards that were written beforehand, or a cluster of their own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from benchmarks.baselines.systems import check_peer
from benchmarks.e2e.cluster import ray_cluster
from benchmarks.testbed.services import Store
from benchmarks.testbed.testbed import Testbed
from hapi.errors import InputError
from hapi.units import format_bytes

SHARDS = "s3://shards-of-"
WRITING_SECONDS = 1800.0
UNCOUNTED = ("ray",)
"""Systems whose work on the storage host cannot be counted: their processes have ended when they are asked."""


class Companions:
    """Of one testbed and one set of photographs. `remark` is told what a reader of the results must know."""

    def __init__(self, bed: Testbed, store: Store, remark: Callable[[str], None]) -> None:
        self._bed, self._store, self._remark = bed, store, remark
        self._has_shards = False
        self._shards = SHARDS + store.uri.removeprefix("s3://").partition("/")[0]

    @contextlib.contextmanager
    def options(self, system: str) -> Iterator[tuple[str, ...]]:
        """The options of a system's own, for as long as what they name is there; none for most.

        PeerMissingError for a peer that is not installed, InputError for one that this testbed cannot have.
        """
        check_peer(system)
        if system == "webdataset":
            self._write_shards()
            yield ("--shards", self._shards)
        elif system == "ray":
            self._remark(
                "ray: a cluster of two nodes was started beforehand; no token or encryption is used within it; what "
                "its workers on the storage host take of the processor is not known, as they end with the run"
            )
            with ray_cluster(self._bed, self._store.for_storage) as cluster:
                yield ("--cluster", cluster.address, "--node-address", cluster.node_address)
        else:
            yield ()

    def _write_shards(self) -> None:
        if self._has_shards:
            return
        if self._bed.kind == "hosts":
            raise InputError(
                "webdataset: the bench writes shards only into a store of its own. Leave out --server and --s3-endpoint"
            )
        command = [sys.executable, "-m", "benchmarks.baselines.shards", "--data", self._store.uri, "--to", self._shards]
        told = self._bed.run(self._bed.storage, command, self._store.for_storage, seconds=WRITING_SECONDS).document
        self._has_shards = True
        self._remark(
            f"webdataset: {len(told['shards'])} shards were written beforehand on the storage host, which is not "
            f"timed; {format_bytes(told['bytes'])} with the headers of tar, the photographs' bytes as they are"
        )
