"""How requests learn what became of their samples: tickets, and letters to those who hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hapi.cancel import Cancel
from hapi.data.images import Window
from storage_server.scheduling.deposits import Deposit
from storage_server.scheduling.fair import Flow

if TYPE_CHECKING:
    from storage_server.extraction.flight import Flight

Tensors = tuple[torch.Tensor, ...]


@dataclass(slots=True)
class Arrival:
    """One sample that is done, or why not. Not to be changed: it is not frozen only since that makes it slow to make.

    `failed` is this sample's own trouble, and becomes its row's `error`; `error` is trouble that ends the request.
    `is_shared`: it was computed for somebody else. `waited`: seconds in line for the device, None if it was not there.
    `read_seconds`, `work_seconds`: of all readers; of all decoders and the device, that it took. `window`: where in its
    picture `data` lies, if it is a part of it.
    """

    index: int
    tensors: Tensors | None = None
    data: bytes | None = None
    failed: str | None = None
    error: BaseException | None = None
    is_shared: bool = False
    waited: float | None = None
    read_seconds: float = 0.0
    work_seconds: float = 0.0
    window: Window | None = None


@dataclass(eq=False)
class Ticket:
    """One request's claim to one sample.

    `deliver` takes arrivals to the request, from another thread; that of this sample at most once. Tickets of one
    request have one and the same. `deposit` is what the request holds of the queues for the sample.
    """

    index: int
    flow: Flow
    cancel: Cancel
    deliver: Callable[[list[Arrival]], Any]
    deposit: Deposit
    flight: Flight | None = None


Letter = tuple[Ticket, Arrival]


def post(letters: Iterable[Letter]) -> None:
    """Delivers all that is for one request at once: its thread is woken once, not for each sample."""
    bags: dict[Callable[[list[Arrival]], Any], list[Arrival]] = {}
    for ticket, arrival in letters:
        bags.setdefault(ticket.deliver, []).append(arrival)
    for deliver, arrivals in bags.items():
        deliver(arrivals)
