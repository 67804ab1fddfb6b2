"""Registered datasets: manifests by digest, in memory and in the cache directory, each for those who may read it."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from hapi.data import Manifest, ObjectStore, build_manifest, open_store
from hapi.data.build import dataset_root
from hapi.errors import ForbiddenError, ManifestError, UnknownDatasetError
from hapi.files import remove_leftovers, write_whole
from hapi.settings import StoreSettings
from storage_server.access.auth import Tenant
from storage_server.library.locks import KeyedLocks

log = logging.getLogger(__name__)
T = TypeVar("T")

SAMPLES_KEPT = 10_000_000
"""Manifests stay in memory up to about this many samples in all (some 1.5 GB); at least one stays."""
MANIFEST_BYTES = 4 * 2**30
"""Manifests on disk are removed beyond so many bytes, those unused for longest first: each listing of a dataset that
grows makes another."""
IN_USE_SECONDS, TOUCH_SECONDS = 24 * 3600.0, 3600.0
"""One that was used so lately is not removed; how often a use is noted, as the file's time of modification."""
STORES_KEPT = 64
LISTINGS_NOTED = 1024
"""Addresses, and manifests, of which is remembered when they were listed or used."""


class DatasetStore:
    """Manifests and the object stores they point into. Thread-safe; every method may block on the store or the disk."""

    def __init__(self, folder: Path, settings: StoreSettings, samples_kept: int = SAMPLES_KEPT) -> None:
        self._folder = folder
        self._settings = settings
        self._samples_kept = samples_kept
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._stores: OrderedDict[str, ObjectStore] = OrderedDict()
        self._lock = threading.Lock()
        self._listing = KeyedLocks()
        self._begun: OrderedDict[str, float] = OrderedDict()
        self._touched: OrderedDict[str, float] = OrderedDict()
        self._unwritten: OrderedDict[str, str] = OrderedDict()
        """Digests by address that the disk did not take."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)

    def register(self, uri: str, tenant: Tenant, refresh: bool = False) -> Manifest:
        """The manifest of what lies at `uri`: the kept one, or a new listing.

        Callers that ask to refresh at the same time share a listing: any that began after they came is fresh enough.
        ForbiddenError outside of the tenant's roots, before anything is opened; ManifestError or a store's error if it
        cannot be listed.
        """
        address = tenant.roots.admit(uri)
        self._check_root(dataset_root(address)[0], tenant)
        came = time.monotonic()
        with self._listing.held(address):
            kept = self._kept(address)
            if kept is not None and (not refresh or self._begun.get(address, -math.inf) >= came):
                return kept
            begun = time.monotonic()
            manifest = build_manifest(address, settings=self._settings)
            self._note(address, begun)
            if kept is not None and manifest.digest == kept.digest:
                return kept
            self._write(address, manifest)
        log.info("registered %s: %d samples, digest %s", address, len(manifest), manifest.digest[:12])
        return self._remember(manifest)

    def manifest(self, digest: str, tenant: Tenant) -> Manifest:
        """The manifest with this digest; UnknownDatasetError if it is not kept, ForbiddenError if not this tenant's."""
        with self._lock:
            manifest = self._manifests.get(digest)
            if manifest is not None:
                self._manifests.move_to_end(digest)
        if manifest is None:
            manifest = self._read(digest)
        else:
            self._touch(digest)
        if manifest is None:
            raise UnknownDatasetError(
                f"this server holds no dataset {digest[:12]}.... Register its URI again (POST /v1/datasets)."
            )
        self._check_root(manifest.uri, tenant)
        return manifest

    def store(self, manifest: Manifest) -> ObjectStore:
        """The object store of a manifest; one per root, shared by all requests."""
        with self._lock:
            store = self._stores.get(manifest.uri)
            if store is None:
                store = self._stores[manifest.uri] = open_store(manifest.uri, self._settings)
            self._stores.move_to_end(manifest.uri)
            if len(self._stores) > STORES_KEPT:
                self._stores.popitem(last=False)[1].close()
            return store

    def close(self) -> None:
        """Closes the connections to the object stores."""
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()

    @staticmethod
    def _check_root(uri: str, tenant: Tenant) -> None:
        if uri not in tenant.roots:
            raise ForbiddenError(f"tenant {tenant.name!r} may not read {uri}: it is below none of its roots.")

    def _note(self, address: str, begun: float) -> None:
        with self._lock:
            _put(self._begun, address, begun)

    def _write(self, address: str, manifest: Manifest) -> None:
        """Keeps it over restarts. A full disk costs that, not the dataset."""
        pointer = {"uri": address, "digest": manifest.digest}
        try:
            self._make_room()
            write_whole(self._path(manifest.digest), manifest.to_bytes())
            write_whole(self._pointer(address), json.dumps(pointer).encode())
        except OSError as error:
            log.warning("the manifest of %s is kept in memory only: %s", address, error)
            with self._lock:
                _put(self._unwritten, address, manifest.digest)
        else:
            with self._lock:
                self._unwritten.pop(address, None)

    def _make_room(self) -> None:
        kept = []
        for path in self._folder.glob("*.arrow"):
            with suppress(FileNotFoundError):
                status = path.stat()
                kept.append((status.st_mtime, status.st_size, path))
        over = sum(size for _, size, _ in kept) - MANIFEST_BYTES
        for used, size, path in sorted(kept):
            if over <= 0 or time.time() - used < IN_USE_SECONDS:
                return
            path.unlink(missing_ok=True)
            over -= size

    def _touch(self, digest: str) -> None:
        """Notes a use on disk, now and then."""
        now = time.monotonic()
        with self._lock:
            if now - self._touched.get(digest, -math.inf) < TOUCH_SECONDS:
                return
            _put(self._touched, digest, now)
        with suppress(OSError):
            os.utime(self._path(digest))

    def _kept(self, address: str) -> Manifest | None:
        with self._lock:
            unwritten = self._manifests.get(self._unwritten.get(address, ""))
        if unwritten is not None:
            return unwritten
        try:
            pointer = json.loads(self._pointer(address).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(pointer, dict) or pointer.get("uri") != address:
            return None
        digest = str(pointer.get("digest"))
        with self._lock:
            held = self._manifests.get(digest)
        if held is None:
            return self._read(digest)
        self._touch(digest)
        return held

    def _read(self, digest: str) -> Manifest | None:
        """The manifest from disk; None if it is not there, or is not what its name says."""
        try:
            manifest = Manifest.from_bytes(self._path(digest).read_bytes())
        except FileNotFoundError:
            return None
        except ManifestError as error:
            log.warning("dropping the kept manifest %s: %s", digest[:12], error)
            return None
        if manifest.digest != digest:
            log.warning("dropping the kept manifest %s: its content has digest %s", digest[:12], manifest.digest[:12])
            return None
        self._touch(digest)
        return self._remember(manifest)

    def _remember(self, manifest: Manifest) -> Manifest:
        with self._lock:
            self._manifests[manifest.digest] = manifest
            self._manifests.move_to_end(manifest.digest)
            while len(self._manifests) > 1 and sum(map(len, self._manifests.values())) > self._samples_kept:
                self._manifests.popitem(last=False)
        return manifest

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.arrow"

    def _pointer(self, address: str) -> Path:
        return self._folder / f"{sha256(address.encode('utf-8', 'surrogateescape')).hexdigest()}.uri.json"


def _put(notes: OrderedDict[str, T], name: str, value: T) -> None:
    """Notes a value, and forgets the oldest beyond some."""
    notes[name] = value
    notes.move_to_end(name)
    if len(notes) > LISTINGS_NOTED:
        notes.popitem(last=False)
