"""The feature cache as the settings say: memory, disk, and a bucket that several servers share."""

from __future__ import annotations

from hapi.cache import BucketCache, DiskCache, FeatureCache, MemoryCache
from hapi.data import open_store
from hapi.errors import InputError
from hapi.settings import StoreSettings
from storage_server.access.roots import Roots, canonical
from storage_server.settings import ServerSettings

ATTEMPTS, CONNECT_SECONDS, READ_SECONDS = 2, 2.0, 10.0
"""A bucket of features is not waited for as one of photographs is: what it does not give soon is computed."""


def open_features(settings: ServerSettings, memory_bytes: int, stores: StoreSettings, roots: Roots) -> FeatureCache:
    """InputError for an address that is none, or at which tenants could read."""
    disk_bytes = settings.feature_disk_bytes
    disk = DiskCache(settings.cache_dir / "features", disk_bytes) if disk_bytes else None
    bucket = None
    if settings.cache_uri is not None:
        try:
            uri = canonical(settings.cache_uri, follow_links=stores.follow_links)
        except InputError as error:
            raise InputError(f"--cache-uri: {error}") from None
        if uri in roots or any(root in Roots([uri]) for root in roots.uris):
            raise InputError(
                f"feature cache {uri}: it and a root lie within each other, so that features would be taken for data "
                "and read by whoever may read that. Give --cache-uri a prefix of its own."
            )
        patience = {"attempts": ATTEMPTS, "connect_timeout_seconds": CONNECT_SECONDS}
        hasty = stores.model_copy(update={**patience, "read_timeout_seconds": READ_SECONDS})
        bucket = BucketCache(open_store(uri, hasty), settings.cache_uri_bytes)
    return FeatureCache(MemoryCache(memory_bytes), disk, bucket)
