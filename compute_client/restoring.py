"""Tells a server what it must know of a loader's job: the model and the dataset."""

from __future__ import annotations

import threading
from collections.abc import Callable

from compute_client.dataset import Dataset
from hapi.errors import HapiError, ManifestError, UnknownDatasetError
from hapi.model import Graph
from profiler.remote import ServerClient


class Teacher:
    """Gives a server the model and the dataset, at first and after it forgot them."""

    def __init__(self, server: ServerClient, dataset: Dataset, graph: Callable[[], Graph]) -> None:
        self._server, self._dataset, self._graph = server, dataset, graph

    def upload(self) -> None:
        """Sends the model unless the server holds it."""
        self._server.ensure_model(self._graph())

    def restore(self, error: HapiError) -> None:
        """Mends what the server said that it does not know. ManifestError if the dataset is not what it was."""
        if not isinstance(error, UnknownDatasetError):
            self.upload()
            return
        dataset = self._dataset
        summary = self._server.register(dataset.uri)
        if summary.digest != dataset.digest:
            raise ManifestError(
                f"{dataset.uri}: the files there changed while they were read ({dataset.samples} samples "
                f"before, {summary.samples} now). Start again with a new loader."
            )


class Restorer:
    """Tells a server that was restarted with an empty cache what it must know, once for all threads."""

    def __init__(self, restore: Callable[[HapiError], None]) -> None:
        self._restore = restore
        self._lock = threading.Lock()
        self.round = 0

    def restore(self, error: HapiError, seen_round: int) -> None:
        """Restores, unless that happened since `seen_round`."""
        with self._lock:
            if self.round == seen_round:
                self._restore(error)
                self.round += 1
