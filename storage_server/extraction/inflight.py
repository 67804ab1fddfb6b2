"""Samples on their way, each once, for all who want it.

A flight is one sample on its way through reading, decoding and the device. Requests hold tickets for it. The first
brings it about; whoever asks for the same (an equal feature key) while it is under way gets a ticket, too, and the work
then stands in the lines of both tenants: whichever's turn comes first, it is done for all. A flight belongs to nobody:
it goes on as long as one ticket is left, so that no follower has to begin anew when the first request goes away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial

import torch

from hapi.cancel import CancelledWork
from storage_server.extraction.engine import Prefix
from storage_server.extraction.executor import DeviceExecutor
from storage_server.extraction.flight import Arrival, Flight, Stage, Tensors, Ticket
from storage_server.extraction.loading import SampleLoader, SampleTrouble, Source
from storage_server.extraction.patience import attempt
from storage_server.extraction.rows import Row
from storage_server.features.beginnings import Beginnings, Kept
from storage_server.features.starts import Start
from storage_server.metrics import Metrics
from storage_server.scheduling.fair import Flow


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
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_key)

    def join(
        self, ticket: Ticket, source: Source, prefix: Prefix | None, key: bytes | None, starts: Sequence[Start] = ()
    ) -> Arrival | None:
        """Brings the sample about, or joins those who wait for it. What is kept near by is answered at once.

        Without a key (stored objects) nothing is shared. `starts` are shallower cuts that it may begin at.
        """
        for is_last_look in (False, True):
            with self._lock:
                flight = self._by_key.get(key) if key is not None else None
                landed_meanwhile = flight is None and key is not None and not is_last_look and key in self._kept
                if not landed_meanwhile:
                    self._board(ticket, flight or self._depart(ticket, source, prefix, key, starts))
                    return None
            if key is not None and (tensors := self._kept.get(key)) is not None:
                return Arrival(ticket.index, tensors, is_shared=True)
        raise AssertionError("unreachable: the last look boards")

    def leave(self, ticket: Ticket) -> None:
        """The ticket's request no longer waits; what nobody waits for is given up."""
        with self._lock:
            flight = ticket.flight
            if flight is None or ticket not in flight.tickets:
                return
            del flight.tickets[ticket]
            if flight.row is not None and ticket.flow not in flight.flows:
                self._device.unshare(flight.row, ticket.flow)
            if not flight.tickets:
                self._end(flight)

    def _depart(
        self, ticket: Ticket, source: Source, prefix: Prefix | None, key: bytes | None, starts: Sequence[Start]
    ) -> Flight:
        flight = Flight(source, ticket.index, prefix, key)
        if key is not None:
            self._by_key[key] = flight
            if prefix is not None:
                flight.beginning = self._beginnings.choose(ticket.index, prefix, key, starts)
        self._expect(flight)
        return flight

    def _expect(self, flight: Flight, count: int = 1) -> None:
        if flight.lane is not None:
            self._device.expect(flight.lane, count)

    def _board(self, ticket: Ticket, flight: Flight) -> None:
        """Adds the ticket, and puts the work into its flow's line as well."""
        is_known = ticket.flow in flight.flows
        ticket.flight = flight
        flight.tickets[ticket] = None
        if not is_known:
            self._line_up(flight, ticket.flow)

    def _line_up(self, flight: Flight, flow: Flow) -> None:
        if flight.stage is Stage.ORDERED:
            self._loader.readers.submit(flow, partial(self._read, flight))
        elif flight.stage is Stage.READ:
            self._loader.decoders.submit(flow, partial(self._decode, flight))
        elif flight.stage is Stage.READY and flight.row is not None:
            self._device.share(flight.row, flow)

    def _read(self, flight: Flight) -> bool:
        """On a reader's thread. False if there was nothing to do: another line's turn came first, or nobody waits."""
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
            self._land_failed(flight, error)
            return True
        flight.read_seconds = (time.perf_counter() - began) / self._loader.read_threads
        if flight.prefix is None:
            self._land(flight, data=data)
            return True
        with self._lock:
            if flight.tickets:
                flight.data, flight.stage = data, Stage.READ
                for flow in flight.flows:
                    self._line_up(flight, flow)
        return True

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
                    self._expect(flight, -1)
                    flight.beginning = None
                    self._expect(flight)
            return False
        if beginning.part is None:
            self._land(flight, tensors=tensors, is_kept=True)
            return True
        self._metrics.continued.inc()
        with self._lock:
            if flight.tickets:
                self._make_ready(flight, beginning.part, tensors[0])
        return True

    def _make_ready(self, flight: Flight, prefix: Prefix, tensor: torch.Tensor) -> None:
        flight.row = Row(prefix, tensor, flight.flows, flight.is_wanted, partial(self._computed, flight))
        flight.stage = Stage.READY
        self._device.submit(flight.row)

    def _decode(self, flight: Flight) -> bool:
        """On a decoder's thread; see `_read`."""
        if not self._claim(flight, Stage.READ, Stage.DECODING):
            return False
        data, flight.data = flight.data, None
        assert data is not None
        assert flight.prefix is not None
        began = time.perf_counter()
        try:
            with self._loader.occupancy.working(self._payers(flight)):
                tensor = self._loader.decode(flight.source, flight.index, data, flight.prefix, flight.is_wanted)
        except BaseException as error:
            self._land_failed(flight, error)
            return True
        flight.work_seconds = (time.perf_counter() - began) / self._loader.decode_threads
        del data
        with self._lock:
            if flight.tickets:
                self._make_ready(flight, flight.prefix, tensor)
        return True

    def _payers(self, flight: Flight) -> dict[Flow, float]:
        """Each flow that waits for it, and its part of one of the threads that decode."""
        flows = flight.flows
        return {flow: 1 / self._loader.decode_threads / len(flows) for flow in flows}

    def _computed(self, flight: Flight, outcome: Tensors | BaseException) -> None:
        if isinstance(outcome, BaseException):
            self._land_failed(flight, outcome)
            return
        if flight.key is not None:
            self._kept.put(flight.key, outcome)  # before it leaves the table: nobody finds it in neither
        self._land(flight, tensors=outcome)

    def _claim(self, flight: Flight, before: Stage, after: Stage) -> bool:
        with self._lock:
            if flight.stage is not before or not flight.tickets:
                return False
            flight.stage = after
            return True

    def _land_failed(self, flight: Flight, error: BaseException) -> None:
        if isinstance(error, CancelledWork):
            self._again_if_wanted(flight)
        elif isinstance(error, SampleTrouble):
            self._land(flight, failed=str(error))
        else:
            self._land(flight, error=error)

    def _again_if_wanted(self, flight: Flight) -> None:
        """The work was given up because nobody waited; somebody who came just then has it done from the beginning."""
        with self._lock:
            if not flight.is_wanted():
                self._end(flight)
                return
            if flight.row is not None:
                self._expect(flight)
            flight.stage, flight.row = Stage.ORDERED, None
            for flow in flight.flows:
                self._line_up(flight, flow)

    def _land(
        self,
        flight: Flight,
        *,
        tensors: Tensors | None = None,
        data: bytes | None = None,
        failed: str | None = None,
        error: BaseException | None = None,
        is_kept: bool = False,
    ) -> None:
        """Ends the flight and tells all who wait. `is_kept`: it had been computed before, for another."""
        with self._lock:
            tickets = tuple(flight.tickets)
            waited = flight.row.waited if flight.row is not None else None
            worked = flight.work_seconds + (flight.row.seconds if flight.row is not None else 0.0)
            self._end(flight)
        for position, ticket in enumerate(tickets):
            cost = (flight.read_seconds, worked)
            is_shared = is_kept or position > 0
            ticket.deliver(Arrival(ticket.index, tensors, data, failed, error, is_shared, waited, *cost))

    def _end(self, flight: Flight) -> None:
        if flight.key is not None and self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]
        if flight.row is None and flight.stage is not Stage.DONE:
            self._expect(flight, -1)
        flight.stage = Stage.DONE
        flight.data = flight.row = None
        flight.tickets.clear()
