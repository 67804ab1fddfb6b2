"""One extract request on its way: read -> decode and transform -> batch -> prefix -> encode -> stream.

The request is one actor: a generator that a thread of its own drives, and a mailbox into which readers, decoders and
the device put what they finished. What is between reading and sending is bounded by one number of bytes, of which each
running request has a fair part: a sample is charged for its object, its input tensor and its features when it is
ordered, for its features only once it is done (or if others brought it about), and for nothing once its row is encoded.
What encoding takes is charged to the request from its beginning to its end. So the queues between the stages need no
bounds of their own, nothing can deadlock on them, and a caller that reads slowly simply stops the ordering.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hapi.cache import FeatureKeys
from hapi.cancel import Cancel
from hapi.data import Sample
from hapi.units import format_bytes
from storage_server.extraction.engine import Prefix
from storage_server.extraction.fitting import queued_bytes
from storage_server.extraction.frames import FrameWriter
from storage_server.extraction.loading import Source
from storage_server.extraction.mail import Arrival, Ticket
from storage_server.extraction.sizing import BATCHES_AHEAD, Waiting
from storage_server.extraction.stages import Stages
from storage_server.extraction.tally import Tally
from storage_server.features.starts import Start
from storage_server.scheduling.deposits import Deposit
from storage_server.scheduling.fair import SERVER, Flow
from storage_server.scheduling.holding import Holding

FILL_SECONDS = 0.02
"""How long rows wait for others to share a frame with."""


@dataclass(frozen=True)
class Job:
    """What one request asks for, with every name resolved. Without a prefix the stored objects are shipped.

    `flow` is whose request it is; `keys` name its features, None where none can be shared; `starts` are shallower cuts
    from whose kept features they can be made.
    """

    source: Source
    indices: Sequence[int]
    prefix: Prefix | None
    codec: str = "float32"
    compression: str = "none"
    flow: Flow = SERVER
    keys: FeatureKeys | None = None
    starts: tuple[Start, ...] = ()


class Extraction:
    """Runs a job. `chunks()` yields the bytes of the answer; it is to be driven by one thread at a time.

    It ends early with CancelledWork when `cancel` is set, with StoreUnavailableError, MemoryBudgetError or
    InputError when the request as a whole cannot be done; rows sent until then are whole and valid.
    """

    def __init__(
        self, job: Job, stages: Stages, cancel: Cancel | None = None, let_in: Callable[[], object] = lambda: None
    ) -> None:
        """`let_in` is called once the queues have room for it."""
        self.cancel = cancel or Cancel()
        self.job = job
        self._let_in = let_in
        self._stages = stages
        cut = job.prefix.cut if job.prefix else None
        samples = dict(zip(job.indices, job.source.manifest.samples(job.indices), strict=True))
        labels = {index: sample.label for index, sample in samples.items()}
        self._frames = FrameWriter(labels, cut, job.codec, job.compression, stages.frame_bytes)
        self._costs = self._cost_of_each(samples)
        self._keys = job.keys.of_samples(samples) if job.keys is not None else {}
        self._row_bytes = cut.bytes_per_sample if cut else 0
        self._pending: deque[Ticket] = deque()
        self._mailbox: queue.SimpleQueue[list[Arrival]] = queue.SimpleQueue()
        self._deliver = self._mailbox.put
        self._tickets: dict[int, Ticket] = {}
        self._held: dict[int, int] = {}
        self._unsent = len(job.indices)
        self._tally = Tally(stages.occupancy, job.flow, partial(stages.running.fair_share, job.flow))
        self._holding: Holding | None = None
        self._encode_bytes = 0

    @property
    def samples_left(self) -> int:
        """Samples that are not done."""
        return len(self._pending) + len(self._tickets)

    def waiting(self) -> Waiting | None:
        """What batch sizes depend on; None for stored objects."""
        if self.job.prefix is None or self._holding is None:
            return None
        sample_bytes = max(1, (self._holding.want - self._encode_bytes) // len(self._costs))
        share_bytes = max(0, self._holding.share_bytes - self._encode_bytes)
        return Waiting(self.job.flow.name, self.job.prefix, len(self._costs), sample_bytes, share_bytes)

    def chunks(self) -> Generator[bytes, None, None]:
        """The answer in pieces of about a frame; smaller ones when the next rows are not there yet."""
        total = self._stages.queue.total_bytes
        fitting = [cost for cost in self._costs.values() if cost <= total]
        largest, want = max(fitting, default=0), sum(fitting)
        objects = largest if self.job.prefix is None else 0
        # a single row that is so large that encoding it does not fit beside it has the queues to itself
        encode = self._encode_bytes = min(self._frames.encode_bytes(objects), total - largest)
        try:
            with (
                self._stages.queue.joined(self.job.flow, largest + encode, want + encode, self.cancel) as self._holding,
                self._stages.running.one(self),
                self.cancel.calling(lambda: self._deliver([])),
            ):
                self._let_in()
                self._holding.take(encode)  # within its least: it always may
                self._pending.extend(map(self._ticket, self.job.indices))
                try:
                    while self._unsent:
                        self._accept_what_came()
                        self._order()
                        if self._should_send():
                            yield self._frame()
                    yield self._end()
                finally:
                    self.cancel.set("the answer has ended")
                    for ticket in self._tickets.values():
                        self._stages.flights.leave(ticket)  # while it still holds what others may take over
        finally:
            self.cancel.set("the answer has ended")  # whatever ended it, nothing of it may go on costing

    def _ticket(self, index: int) -> Ticket:
        assert self._holding is not None
        whole = self._costs[index]
        deposit = Deposit(self._holding, whole, self._row_bytes or whole)
        return Ticket(index, self.job.flow, self.cancel, self._deliver, deposit)

    def _accept_what_came(self) -> None:
        while not self._mailbox.empty():
            self._accept(self._mailbox.get())

    def _should_send(self) -> bool:
        """Whether to send now. Waits for the next message otherwise: for long if there is nothing to send yet."""
        if self._frames.is_full or (self._frames.has_rows and not self._tickets):
            return True
        try:
            self._accept(self._mailbox.get(timeout=FILL_SECONDS if self._frames.has_rows else None))
        except queue.Empty:
            return True
        return False

    def _frame(self) -> bytes:
        """About a frame of rows, less where memory is short."""
        work = self._tally.take()
        with self._stages.metrics.stage("encode"), self._tally.encoding():
            data, indices = self._stages.patience(
                "encoding features", lambda attempt: self._frames.take(1 << attempt, work), "encode", self._is_wanted
            )
        self._unsent -= len(indices)
        assert self._holding is not None
        self._holding.give(sum(map(self._held.pop, indices)))
        self._stages.metrics.sent_bytes.inc(len(data))
        return data

    def _end(self) -> bytes:
        """The end marker: a piece of its own, as adding it to the last frame would copy that where memory is short."""
        data = self._frames.end()
        self._stages.metrics.sent_bytes.inc(len(data))
        return data

    def _is_wanted(self) -> bool:
        return not self.cancel.is_set

    def _order(self) -> None:
        """Orders samples while the queues have room; always one when it has none."""
        if not self._pending:
            return
        most = self._ahead() - (self._unsent - len(self._pending))  # deciding on a batch looks at this machine's memory
        tickets: list[Ticket] = []
        for _ in range(min(most, len(self._pending))):
            ticket = self._pending.popleft()
            cost = self._costs[ticket.index]
            if cost > self._stages.queue.total_bytes:
                self._refuse(ticket.index, cost)
            else:
                tickets.append(ticket)
        if tickets:
            self._begin(tickets)

    def _ahead(self) -> int:
        """Samples that may be on their way at once: enough for batches, and for all readers with those of others.

        Bytes that are taken are given back only when rows are done: the first of many requests must not take them all.
        """
        prefix, part = self.job.prefix, self._stages.reading_ahead
        if prefix is None or self._unsent <= part:  # all that is left: no batch needs to be decided
            return part
        waiting = BATCHES_AHEAD * self._stages.device.decision(prefix).samples
        return max(part, waiting + self._stages.fetching_ahead)

    def _begin(self, tickets: Sequence[Ticket]) -> None:
        self.cancel.check()
        job = self.job
        keys = [self._keys.get(ticket.index) for ticket in tickets]
        arrivals, left = self._stages.flights.join(tickets, job.source, job.prefix, keys, job.starts)
        self._pending.extendleft(reversed(left))
        waits = set(left)
        self._tickets.update((ticket.index, ticket) for ticket in tickets if ticket not in waits)
        self._accept(arrivals)

    def _refuse(self, index: int, cost: int) -> None:
        """One sample that is more than all queues together fails alone; nothing is held for it."""
        self._held[index] = 0
        self._frames.add_failed(
            index,
            f"{self.job.source.manifest.sample(index).key} takes {format_bytes(cost)} between reading and sending, and "
            f"this server's queues have {format_bytes(self._stages.queue.total_bytes)}. Raise HAPI_SERVER_QUEUE_BYTES.",
        )
        self._stages.board.arrived(self.job.flow, failed=1)
        self._stages.metrics.rows("failed", 1)

    def _accept(self, messages: Sequence[Arrival]) -> None:
        """What came, all at once: of many samples mostly, those of a batch."""
        self.cancel.check()
        if not messages:
            return
        assert self._holding is not None
        failed = shared = over = 0
        waits: list[float] = []
        for message in messages:
            deposit = self._tickets.pop(message.index).deposit
            over += deposit.landed()
            self._held[message.index] = deposit.held
            if message.error is not None:
                raise message.error
            if message.failed is not None:
                failed += 1
                self._frames.add_failed(message.index, message.failed)
            elif message.data is not None:
                self._frames.add_object(message.index, message.data, message.window)
            else:
                assert message.tensors is not None
                self._frames.add_features(message.index, message.tensors)
            shared += message.is_shared
            if message.waited is not None:
                waits.append(message.waited)
        self._holding.give(over)
        self._tally.arrived(messages)
        done = len(messages) - failed
        self._stages.board.arrived(self.job.flow, done=done, failed=failed, shared=shared, waits=waits)
        for outcome, count in (("ok", done), ("failed", failed)):
            if count:
                self._stages.metrics.rows(outcome, count)

    def _cost_of_each(self, samples: Mapping[int, Sample]) -> dict[int, int]:
        """Most bytes that each sample takes between reading and sending."""
        job = self.job
        computed = queued_bytes(job.prefix) if job.prefix else 0
        continued = max((queued_bytes(start.part) for start in job.starts), default=0)
        return {index: max(1, sample.length + computed, continued) for index, sample in samples.items()}
