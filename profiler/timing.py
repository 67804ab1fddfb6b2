"""Seconds of each node of a program on a device, measured so that they add up to what a whole run takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Protocol

import torch

from hapi.model import Program
from profiler.memory import spec_input


class _Node(Protocol):
    @property
    def name(self) -> str: ...


class Stopwatch(Protocol):
    """Times the nodes of one run; how depends on the device."""

    def observe(self, node: _Node) -> AbstractContextManager[object]:
        """Entered around one node."""

    def seconds(self) -> Mapping[str, float]:
        """After the run: node name -> seconds."""


class CpuStopwatch:
    """The CPU works when it is told to: the clock before and after is the time."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextmanager
    def observe(self, node: _Node) -> Iterator[None]:
        started = self._clock()
        yield
        self._seconds[node.name] = self._clock() - started

    def seconds(self) -> Mapping[str, float]:
        return self._seconds


class CudaStopwatch:
    """A GPU works later: events in its own queue are timed, and read when the run is over."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}

    @contextmanager
    def observe(self, node: _Node) -> Iterator[None]:
        events = _event(), _event()
        stream = torch.cuda.current_stream(self._device)
        events[0].record(stream)
        yield
        events[1].record(stream)
        self._events[node.name] = events

    def seconds(self) -> Mapping[str, float]:
        torch.cuda.synchronize(self._device)
        return {name: start.elapsed_time(end) / 1e3 for name, (start, end) in self._events.items()}


@dataclass(frozen=True)
class NodeTimes:
    """Seconds per sample, in batches of `batch`: `whole` of an undisturbed run, and `nodes`, which sum to it."""

    whole: float
    nodes: Mapping[str, float]
    batch: int

    def of(self, program: Program) -> float:
        """Seconds per sample of the nodes of a part."""
        return sum((self.nodes[node.name] for node in program.nodes), 0.0)


def time_nodes(
    program: Program,
    batch: int,
    *,
    repeats: int = 5,
    limit_seconds: float = 20.0,
    clock: Callable[[], float] = perf_counter,
) -> NodeTimes:
    """Runs a program on random data: one sample to warm up, then whole runs and observed runs in turn.

    Of all runs the fastest counts, as what disturbs them only ever makes them slower. Observing costs time at every
    node, which whole runs do not pay: the medians of the nodes' times are scaled to sum to the fastest run's.
    Stops after `repeats` turns, or earlier (but after one) when another would not end within `limit_seconds`. Where one
    turn with `batch` samples would take longer than that it has fewer, at least one: a network that slow gains little
    from more.
    """
    deadline = clock() + limit_seconds
    wholes: list[float] = []
    observed: list[Mapping[str, float]] = []
    with torch.inference_mode():
        one = _run(program, _inputs(program, 1), clock)
        if program.device.type != "cpu":  # the first run has loaded the device's code
            one = _run(program, _inputs(program, 1), clock)
        batch = _batch_in_time(batch, one, limit_seconds)
        inputs = _inputs(program, batch)
        turn_seconds = 0.0
        while not wholes or (len(wholes) < repeats and clock() + turn_seconds < deadline):
            began = clock()
            wholes.append(_run(program, inputs, clock))
            watch = _stopwatch(program.device, clock)
            program.run(*inputs, observe=watch.observe)
            observed.append(watch.seconds())
            turn_seconds = clock() - began
    whole = min([*wholes, *(sum(run.values()) for run in observed)]) / batch
    return NodeTimes(whole, _scaled([node.name for node in program.nodes], observed, whole), batch)


def _inputs(program: Program, batch: int) -> list[torch.Tensor]:
    return [spec_input(spec.shape, spec.dtype, batch, program.device) for spec in program.inputs]


def _run(program: Program, inputs: Sequence[torch.Tensor], clock: Callable[[], float]) -> float:
    started = clock()
    program(*inputs)
    _wait(program.device)
    return clock() - started


def _batch_in_time(batch: int, one_seconds: float, limit_seconds: float) -> int:
    """Samples of which a whole run and an observed one fit into the time, where one sample takes so long."""
    in_time = limit_seconds / (2 * one_seconds) if one_seconds > 0 else batch
    return max(1, min(batch, int(in_time)))


def _scaled(names: Sequence[str], observed: Sequence[Mapping[str, float]], whole: float) -> dict[str, float]:
    medians = {name: median(run[name] for run in observed) for name in names}
    total = sum(medians.values())
    return {name: seconds * whole / total if total > 0 else 0.0 for name, seconds in medians.items()}


def _stopwatch(device: torch.device, clock: Callable[[], float]) -> Stopwatch:
    return CudaStopwatch(device) if device.type == "cuda" else CpuStopwatch(clock)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
