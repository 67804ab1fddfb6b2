"""Epochs that nobody sees the end of, watched until their pace is steady: what a plan takes with all tiers at work."""

from compute_client.streams.contending import contending
from compute_client.streams.endless import Endless
from compute_client.streams.pace import Pace
from compute_client.streams.streams import Streams

__all__ = ["Endless", "Pace", "Streams", "contending"]
