"""Samples on their way, each once, for all who want it.

A flight is one sample on its way through reading, decoding and the device. Requests hold tickets for it. The first
brings it about; whoever asks for the same (an equal feature key) while it is under way gets a ticket, too, and the work
then stands in the lines of both tenants: whichever's turn comes first, it is done for all. A flight belongs to nobody:
it goes on as long as one ticket is left, so that no follower has to begin anew when the first request goes away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch

from hapi.cancel import CancelledWork
from hapi.data.images import Window
from storage_server.extraction.engine import Prefix
from storage_server.extraction.executor import DeviceExecutor
from storage_server.extraction.flight import Flight, Stage
from storage_server.extraction.loading import SampleLoader, SampleTrouble, Source
from storage_server.extraction.mail import Arrival, Letter, Tensors, Ticket, post
from storage_server.extraction.patience import attempt
from storage_server.extraction.rows import Row
from storage_server.features.beginnings import Beginnings, Kept
from storage_server.features.starts import Start
from storage_server.metrics import Metrics
from storage_server.scheduling.fair import Flow

log = logging.getLogger(__name__)


class Flights:
    """The table of what is on its way. Thread-safe."""

    def __init__(
        self, loader: SampleLoader, device: DeviceExecutor, kept: Kept, beginnings: Beginnings, metrics: Metrics
    ) -> None:
        self._loader = loader
        self._device = device
        self._kept = kept
        self._beginnings = beginnings
        self._metrics = metrics
        self._by_key: dict[bytes, Flight] = {}
        self._to_fetch = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_key)

    def join(
        self,
        tickets: Sequence[Ticket],
        source: Source,
        prefix: Prefix | None,
        keys: Sequence[bytes | None],
        starts: Sequence[Start] = (),
    ) -> tuple[list[Arrival], list[Ticket]]:
        """Brings the samples about, or joins those who wait for them. What is kept near by is answered at once.

        Answers as well the tickets that are left, in order: from the first for which the queues had no room.
        Without a key (stored objects) nothing is shared. `starts` are shallower cuts that they may begin at.
        """
        waiting = list(zip(tickets, keys, strict=True))
        found: list[Arrival] = []
        left: list[Ticket] = []
        for is_last_look in (False, True):
            near: list[tuple[Ticket, bytes]] = []
            departed: list[Flight] = []
            with self._lock:
                for place, (ticket, key) in enumerate(waiting):
                    flight = self._by_key.get(key) if key is not None else None
                    is_near = flight is None and key is not None and not is_last_look and key in self._kept
                    if not ticket.deposit.take(is_first=flight is None and not is_near):
                        left = [ticket for ticket, _ in waiting[place:]] + left
                        break
                    if is_near and key is not None:
                        near.append((ticket, key))
                        continue
                    if flight is None:
                        flight = self._depart(ticket, source, prefix, key, starts)
                        departed.append(flight)
                    self._board(ticket, flight)
                self._expect(departed)
                self._begin(departed, source, prefix)
            waiting = []
            for ticket, near_key in near:
                tried = attempt(partial(self._kept.get, near_key))  # no memory for it: the other way has patience
                tensors = tried.get() if tried.has_value else None
                if tensors is None:
                    waiting.append((ticket, near_key))
                else:
                    found.append(Arrival(ticket.index, tensors, is_shared=True))
            if not waiting:
                break
        for ticket in left:
            ticket.deposit.give_back()  # of what was kept, and was gone when it was to be read
        return found, left

    def leave(self, ticket: Ticket) -> None:
        """The ticket's request no longer waits; what nobody waits for is given up."""
        with self._lock:
            flight = ticket.flight
            if flight is None or ticket not in flight.tickets:
                return
            del flight.tickets[ticket]
            flight.flows[ticket.flow] -= 1
            if not flight.flows[ticket.flow]:
                del flight.flows[ticket.flow]
                if flight.row is not None:
                    self._device.unshare(flight.row, ticket.flow)
            if not flight.tickets:
                self._end(flight)
            else:
                next(iter(flight.tickets)).deposit.take_over(ticket.deposit)

    def _depart(
        self, ticket: Ticket, source: Source, prefix: Prefix | None, key: bytes | None, starts: Sequence[Start]
    ) -> Flight:
        flight = Flight(source, ticket.index, prefix, key)
        if key is not None:
            self._by_key[key] = flight
            if prefix is not None:
                flight.beginning = self._beginnings.choose(ticket.index, prefix, key, starts)
        return flight

    def _expect(self, flights: Sequence[Flight], change: int = 1) -> None:
        """The device is told that their rows are on their way; with -1 that they are not, after all."""
        lanes = [flight.lane for flight in flights]
        known = {lane.key: lane for lane in lanes if lane is not None}
        for key, count in Counter(lane.key for lane in lanes if lane is not None).items():
            self._device.expect(known[key], count * change)

    def _board(self, ticket: Ticket, flight: Flight) -> None:
        """Adds the ticket, and puts work that waits for its turn into its flow's line as well."""
        is_known = ticket.flow in flight.flows
        ticket.flight = flight
        flight.tickets[ticket] = None
        flight.flows[ticket.flow] += 1
        if is_known:
            return
        if flight.threads is not None and flight.place is not None:
            flight.threads.share(flight.place, ticket.flow)
        elif flight.stage is Stage.READY and flight.row is not None:
            self._device.share(flight.row, ticket.flow)

    def _begin(self, flights: Sequence[Flight], source: Source, prefix: Prefix | None) -> None:
        """Lines up what one request has just asked for: several together where processes fetch them."""
        is_fetched = bool(flights) and prefix is not None and self._loader.fetches(source, prefix)
        together: list[Flight] = []
        for flight in flights:
            if is_fetched and flight.beginning is None:
                together.append(flight)
            else:
                self._line_up(flight)
        if not together:
            return
        assert prefix is not None
        self._to_fetch += len(together)
        threads = self._loader.decoders
        size = self._loader.together(self._to_fetch, prefix.input.bytes)
        for first in range(0, len(together), size):
            group = together[first : first + size]
            flow, *others = group[0].flows
            place = threads.submit(flow, partial(self._fetch, group), others, count=len(group))
            for flight in group:
                flight.threads, flight.place = threads, place

    def _line_up(self, flight: Flight) -> None:
        """Reading or decoding waits for its turn, in the lines of all who wait for it."""
        flow, *others = flight.flows
        if flight.stage is Stage.READ:
            flight.threads, work = self._loader.decoders, partial(self._decode, flight)
        else:
            flight.threads = self._loader.senders if flight.prefix is None else self._loader.readers
            work = partial(self._read, flight)
        flight.place = flight.threads.submit(flow, work, others)

    def _fetch(self, flights: Sequence[Flight]) -> bool:
        """On a decoder's thread: has a process read and decode them. What is not to be had so goes the usual way, on
        which it is told why."""
        with self._lock:
            self._to_fetch -= len(flights)
            flights = [flight for flight in flights if self._claimed(flight, Stage.ORDERED, Stage.DECODING)]
        if not flights:
            return False
        source, prefix = flights[0].source, flights[0].prefix
        assert prefix is not None
        try:
            with self._loader.occupancy.working(self._payers(flights)):
                fetched = self._loader.fetch(source, [flight.index for flight in flights], prefix)
        except Exception:
            log.exception("%d samples could not be fetched together, and are read one by one", len(flights))
            fetched = [None] * len(flights)
        with self._lock:
            rows: list[Row] = []
            for flight, one in zip(flights, fetched, strict=True):
                if not flight.tickets:
                    continue
                if one is None:
                    flight.stage = Stage.ORDERED
                    self._line_up(flight)
                    continue
                flight.read_seconds = one.read_seconds / self._loader.decode_threads
                flight.work_seconds = one.decode_seconds / self._loader.decode_threads
                rows.append(self._row(flight, prefix, one.tensor))
            self._device.submit(*rows)
        return True

    def _read(self, flight: Flight) -> bool:
        """On a reader's thread. False if there was nothing to do: nobody waits."""
        if not self._claim(flight, Stage.ORDERED, Stage.READING):
            return False
        began = time.perf_counter()
        try:
            if flight.beginning is not None and self._begin_with_kept(flight):
                return True
            started = time.perf_counter()
            data = self._loader.read(flight.source, flight.index, flight.is_wanted)
            self._beginnings.read_object(time.perf_counter() - started)
        except BaseException as error:
            post(self._land_failed(flight, error))
            return True
        flight.read_seconds = (time.perf_counter() - began) / self._loader.read_threads
        if flight.prefix is None:
            post(self._stored(flight, data))
            return True
        with self._lock:
            if flight.tickets:
                flight.data, flight.stage = data, Stage.READ
                self._line_up(flight)
        return True

    def _stored(self, flight: Flight, data: bytes) -> list[Letter]:
        """Lands a stored object, or of a picture the part that is wanted."""
        if flight.source.transform is None:
            return self._land(flight, data=data)
        began = time.perf_counter()
        try:
            with self._loader.occupancy.working(self._payers([flight])):
                data, window = self._loader.trim(flight.source, flight.index, data, flight.is_wanted)
        except BaseException as error:
            return self._land_failed(flight, error)
        flight.work_seconds = (time.perf_counter() - began) / self._loader.decode_threads
        return self._land(flight, data=data, window=window)

    def _begin_with_kept(self, flight: Flight) -> bool:
        """Lands it, or brings it to the device, from kept features; False if they are gone: it goes the whole way."""
        beginning = flight.beginning
        assert beginning is not None
        with self._metrics.stage("kept"):
            tried = attempt(lambda: self._beginnings.read(beginning))  # no memory for it: the other way has patience
        tensors = tried.get() if tried.has_value else None
        if tensors is None:
            with self._lock:
                if flight.tickets:
                    self._expect([flight], -1)
                    flight.beginning = None
                    self._expect([flight])
            return False
        if beginning.part is None:
            post(self._land(flight, tensors=tensors, is_kept=True))
            return True
        self._metrics.continued.inc()
        with self._lock:
            if flight.tickets:
                self._device.submit(self._row(flight, beginning.part, tensors[0]))
        return True

    def _row(self, flight: Flight, prefix: Prefix, tensor: torch.Tensor) -> Row:
        """For the device, for which the flight is ready with it."""
        flight.row = Row(prefix, tensor, set(flight.flows), flight.is_wanted, partial(self._computed, flight))
        flight.stage = Stage.READY
        return flight.row

    def _decode(self, flight: Flight) -> bool:
        """On a decoder's thread; see `_read`."""
        data = flight.data  # before it is claimed: whoever leaves as the last one takes it away
        if not self._claim(flight, Stage.READ, Stage.DECODING):
            return False
        flight.data = None
        assert data is not None
        assert flight.prefix is not None
        began = time.perf_counter()
        try:
            with self._loader.occupancy.working(self._payers([flight])):
                tensor = self._loader.decode(flight.source, flight.index, data, flight.prefix, flight.is_wanted)
        except BaseException as error:
            post(self._land_failed(flight, error))
            return True
        flight.work_seconds = (time.perf_counter() - began) / self._loader.decode_threads
        del data
        with self._lock:
            if flight.tickets:
                self._device.submit(self._row(flight, flight.prefix, tensor))
        return True

    def _payers(self, flights: Sequence[Flight]) -> dict[Flow, float]:
        """Each flow that waits for them, and its part of one of the threads that decode."""
        parts: Counter[Flow] = Counter()
        for flight in flights:
            flows = tuple(flight.flows)
            for flow in flows:
                parts[flow] += 1 / len(flows)  # type: ignore[assignment]  # counts may be fractions
        whole = len(flights) * self._loader.decode_threads
        return {flow: part / whole for flow, part in parts.items()}

    def _computed(self, flight: Flight, outcome: Tensors | BaseException) -> list[Letter]:
        """The row has left the device. Answers whom to tell, so that those of a whole batch can be told at once."""
        if isinstance(outcome, BaseException):
            return self._land_failed(flight, outcome)
        if flight.key is not None:
            # before it leaves the table: nobody finds it in neither; without memory to keep it, it is answered only
            attempt(partial(self._kept.put, flight.key, outcome))
        return self._land(flight, tensors=outcome)

    def _claim(self, flight: Flight, before: Stage, after: Stage) -> bool:
        with self._lock:
            return self._claimed(flight, before, after)

    def _claimed(self, flight: Flight, before: Stage, after: Stage) -> bool:
        """With the lock. Whether it is now in the hands of who asks."""
        if flight.stage is not before or not flight.tickets:
            return False
        flight.stage, flight.place, flight.threads = after, None, None
        return True

    def _land_failed(self, flight: Flight, error: BaseException) -> list[Letter]:
        if isinstance(error, CancelledWork):
            self._again_if_wanted(flight)
            return []
        if isinstance(error, SampleTrouble):
            return self._land(flight, failed=str(error))
        return self._land(flight, error=error)

    def _again_if_wanted(self, flight: Flight) -> None:
        """The work was given up because nobody waited; somebody who came just then has it done from the beginning."""
        with self._lock:
            if not flight.is_wanted():
                self._end(flight)
                return
            if flight.row is not None:
                self._expect([flight])
            flight.stage, flight.row = Stage.ORDERED, None
            self._line_up(flight)

    def _land(
        self,
        flight: Flight,
        *,
        tensors: Tensors | None = None,
        data: bytes | None = None,
        window: Window | None = None,
        failed: str | None = None,
        error: BaseException | None = None,
        is_kept: bool = False,
    ) -> list[Letter]:
        """Ends the flight; answers what to tell all who wait. `is_kept`: it had been computed before, for another."""
        with self._lock:
            tickets = tuple(flight.tickets)
            waited = flight.row.waited if flight.row is not None else None
            worked = flight.work_seconds + (flight.row.seconds if flight.row is not None else 0.0)
            self._end(flight)
        is_shared, letters = is_kept, []
        for ticket in tickets:
            seconds = flight.read_seconds, worked
            told = Arrival(ticket.index, tensors, data, failed, error, is_shared, waited, *seconds, window)
            letters.append((ticket, told))
            is_shared = True
        return letters

    def _end(self, flight: Flight) -> None:
        if flight.key is not None and self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]
        if flight.row is None and flight.stage is not Stage.DONE:
            self._expect([flight], -1)
        flight.stage = Stage.DONE
        flight.data = flight.row = flight.place = flight.threads = None
        flight.tickets.clear()
        flight.flows.clear()
