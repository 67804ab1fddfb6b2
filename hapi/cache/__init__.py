"""Features that were computed once are kept: their keys, and the tiers that keep them."""

from __future__ import annotations

from hapi.cache.disk import DiskCache
from hapi.cache.keys import FeatureKeys
from hapi.cache.memory import MemoryCache
from hapi.cache.tiers import FeatureCache

__all__ = ["DiskCache", "FeatureCache", "FeatureKeys", "MemoryCache"]
