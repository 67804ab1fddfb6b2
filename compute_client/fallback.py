"""Going on without a server that stays away: its samples are read from the store and computed here."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from compute_client.dataset import Dataset, resolve
from compute_client.source import SpanSource, Stage
from compute_client.spans import Span
from compute_client.stats import LoaderStats
from hapi.cancel import Cancel
from hapi.data import read_sample
from hapi.errors import HapiError, InputError, ServerUnreachableError, TruncatedStreamError
from hapi.plan import INPUT

log = logging.getLogger(__name__)

GONE = (ServerUnreachableError, TruncatedStreamError)
"""What is raised when patience with a server is over that does not answer, or breaks every answer off."""
Where = bool | str | os.PathLike[str]
"""False: no fallback. True: the data lie at the same address for this process. Or the address where they lie for it."""


class Fallback:
    """What a loader does when its server is gone: once, and for good. Thread-safe."""

    def __init__(self, dataset: Dataset, stats: LoaderStats, prepare: Callable[[str], None]) -> None:
        """`dataset` is the same list of samples as this process reads it. `prepare(reason)` changes the plan."""
        self._dataset, self._stats, self._prepare = dataset, stats, prepare
        self._lock = threading.Lock()
        self.has_happened = False

    def happen(self, error: HapiError) -> None:
        """The server is given up, unless that was done before."""
        with self._lock:
            if self.has_happened:
                return
            reason = f"the server is given up, and everything is read and computed here from now on: {error}"
            log.warning("%s", reason)
            self._prepare(reason)
            self.has_happened = True

    def source(self, remote: SpanSource, local: Callable[[Dataset], SpanSource]) -> SpanSource:
        """`remote`, until it is given up; then what `local` makes of the dataset, a source at cut `input`."""
        return FallbackSource(self, remote, partial(local, self._dataset), self._stats)


class FallbackSource:
    """A SpanSource that asks a server, and reads here what that does not answer any more.

    A span is had whole from one of both: of what had arrived of it when the server was given up nothing is used.
    """

    def __init__(
        self, fallback: Fallback, remote: SpanSource, local: Callable[[], SpanSource], stats: LoaderStats
    ) -> None:
        self._fallback, self._remote, self._make, self._stats = fallback, remote, local, stats
        self._lock = threading.Lock()
        self._local: SpanSource | None = None

    def fetch(self, span: Span, cancel: Cancel) -> Stage:
        if not self._fallback.has_happened:
            try:
                return self._remote.fetch(span, cancel)
            except GONE as error:
                cancel.check()
                self._fallback.happen(error)
        stage = self._here().fetch(replace(span, cut=INPUT), cancel)
        self._stats.add(fallback_samples=len(stage.rows))
        return replace(stage, cut=INPUT)

    def close(self) -> None:
        self._remote.close()
        with self._lock:
            if self._local is not None:
                self._local.close()

    def _here(self) -> SpanSource:
        with self._lock:
            if self._local is None:
                self._local = self._make()
            return self._local


def readable(data: Any, where: Where, dataset: Dataset) -> Dataset:
    """The dataset as this process reads it; InputError, before any sample is asked for, if it cannot or differs."""
    try:
        here, _ = resolve(data if where is True else where, None)
        assert here.manifest is not None
        with closing(here.open_store()) as store:
            read_sample(store, here.manifest.sample(0))
    except HapiError as error:
        raise InputError(
            f"fallback: this process cannot read the data itself, as it must without the server: {error} "
            "Give it access, name another address of the same files (fallback=ADDRESS), or leave fallback out."
        ) from error
    if here.order_digest != dataset.order_digest:
        raise InputError(
            f"fallback: the server lists {dataset.samples} samples, this process {len(here)} at {here.uri}, or names "
            "or labels differ. Bring both to the same files, or leave fallback out."
        )
    return here
