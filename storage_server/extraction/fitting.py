"""What can never be computed here is refused before anything runs, with the numbers and what could be."""

from __future__ import annotations

from hapi.errors import BusyError, MemoryBudgetError
from hapi.model import Graph
from hapi.units import format_bytes
from profiler.memory import prefix_memory
from storage_server.extraction.engine import Prefix
from storage_server.memory.budget import MemoryBudget


def queued_bytes(prefix: Prefix) -> int:
    """Of one sample between reading and sending, besides its stored bytes: its input tensor and its features."""
    return prefix.input.bytes + prefix.cut.bytes_per_sample


def check_fits(prefix: Prefix, budget: MemoryBudget, queue_bytes: int) -> None:
    """MemoryBudgetError if not one sample of the prefix ever fits; BusyError if it would next to fewer other models."""
    queued = queued_bytes(prefix)
    if queued > queue_bytes:
        raise MemoryBudgetError(
            f"{prefix.what} takes {format_bytes(queued)} per sample between reading and sending; this server's queues "
            f"have {format_bytes(queue_bytes)}. Choose a cut with fewer bytes, or have HAPI_SERVER_QUEUE_BYTES or "
            "--memory-budget raised.",
            needed_bytes=queued,
            available_bytes=queue_bytes,
        )
    memory, room = prefix.memory, budget.room_bytes
    needed = memory.weight_bytes + memory.live_bytes(1)  # at the least: what it really takes only running it tells
    if needed > room:
        raise MemoryBudgetError(
            f"{prefix.what} needs {format_bytes(memory.weight_bytes)} for weights and "
            f"{format_bytes(needed - memory.weight_bytes)} for a batch of one sample; this server may use "
            f"{format_bytes(room)}. Choose an earlier cut, or give the server a larger --memory-budget.",
            needed_bytes=needed,
            available_bytes=room,
        )
    free = budget.batch_bytes()
    if needed - memory.weight_bytes > free:
        raise BusyError(
            f"{prefix.what} needs {format_bytes(needed - memory.weight_bytes)} for a batch of one sample, "
            f"{format_bytes(free)} are free at the moment. Try again later."
        )


def with_remedy(error: MemoryBudgetError, graph: Graph, budget: MemoryBudget, queue_bytes: int) -> MemoryBudgetError:
    """The same error, with the deepest cut of the model that fits here and the bytes of a batch of one up to it."""
    room = budget.room_bytes
    for cut in reversed(graph.cuts[1:]):
        needed = prefix_memory(graph.split(cut)[0]).predicted(1)
        queued = graph.inputs[0].bytes + cut.bytes_per_sample
        if needed <= room and queued <= queue_bytes:
            return MemoryBudgetError(
                f"{error} The deepest cut that fits here is {cut.name}: {format_bytes(needed)} with a batch of one.",
                needed_bytes=error.needed_bytes,
                available_bytes=error.available_bytes or room,
                fits=cut.name,
                fits_bytes=needed,
            )
    return MemoryBudgetError(
        f"{error} No cut of this model fits here but input.",
        needed_bytes=error.needed_bytes,
        available_bytes=error.available_bytes or room,
    )
