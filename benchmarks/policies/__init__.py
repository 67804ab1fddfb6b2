"""Policies of batch sizes that ours is compared with: fixed batches, and the published system's linear program."""
