"""The stages that all requests share: threads, the device with its lanes, samples in flight, and their records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from hapi.data.decoding import loader_for
from storage_server.extraction.batching import Batches
from storage_server.extraction.copies import copies_for
from storage_server.extraction.executor import DeviceExecutor
from storage_server.extraction.guests import Guests
from storage_server.extraction.inflight import Flights
from storage_server.extraction.lanes import Lanes
from storage_server.extraction.loading import SampleLoader
from storage_server.extraction.patience import Patience
from storage_server.extraction.rows import Batch
from storage_server.extraction.running import Running
from storage_server.extraction.sizing import BatchPolicy
from storage_server.extraction.threads import WorkerThreads
from storage_server.features.beginnings import Beginnings, Kept
from storage_server.memory.workspaces import Workspaces
from storage_server.metrics import Metrics
from storage_server.scheduling.fair import SERVER
from storage_server.scheduling.holding import QueueBytes
from storage_server.scheduling.occupancy import Occupancy
from storage_server.scheduling.rates import LEAST_SECONDS, Rates
from storage_server.settings import ServerSettings
from storage_server.status import Board

T = TypeVar("T")
FRAMES_PART = 8
FEW_REQUESTS = 32
"""Frames are so small that those of as many requests as run, or of a few, four times each while they are encoded, take
at most half of the queues. Those that began while fewer ran keep larger ones."""
LEAST_READING = 8
"""Samples that each request has on its way at the least: fewer at a time make many small messages, each of which costs
as much as several samples."""
LEAST_FRAME_BYTES = 64 * 1024


@dataclass(frozen=True)
class Stages:
    """Their threads run until `close`."""

    loader: SampleLoader
    device: DeviceExecutor
    flights: Flights
    running: Running
    rates: Rates
    board: Board
    metrics: Metrics
    queue: QueueBytes
    patience: Patience
    occupancy: Occupancy
    finisher: WorkerThreads
    most_frame_bytes: int

    @classmethod
    def start(
        cls,
        settings: ServerSettings,
        policy: BatchPolicy,
        queue: QueueBytes,
        kept: Kept,
        metrics: Metrics,
        workspaces: Workspaces | None = None,
        rates: Rates | None = None,
    ) -> Stages:
        """Starts the threads. `kept` keeps finished rows; without `workspaces` no batch's memory is measured."""
        patience = Patience(settings.device, metrics, reserve=workspaces.reserve if workspaces is not None else None)
        rates, board, running = rates or Rates(), Board(), Running()
        finisher = WorkerThreads(1, "hapi-finish")
        finish = partial(finisher.submit, SERVER)
        batches = Batches(policy, rates, board, metrics, patience, finish, workspaces)
        lanes = Lanes(policy, rates, running.waiting, board.decided)
        occupancy = Occupancy()
        compute = partial(_occupied, occupancy, batches.run)
        guests = None
        if workspaces is not None:
            guests = Guests(partial(_occupied, occupancy, batches.run_between), workspaces.fit_together)
        device = DeviceExecutor(lanes, compute, settings.device, settings.threads, board.spent, guests)
        running.on_change = device.requests_changed
        large = queue.total_bytes
        ready = copies_for(settings.device).lay_ready
        load = loader_for(settings.workers, settings.device)
        loader = SampleLoader(settings.read_threads, settings.workers, metrics, patience, large, occupancy, ready, load)
        flights = Flights(loader, device, kept, Beginnings(kept, rates, loader), metrics)
        return cls(
            loader=loader,
            device=device,
            flights=flights,
            running=running,
            rates=rates,
            board=board,
            metrics=metrics,
            queue=queue,
            patience=patience,
            occupancy=occupancy,
            finisher=finisher,
            most_frame_bytes=settings.frame_bytes,
        )

    @property
    def reading_ahead(self) -> int:
        """Samples that each running request may have on its way for the readers' sake: two for each reader in all."""
        return max(LEAST_READING, 2 * self.loader.read_threads // max(1, self.running.different))

    @property
    def fetching_ahead(self) -> int:
        """Samples that each may have on its way besides, where processes fetch several at a time: their turns."""
        return self.loader.fetching_ahead // max(1, self.running.different)

    @property
    def frame_bytes(self) -> int:
        """Of the frames of one more request."""
        part = self.queue.total_bytes // (FRAMES_PART * max(FEW_REQUESTS, len(self.running) + 1))
        return min(self.most_frame_bytes, max(LEAST_FRAME_BYTES, part))

    def sample_seconds(self, key: tuple[str, ...] | None) -> float:
        """Predicted seconds of one sample for the prefix with this key, in the stage that is the narrowest for it.

        None: it is only read.
        """
        reading, decoding, sending = (
            threads.seconds.value / threads.count
            for threads in (self.loader.readers, self.loader.decoders, self.loader.senders)
        )
        return max(LEAST_SECONDS, sending) if key is None else max(reading, decoding, self.rates.seconds(key))

    def backlog_seconds(self) -> float:
        """Predicted seconds of all that the running requests still want."""
        return self.running.backlog_seconds(self.sample_seconds)

    def close(self) -> None:
        """Ends the threads; requests must have ended before."""
        self.loader.close()
        self.device.close()
        self.finisher.close()


def _occupied(occupancy: Occupancy, run: Callable[[Batch], T], batch: Batch) -> T:
    """A batch for the flows that its rows are for, each its part."""
    with occupancy.working(batch.parts):
        return run(batch)
