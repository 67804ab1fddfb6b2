"""The compute tier: a data loader that yields finished backbone features, and what trains on them."""

from compute_client.loader import DataLoader

__all__ = ["DataLoader"]
