"""Finished features that a server keeps: where, which cuts there are, and what is begun from them."""
