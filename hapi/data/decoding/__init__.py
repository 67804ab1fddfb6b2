"""Decoding in processes, for who keeps a GPU busy with more samples at once than the threads of one process decode.

Threads hold Python's lock for a fifth of the time that a photograph takes, and whoever starts a network's operations on
a GPU waits for it, too. So `processes` gives samples to processes, which are forks of one, the fork server, that has
imported all that is needed; what they do is in `served`. The fork server is started afresh, by the name of its module,
so nothing of the caller comes along; what goes to and fro is in `messages`: JSON, bytes, and memory that both have.
They end with whoever started them, however that ends.
"""

from hapi.data.decoding.processes import MANY, Fetched, Load, Processes, get_ready, loader_for

__all__ = ["MANY", "Fetched", "Load", "Processes", "get_ready", "loader_for"]
