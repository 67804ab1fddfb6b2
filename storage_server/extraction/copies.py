"""Batches to a GPU and features back, through page-locked memory and beside the work of the GPU.

A copy from ordinary memory is made by the driver in small pieces through a buffer of its own, while the caller waits.
From page-locked memory the GPU fetches by itself. So whoever decodes a sample puts it there, on one of many threads,
and the device's thread only tells the GPU where the samples of a batch lie. A batch that lies elsewhere is put, piece
by piece, into a page-locked buffer, and each piece is on its way while the next is put there. Copies run on a stream of
their own, and events order them: the work waits for the batch, the copy of the features for the work, and the caller
for that copy.

The device's thread computes one batch at a time and waits for its features, so a batch's copies do not overlap with
the work of another batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch

PIECE_BYTES = 4 * 2**20
"""Large enough for the full speed of the bus, small enough that little is left to wait for after the last."""

Tensors = tuple[torch.Tensor, ...]


class Copies(Protocol):
    """From host memory to a device and back. For the device's one thread."""

    def lay_ready(self, sample: torch.Tensor) -> torch.Tensor:
        """The sample where the device gets it easily. For any thread."""
        ...

    def gather(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        """The samples (*shape) as one batch (n, *shape) on the device, in time like one of `to_device`."""
        ...

    def to_device(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch on the device, in time for whatever is put on its current stream from now on."""
        ...

    def to_host(self, tensors: Tensors) -> Tensors:
        """The tensors in host memory, whole when this returns."""
        ...


class HostCopies:
    """Where the device is the host there is nothing to copy."""

    def lay_ready(self, sample: torch.Tensor) -> torch.Tensor:
        return sample

    def gather(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(samples))

    def to_device(self, batch: torch.Tensor) -> torch.Tensor:
        return batch

    def to_host(self, tensors: Tensors) -> Tensors:
        return tuple(tensor.to("cpu") for tensor in tensors)


class CudaCopies:
    """Through one page-locked buffer, which grows to the largest batch and is used by one batch at a time."""

    def __init__(self, device: str, cuda: Any = torch.cuda, *, pinned: bool = True) -> None:
        """`cuda` and `pinned` are other than these only where a test plays the GPU."""
        self._device, self._cuda, self._pinned = torch.device(device), cuda, pinned
        self._stream = cuda.Stream(self._device)
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._fetched = cuda.Event()

    def lay_ready(self, sample: torch.Tensor) -> torch.Tensor:
        """See Copies. Torch keeps page-locked memory that is freed for the next sample."""
        return sample.pin_memory() if self._pinned else sample

    def gather(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        """See Copies. Torch keeps the memory of samples that are let go until the GPU has fetched them."""
        blocks = {sample.untyped_storage().data_ptr(): sample for sample in samples}  # asking each takes a while
        if self._pinned and not all(sample.is_pinned() for sample in blocks.values()):
            return self.to_device(torch.stack(list(samples)))
        moved = torch.empty((len(samples), *samples[0].shape), dtype=samples[0].dtype, device=self._device)
        work = self._cuda.current_stream(self._device)
        self._stream.wait_stream(work)  # `moved` may be memory that earlier work has not let go yet
        with self._cuda.stream(self._stream):
            torch._foreach_copy_(list(moved.unbind()), list(samples), non_blocking=True)  # all in one call
        work.wait_stream(self._stream)
        self._hold(moved)
        return moved

    def to_device(self, batch: torch.Tensor) -> torch.Tensor:
        """See Copies; a batch that is there stays where it is."""
        if batch.device.type == self._device.type != "cpu":
            return batch
        batch = batch.contiguous()
        self._fetched.synchronize()  # the last batch has left the buffer, whatever became of its work
        if self._buffer.numel() < batch.nbytes:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # the old one may go before the new one is made
            self._buffer = torch.empty(batch.nbytes, dtype=torch.uint8, pin_memory=self._pinned)
        work = self._cuda.current_stream(self._device)
        moved = torch.empty_like(batch, device=self._device)
        self._stream.wait_stream(work)  # `moved` may be memory that earlier work has not let go yet
        source, target = (tensor.reshape(-1).view(torch.uint8) for tensor in (batch, moved))
        try:
            for start in range(0, batch.nbytes, PIECE_BYTES):
                piece = self._buffer[start : min(start + PIECE_BYTES, batch.nbytes)]
                piece.copy_(source[start : start + len(piece)])
                with self._cuda.stream(self._stream):
                    target[start : start + len(piece)].copy_(piece, non_blocking=True)
        finally:
            self._fetched.record(self._stream)
        work.wait_event(self._fetched)
        self._hold(moved)
        return moved

    def to_host(self, tensors: Tensors) -> Tensors:
        """See Copies. Page-locked only where the rows are copied on, as those of a batch of one are not."""
        self._stream.wait_stream(self._cuda.current_stream(self._device))
        hosts = []
        with self._cuda.stream(self._stream):
            for tensor in tensors:
                is_passing = self._pinned and len(tensor) > 1
                host = torch.empty_like(tensor, device="cpu", pin_memory=is_passing)
                hosts.append(host.copy_(tensor, non_blocking=is_passing))
                self._hold(tensor)
            copied = self._cuda.Event()
            copied.record(self._stream)
        copied.synchronize()
        return tuple(hosts)

    def _hold(self, tensor: torch.Tensor) -> None:
        """Its memory is not given to anybody else before the copies that were begun are made."""
        tensor.record_stream(self._stream)


@cache
def copies_for(device: str) -> Copies:
    """Those of a device, made once: its thread is the only one that computes there."""
    return HostCopies() if torch.device(device).type == "cpu" else CudaCopies(device)
