"""One extract request on its way: read -> decode and transform -> batch -> prefix -> encode -> stream.

The request is one actor: a generator that a thread of its own drives, and a mailbox into which readers, decoders and
the device put what they finished. What is between reading and sending is bounded by one number of bytes, of which each
running request has an equal share: a sample is charged for its object, its input tensor and its features when its
reading is ordered, and the charge ends when its row is encoded. So the queues between the stages need no bounds of
their own, nothing can deadlock on them, and a caller that reads slowly simply stops the ordering.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from hapi.cancel import Cancel
from hapi.errors import InputError
from storage_server.extraction.batching import BatchSizer, Piece, run_batch
from storage_server.extraction.engine import Prefix
from storage_server.extraction.executor import DeviceExecutor, Outcome, Task
from storage_server.extraction.frames import FrameWriter
from storage_server.extraction.loading import Loaded, SampleLoader, Source
from storage_server.memory.budget import QueueBudget
from storage_server.metrics import Metrics

BATCHES_ON_DEVICE = 2
"""Per request, one that runs and one that waits: the device is never idle between them."""
BATCHES_AHEAD = 3
"""Samples in flight, in batches: two on the device, one being filled."""
FILL_SECONDS = 0.02
"""How long rows wait for others to share a frame with."""


@dataclass(frozen=True)
class Job:
    """What one request asks for, with every name resolved. Without a prefix the stored objects are shipped."""

    source: Source
    indices: Sequence[int]
    prefix: Prefix | None
    codec: str = "float32"
    compression: str = "none"


@dataclass(frozen=True)
class Stages:
    """What all requests share."""

    loader: SampleLoader
    device: DeviceExecutor
    sizer: BatchSizer
    metrics: Metrics
    queue: QueueBudget
    frame_bytes: int


@dataclass(frozen=True)
class _Computed:
    indices: list[int]
    outcome: Outcome[list[Piece]]


class Extraction:
    """Runs a job. `chunks()` yields the bytes of the answer; it is to be driven by one thread at a time.

    It ends early with CancelledWork when `cancel` is set, with StoreUnavailableError, MemoryBudgetError or
    InputError when the request as a whole cannot be done; rows sent until then are whole and valid.
    """

    def __init__(self, job: Job, stages: Stages, cancel: Cancel | None = None) -> None:
        self.cancel = cancel or Cancel()
        self._job = job
        self._stages = stages
        cut = job.prefix.cut if job.prefix else None
        self._frames = FrameWriter(job.source.manifest, cut, job.codec, job.compression, stages.frame_bytes)
        self._pending = deque(job.indices)
        self._mailbox: queue.SimpleQueue[Loaded | _Computed | None] = queue.SimpleQueue()
        self._ready: list[Loaded] = []
        self._loading = 0
        self._on_device = 0
        self._unsent = len(job.indices)
        self._held = 0  # bytes of the queue budget
        self._size = self._batch_size()

    def chunks(self) -> Generator[bytes, None, None]:
        """The answer in pieces of about a frame; smaller ones when the next rows are not there yet."""
        self._stages.queue.join()
        try:
            with self.cancel.calling(lambda: self._mailbox.put(None)):
                while self._unsent:
                    self._accept_what_came()
                    self._dispatch()
                    self._order()
                    if self._should_send():
                        yield self._frame()
        finally:
            self.cancel.set("the answer has ended")  # whatever ended it, nothing of it may go on costing
            self._stages.queue.leave(self._held)
            self._ready.clear()

    def _accept_what_came(self) -> None:
        while not self._mailbox.empty():
            self._accept(self._mailbox.get())

    def _should_send(self) -> bool:
        """Whether to send now. Waits for the next message otherwise: for long if there is nothing to send yet."""
        if self._frames.is_full:
            return True
        in_flight = self._loading + self._on_device + len(self._ready)
        if self._frames.has_rows and not in_flight:
            return True
        try:
            self._accept(self._mailbox.get(timeout=FILL_SECONDS if self._frames.has_rows else None))
        except queue.Empty:
            return True
        return False

    def _frame(self) -> bytes:
        """About a frame of rows; the end marker follows the last ones."""
        with self._stages.metrics.stage("encode"):
            data, indices = self._frames.take()
        self._done(indices)
        if not self._unsent:
            data += self._frames.end()
        self._stages.metrics.sent_bytes.inc(len(data))
        return data

    def _order(self) -> None:
        """Orders samples to be read while the queues have room; always one when it has none."""
        ahead = max(2 * self._stages.loader.read_threads, BATCHES_AHEAD * self._size)
        while self._pending:
            self.cancel.check()
            cost = self._cost(self._pending[0])
            in_flight = self._unsent - len(self._pending)
            if in_flight >= ahead or not self._stages.queue.take(cost, self._held):
                return
            self._held += cost
            self._loading += 1
            index = self._pending.popleft()
            self._stages.loader.load(self._job.source, index, self.cancel, self._mailbox.put)

    def _dispatch(self) -> None:
        """Sends full batches to the device, and a smaller one when no more samples are on their way."""
        if self._job.prefix is None or not self._ready:
            return
        while self._ready and self._on_device < BATCHES_ON_DEVICE:
            if len(self._ready) < self._size and self._loading:
                return
            rows, self._ready = self._ready[: self._size], self._ready[self._size :]
            with self._stages.metrics.stage("batch"):
                batch = torch.stack([row.tensor for row in rows if row.tensor is not None])
            self._on_device += 1
            work = partial(run_batch, self._job.prefix, batch, self._stages.sizer, self._stages.metrics, self.cancel)
            deliver = partial(self._computed, [row.index for row in rows])
            self._stages.device.submit(Task(work, deliver, self.cancel))
            self._size = self._batch_size()

    def _computed(self, indices: list[int], outcome: Outcome[list[Piece]]) -> None:
        self._mailbox.put(_Computed(indices, outcome))

    def _accept(self, message: Loaded | _Computed | None) -> None:
        self.cancel.check()
        if isinstance(message, Loaded):
            self._loading -= 1
            self._accept_loaded(message)
        elif isinstance(message, _Computed):
            self._on_device -= 1
            for piece in message.outcome.get():
                indices = message.indices[piece.start : piece.start + len(piece.tensors[0])]
                self._frames.add_features(indices, piece.tensors)
            self._stages.metrics.rows("ok", len(message.indices))

    def _accept_loaded(self, loaded: Loaded) -> None:
        if loaded.error is not None:
            raise loaded.error
        if loaded.failed is not None:
            self._frames.add_failed(loaded.index, loaded.failed)
            self._stages.metrics.rows("failed", 1)
        elif loaded.data is not None:
            self._frames.add_object(loaded.index, loaded.data)
            self._stages.metrics.rows("ok", 1)
        else:
            self._check_input(loaded)
            self._ready.append(loaded)

    def _check_input(self, loaded: Loaded) -> None:
        prefix, tensor = self._job.prefix, loaded.tensor
        assert prefix is not None
        assert tensor is not None
        if (tuple(tensor.shape), tensor.dtype) != (prefix.input.shape, prefix.input.dtype):
            key = self._job.source.manifest.sample(loaded.index).key
            raise InputError(
                f"the transform makes {tuple(tensor.shape)} {tensor.dtype} of {key}, but {prefix.model} takes "
                f"{prefix.input.shape} {prefix.input.dtype} per sample. Use the transform that belongs to the model."
            )

    def _done(self, indices: Sequence[int]) -> None:
        """These rows are encoded: their charge ends."""
        self._unsent -= len(indices)
        cost = sum(self._cost(index) for index in indices)
        self._held -= cost
        self._stages.queue.give(cost)

    def _batch_size(self) -> int:
        """What fits the memory, but no more than lets several batches be on their way within the queues' bytes."""
        if self._job.prefix is None:
            return 1
        fits = self._stages.queue.share_bytes // (BATCHES_AHEAD * self._cost(self._job.indices[0]))
        return max(1, min(self._stages.sizer.size(self._job.prefix), fits))

    def _cost(self, index: int) -> int:
        """Most bytes that a sample takes between reading and sending; the batch is a second copy of its inputs."""
        stored = self._job.source.manifest.sample(index).length
        prefix = self._job.prefix
        return max(1, stored + (2 * prefix.input.bytes + prefix.cut.bytes_per_sample if prefix else 0))
