"""Copies to a GPU and back: in order with its work. A GPU is played by one that copies as late as it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from awkward_models import Archive
from torch.utils._python_dispatch import TorchDispatchMode

from storage_server.extraction import copies
from storage_server.extraction.copies import CudaCopies, HostCopies, copies_for
from storage_server.extraction.engine import Prefix

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Stream:
    """What was put on it and is not done yet."""

    def __init__(self, device: torch.device) -> None:
        self.pending: list[Callable[[], object]] = []
        self.done = 0

    def run_until(self, position: int) -> None:
        while self.done < position:
            self.pending[self.done]()
            self.done += 1

    def wait_stream(self, other: Stream) -> None:
        other.run_until(len(other.pending))

    def wait_event(self, event: Event) -> None:
        event.synchronize()


class Event:
    """A place on a stream."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.position = 0

    def record(self, stream: Stream) -> None:
        self.stream, self.position = stream, len(stream.pending)

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.run_until(self.position)


class Later(TorchDispatchMode):
    """Copies that need not be waited for are put on a stream."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and len(args) > 2 and args[2]:
            target, source, _ = args
            self.stream.pending.append(lambda: func(target, source))
            return target
        return func(*args, **(kwargs or {}))


class Played:
    """Stands for torch.cuda: the work's stream does everything at once, others as late as they may."""

    Stream, Event = Stream, Event

    def __init__(self) -> None:
        self.work = Stream(torch.device("cpu"))

    def current_stream(self, device: torch.device) -> Stream:
        return self.work

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        with Later(stream):
            yield


class OnThePlayed(CudaCopies):
    def __init__(self) -> None:
        super().__init__("cpu", Played(), pinned=False)
        self.held: list[torch.Tensor] = []

    def _hold(self, tensor: torch.Tensor) -> None:
        self.held.append(tensor)


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (1, 70), (2, 3, 4, 5), (7, 1), (64,)]
    found = [torch.randn(shape, generator=generator) for shape in shapes]
    return [*found, found[2].transpose(1, 3), found[0].half(), found[0] > 0, torch.arange(9), torch.zeros(2, 0)]


@pytest.mark.parametrize("piece", [4, 64, 2**20])
def test_batches_arrive_whole_and_features_come_back(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "PIECE_BYTES", piece)
    both = OnThePlayed()
    for batch in batches():
        moved = both.to_device(batch)
        assert torch.equal(moved, batch)
        assert moved.data_ptr() != batch.data_ptr() or not batch.numel()
        doubled, same = both.to_host((moved + moved, moved))
        assert torch.equal(doubled, batch + batch)
        assert torch.equal(same, batch)
    assert len(both.held) == 3 * len(batches()), "memory that is still copied from or to is nobody else's"


def test_one_buffer_serves_all_batches_and_grows() -> None:
    both = OnThePlayed()
    addresses = set()
    for size in (100, 10, 100, 1):
        both.to_device(torch.ones(size))
        addresses.add(both._buffer.data_ptr())
    assert len(addresses) == 1
    assert both._buffer.nbytes == 400
    both.to_device(torch.ones(101))
    assert both._buffer.nbytes == 404


def test_the_buffer_is_not_written_before_the_last_batch_has_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the work of that batch never asked for it, as when memory ran out half-way."""
    both = OnThePlayed()
    monkeypatch.setattr(Stream, "wait_event", lambda self, event: None)
    first = both.to_device(torch.full((10,), 1.0))
    second = both.to_device(torch.full((10,), 2.0))
    assert torch.equal(first, torch.full((10,), 1.0))
    both._fetched.synchronize()
    assert torch.equal(second, torch.full((10,), 2.0))


def test_samples_of_a_batch_arrive_in_their_order() -> None:
    both = OnThePlayed()
    for batch in batches():
        samples = [both.lay_ready(sample) for sample in batch]
        moved = both.gather(samples)
        assert torch.equal(moved, batch)
        assert both.held[-1] is moved


def test_on_the_host_nothing_is_copied(archive: Archive) -> None:
    here = copies_for("cpu")
    assert isinstance(here, HostCopies)
    batch = torch.ones(3)
    assert here.to_device(batch) is batch
    assert here.to_host((batch,))[0] is batch
    assert here.lay_ready(batch) is batch
    assert torch.equal(here.gather([batch, 2 * batch]), torch.tensor([[1.0] * 3, [2.0] * 3]))


@needs_cuda
def test_a_real_gpu_gives_back_what_it_got() -> None:
    real = CudaCopies("cuda")
    for batch in [*batches(), torch.randn(64, 3, 224, 224)]:
        for _ in range(5):
            moved = real.to_device(batch)
            assert moved.is_cuda
            (found,) = real.to_host((moved.clone(),))
            assert torch.equal(found, batch)
    rows = real.to_host((torch.ones(2, 3, device="cuda"), torch.ones(1, 3, device="cuda")))
    assert [tensor.is_pinned() for tensor in rows] == [True, False]


@needs_cuda
def test_a_real_gpu_gathers_samples_wherever_they_lie() -> None:
    real = CudaCopies("cuda")
    for _ in range(5):
        batch = torch.randn(64, 3, 224, 224)
        samples = [real.lay_ready(sample) for sample in batch]
        assert all(sample.is_pinned() for sample in samples)
        moved = real.gather(samples)
        assert real.to_device(moved) is moved
        del samples  # whose memory may be taken for others from now on
        others = [real.lay_ready(torch.zeros(3, 224, 224)) for _ in range(64)]
        assert torch.equal(real.to_host((moved,))[0], batch)
        assert not any(sample.any() for sample in others)
        (mixed,) = real.to_host((real.gather([others[0], batch[1]]),))
        assert torch.equal(mixed, torch.stack([others[0], batch[1]]))


@needs_cuda
def test_a_real_gpu_waits_for_the_batch_and_the_caller_for_the_features() -> None:
    """Long work on both sides of each copy: what is out of order would be seen."""
    real = CudaCopies("cuda")
    weight = torch.eye(2048, device="cuda")
    for value in range(1, 20):
        moved = real.to_device(torch.full((512, 2048), float(value)))
        for _ in range(10):
            moved = moved @ weight
        (found,) = real.to_host((moved,))
        assert torch.equal(found, torch.full((512, 2048), float(value)))


@needs_cuda
def test_a_prefix_on_a_real_gpu_gives_what_it_gives_without_these_copies(archive: Archive) -> None:
    prefix = Prefix.of(archive.graph, "output", "cuda", archive.digest)
    batch = torch.randn(6, 3, 16, 16)
    (found,) = prefix.run(batch)
    (expected,) = archive.graph.split("output")[0].to("cuda")(batch.cuda())
    assert torch.equal(found, expected.cpu())
