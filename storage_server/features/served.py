"""Which cuts of a model were served here lately: features of these may be kept."""

from __future__ import annotations

from storage_server.scheduling.remembered import Remembered

MOST = 8
"""Cuts of one model that are remembered; looking for a sample at each takes some microseconds."""


class ServedCuts:
    """Cut names by model digest, over restarts. Thread-safe; of two that are noted at once, one may be forgotten."""

    def __init__(self, remembered: Remembered) -> None:
        self._remembered = remembered

    def note(self, digest: str, cut: str) -> None:
        """Features of this cut are about to be computed."""
        known = self.of(digest)
        if cut not in known:
            self._remembered.put(_name(digest), [cut, *known][:MOST])

    def of(self, digest: str) -> list[str]:
        """The cuts, the newest first; from a file that anybody may have edited."""
        said = self._remembered.get(_name(digest))
        return [cut for cut in said if isinstance(cut, str)][:MOST] if isinstance(said, list) else []


def _name(digest: str) -> str:
    return f"cuts/{digest}"
