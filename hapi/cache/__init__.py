"""Features that were computed once are kept: their keys, and the tiers that keep them."""

from __future__ import annotations

from hapi.cache.keys import FeatureKeys
from hapi.cache.memory import MemoryCache

__all__ = ["FeatureKeys", "MemoryCache"]
