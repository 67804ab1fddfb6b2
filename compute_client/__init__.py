"""The compute tier: a data loader that yields finished backbone features, and what trains on them."""

from compute_client.loader import DataLoader
from compute_client.prepare import prepare

__all__ = ["DataLoader", "prepare"]
