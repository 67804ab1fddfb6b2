"""Features that were computed once are kept: their keys, and the tiers that keep them."""

from __future__ import annotations

from hapi.cache.bucket import BucketCache
from hapi.cache.disk import DiskCache
from hapi.cache.keys import KEY_BYTES, FeatureKeys
from hapi.cache.memory import MemoryCache
from hapi.cache.tiers import FeatureCache

__all__ = ["KEY_BYTES", "BucketCache", "DiskCache", "FeatureCache", "FeatureKeys", "MemoryCache"]
