"""Decoding in processes gives the same bits and errors as decoding here, whatever happens to the processes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hapi.data import Sample, TransformSpec, describe_transform, load_sample, open_store
from hapi.data.decoding import MANY, Processes, loader_for
from hapi.data.images import Window
from hapi.data.stores import described
from hapi.errors import ImageError, TransformError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


@pytest.fixture(scope="module")
def picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def spec() -> TransformSpec:
    steps = [v2.ToImage(), v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    return describe_transform(v2.Compose(steps))


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    made = Processes()
    assert made.wait(120)
    yield made
    made.close()


def forks(processes: Processes) -> list[psutil.Process]:
    assert processes._process is not None
    return psutil.Process(processes._process.pid).children()


def test_many_threads_get_the_same_bits_of_processes(processes: Processes, picture: bytes, spec: TransformSpec) -> None:
    def both(index: int) -> bool:
        numbers = {"seed": 3, "epoch": index % 2, "index": np.int64(index)}
        return torch.equal(processes(picture, spec, **numbers), load_sample(picture, spec, **numbers))

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(both, range(60)))
    assert 1 <= len(forks(processes)) <= 6


def test_a_part_of_a_picture_lies_where_it_was(processes: Processes, picture: bytes, spec: TransformSpec) -> None:
    window = Window(5, 7, 100, 90)
    assert torch.equal(processes(picture, spec, window=window), load_sample(picture, spec, window=window))


def test_errors_are_the_same(processes: Processes, picture: bytes, spec: TransformSpec) -> None:
    with pytest.raises(ImageError, match="not an image in a known format") as here:
        load_sample(b"nothing", spec)
    with pytest.raises(ImageError) as there:
        processes(b"nothing", spec)
    assert str(there.value) == str(here.value)
    with pytest.raises(TransformError, match="transform ends with an image"):
        processes(picture, TransformSpec(spec.steps[1:3]))
    with pytest.raises(ImageError, match="empty"):
        processes(b"", spec)


def stored(folder: Path, pictures: dict[str, bytes]) -> tuple[str, list[tuple[int, Sample]]]:
    """A folder of them, as processes open it, and its samples."""
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    place = described(open_store(folder))
    assert place is not None
    return place, [(index, Sample(name, 0, len(data), None, "")) for index, (name, data) in enumerate(pictures.items())]


HOW = {"seed": 3, "epoch": 1, "shape": (3, 32, 32), "most_bytes": 2**20}


def test_several_samples_are_read_and_decoded_to_the_same_bits(
    processes: Processes, picture: bytes, spec: TransformSpec, tmp_path: Path
) -> None:
    place, samples = stored(tmp_path, {str(number): picture for number in range(9)})
    for few in (samples[:2], samples, samples[3:4]):
        fetched = processes.fetch(place, few, spec, **HOW)  # type: ignore[arg-type]
        for (index, _), one in zip(few, fetched, strict=True):
            assert one is not None
            assert torch.equal(one.tensor, load_sample(picture, spec, seed=3, epoch=1, index=index))
            assert one.stored_bytes == len(picture)
            assert one.decode_seconds > 0


def test_what_cannot_be_fetched_leaves_the_others(
    processes: Processes, picture: bytes, spec: TransformSpec, tmp_path: Path
) -> None:
    place, samples = stored(tmp_path, {"good": picture, "gone": b"", "broken": b"no image", "also good": picture})
    (tmp_path / "gone").unlink()

    def found(**other: object) -> list[bool]:
        fetched = processes.fetch(place, samples, spec, **{**HOW, **other})  # type: ignore[arg-type]
        return [one is not None for one in fetched]

    assert found() == [True, False, False, True]
    assert not any(found(most_bytes=100)), "a larger picture is for who counts memory"
    assert not any(found(shape=(3, 16, 16)))
    assert found() == [True, False, False, True]


def test_a_process_that_ends_over_several_brings_none_of_them(
    processes: Processes, picture: bytes, spec: TransformSpec, tmp_path: Path
) -> None:
    place, samples = stored(tmp_path, {"0": picture, "1": picture})
    assert all(processes.fetch(place, samples, spec, **HOW))  # type: ignore[arg-type]
    for fork in forks(processes):
        fork.kill()
    while len(processes._idle) > 1:
        processes._idle.pop().close()
    assert processes.fetch(place, samples, spec, **HOW) == [None, None]  # type: ignore[arg-type]
    assert all(processes.fetch(place, samples, spec, **HOW))  # type: ignore[arg-type]


def test_a_process_that_is_ended_costs_nothing_but_another(
    processes: Processes, picture: bytes, spec: TransformSpec
) -> None:
    expected = processes(picture, spec)
    for fork in forks(processes):
        fork.kill()
    assert torch.equal(processes(picture, spec), expected)


def test_what_ends_each_process_is_the_sample_s_error(picture: bytes, spec: TransformSpec) -> None:
    fragile = Processes()
    assert fragile.wait(120)
    fork, tries = fragile._fork, []

    def stillborn(server):  # type: ignore[no-untyped-def]
        process = fork(server)
        process.socket.shutdown(2)
        tries.append(process)
        return process

    fragile._fork = stillborn  # type: ignore[method-assign]
    with pytest.raises(ImageError, match="ended the process that did, 2 times"):
        fragile(picture, spec)
    assert len(tries) == 2
    fragile._fork = fork  # type: ignore[method-assign]
    assert fragile(picture, spec).shape == (3, 32, 32)
    fragile.close()


def test_where_the_fork_server_does_not_answer_threads_decode(
    picture: bytes, spec: TransformSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hapi.data.decoding.processes.BIRTH_SECONDS", 0.2)
    stopped = Processes()
    assert stopped.wait(120)
    assert stopped._process is not None
    server = psutil.Process(stopped._process.pid)
    server.suspend()
    try:
        assert torch.equal(stopped(picture, spec), load_sample(picture, spec))
        assert stopped._server is None
    finally:
        server.resume()
    stopped.close()


def test_without_a_process_to_fork_from_threads_decode(picture: bytes, spec: TransformSpec) -> None:
    orphaned = Processes()
    assert orphaned.wait(120)
    assert orphaned._process is not None
    orphaned._process.kill()
    orphaned._process.wait()
    assert torch.equal(orphaned(picture, spec), load_sample(picture, spec))
    assert orphaned._server is None
    orphaned.close()


def test_none_is_left_after_the_end(picture: bytes, spec: TransformSpec) -> None:
    ended = Processes()
    assert ended.wait(120)
    ended(picture, spec)
    (child,) = forks(ended)
    all_of_them = [child.parent(), child]
    ended.close()
    _, alive = psutil.wait_procs(all_of_them, timeout=30)
    assert not alive
    assert torch.equal(ended(picture, spec), load_sample(picture, spec))


def test_none_is_left_where_they_were_ended_before_they_were_ready() -> None:
    begun = Processes()
    begun.start()
    begun.close()
    assert begun._starting is not None
    begun._starting.join(60)
    assert not begun._starting.is_alive()
    assert begun._process is not None
    assert begun._process.returncode is not None
    assert begun._server is None


def test_a_fork_of_their_owner_decodes_by_itself(processes: Processes, picture: bytes, spec: TransformSpec) -> None:
    processes._owner = os.getppid()  # as it is seen there
    try:
        assert processes._take(is_new=True) is None
        assert torch.equal(processes(picture, spec), load_sample(picture, spec))
    finally:
        processes._owner = os.getpid()


def test_many_threads_beside_a_gpu_have_them() -> None:
    assert loader_for(MANY, "cuda:0") is load_sample
    assert loader_for(64, "cpu") is load_sample
    assert loader_for(MANY + 1, "cuda:0") is loader_for(64, torch.device("cuda"))
    assert isinstance(loader_for(MANY + 1, "cuda:0"), Processes)
