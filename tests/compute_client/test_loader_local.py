"""The loader in process: PyTorch's loader over an ImageFolder, and the backbone behind it."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from compute_client import DataLoader
from hapi.backoff import RetryPolicy
from hapi.data import build_manifest
from hapi.data.decoding import Processes
from hapi.data.stores import local
from hapi.errors import (
    BatchTimeoutError,
    InputError,
    ManifestError,
    SampleError,
    StoreUnavailableError,
    TransformError,
)
from hapi.model import Graph
from tests.compute_client.conftest import CLASSES, SAMPLES

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def plain(pictures: Path, backbone: nn.Module, transform: v2.Compose, **arguments: object) -> TorchLoader:
    return TorchLoader(ImageFolder(str(pictures), transform), **arguments)


def features_of(backbone: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    mode = backbone.training
    backbone.eval()
    with torch.no_grad():
        features = backbone(batch)
    backbone.train(mode)
    return features


def threads() -> list[threading.Thread]:
    """Those that belong to loaders; the compiler is the process's own, and begins after a second of work."""
    names = (thread for thread in threading.enumerate() if thread.name.startswith("hapi-"))
    return [thread for thread in names if thread.name != "hapi-compiler"]


def assert_no_threads() -> None:
    for thread in threads():
        thread.join(10)
    assert threads() == []


def assert_same(found: Batches, expected: Batches) -> None:
    assert len(found) == len(expected)
    for (features, labels), (wanted, wanted_labels) in zip(found, expected, strict=True):
        assert torch.equal(labels, wanted_labels)
        torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drop_last", [False, True])
def test_epochs_equal_those_of_torch(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, drop_last: bool
) -> None:
    generator = torch.Generator().manual_seed(7)
    reference = plain(
        pictures, backbone, transform, batch_size=4, shuffle=True, drop_last=drop_last, generator=generator
    )
    loader = DataLoader(
        pictures, backbone=backbone, transform=transform, batch_size=4, shuffle=True, drop_last=drop_last, seed=7
    )
    assert len(loader) == len(reference)
    for _ in range(3):
        assert_same(list(loader), [(features_of(backbone, images), labels) for images, labels in reference])
    assert loader.classes == CLASSES
    assert loader.samples == len(loader.dataset) == SAMPLES
    assert backbone.training  # the user's model is as it was
    assert_no_threads()


def test_a_graph_a_manifest_and_an_image_folder_do_as_well(
    pictures: Path, backbone: nn.Module, graph: Graph, transform: v2.Compose
) -> None:
    expected = list(DataLoader(pictures, backbone=backbone, transform=transform, batch_size=8))
    manifest = build_manifest(str(pictures))
    assert_same(list(DataLoader(manifest, backbone=graph, transform=transform, batch_size=8)), expected)
    folder = ImageFolder(str(pictures), transform)
    assert_same(list(DataLoader(folder, backbone=backbone, batch_size=8)), expected)


def test_an_image_folder_with_rules_of_its_own_is_refused(pictures: Path, backbone: nn.Module) -> None:
    picky = ImageFolder(str(pictures), v2.ToImage(), is_valid_file=lambda path: path.endswith("1.jpg"))
    with pytest.raises(InputError, match="own rule"):
        DataLoader(picky, backbone=backbone)
    mapped = ImageFolder(str(pictures), v2.ToImage(), target_transform=lambda label: -label)
    with pytest.raises(InputError, match="target_transform"):
        DataLoader(mapped, backbone=backbone)


def test_features_can_be_trained_on(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    head = nn.Linear(8, 3)
    for features, labels in DataLoader(pictures, backbone=backbone, transform=transform, batch_size=16):
        assert not features.requires_grad
        assert not features.is_inference()
        nn.functional.cross_entropy(head(features), labels).backward()
        features.mul_(2)  # nobody else's memory
    assert head.weight.grad is not None


def test_random_transforms_follow_seed_and_epoch(pictures: Path, backbone: nn.Module) -> None:
    random = v2.Compose([v2.RandomResizedCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def epochs(**arguments: int) -> list[torch.Tensor]:
        loader = DataLoader(pictures, backbone=backbone, transform=random, batch_size=SAMPLES, **arguments)
        return [features for _ in range(2) for features, _ in loader]

    first, second = epochs(seed=1)
    assert torch.equal(first, epochs(seed=1, num_workers=3)[0])
    assert torch.equal(second, epochs(seed=1)[1])
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, epochs(seed=2)[0])


def test_processes_that_decode_give_the_same(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epoch() -> list[torch.Tensor]:
        return [features for features, _ in DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4)]

    expected, processes = epoch(), Processes()
    assert processes.wait(120)
    asked: list[tuple[int, str]] = []

    def chosen(threads: int, device: torch.device) -> Processes:
        asked.append((threads, str(device)))
        return processes

    monkeypatch.setattr("compute_client.execution.loader_for", chosen)
    assert all(torch.equal(*both) for both in zip(epoch(), expected, strict=True))
    assert len(asked) == 1
    assert asked[0][1] == "cpu"
    processes.close()


def test_state_in_mid_epoch_goes_on_with_the_next_batch(
    pictures: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    def loader() -> DataLoader:
        return DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4, shuffle=True, seed=3)

    whole = loader()
    epochs = [list(whole) for _ in range(3)]
    stopped = loader()
    list(stopped)
    for number, _ in enumerate(stopped):
        if number == 2:
            break
    state = json.loads(json.dumps(stopped.state_dict()))
    assert (state["epoch"], state["batches"]) == (1, 3)
    resumed = loader()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert_same(list(resumed), epochs[1][3:])
    assert_same(list(resumed), epochs[2])


@pytest.mark.parametrize("exhaust", [False, True])
def test_state_at_the_end_of_an_epoch_starts_the_next(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, exhaust: bool
) -> None:
    def loader() -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        return DataLoader(
            pictures, backbone=backbone, transform=transform, batch_size=11, shuffle=True, generator=generator
        )

    whole = loader()
    epochs = [list(whole) for _ in range(2)]
    first = loader()
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    if exhaust:
        assert next(iterator, None) is None
    state = first.state_dict()
    assert (state["epoch"], state["batches"]) == (1, 0)
    resumed = loader()
    resumed.load_state_dict(state)
    assert_same(list(resumed), epochs[1])


def test_a_state_that_does_not_fit_is_refused(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, tmp_path: Path
) -> None:
    def loader(**arguments: object) -> DataLoader:
        values = {"batch_size": 4, "shuffle": True, "seed": 3} | arguments
        return DataLoader(pictures, backbone=backbone, transform=transform, **values)

    begun = loader()
    iterator = iter(begun)
    next(iterator)
    state = begun.state_dict()
    with pytest.raises(InputError, match="seed"):
        loader(seed=4).load_state_dict(state)
    with pytest.raises(InputError, match="dataset changed"):
        loader().load_state_dict(state | {"samples": 5})
    with pytest.raises(InputError, match="version"):
        loader().load_state_dict(state | {"version": 0})
    with pytest.raises(InputError, match="'batches'"):
        loader().load_state_dict(state | {"batches": "3"})
    with pytest.raises(InputError):
        loader().load_state_dict(state | {"surprise": 3})
    other = loader(batch_size=5)
    other.load_state_dict(state)
    with pytest.raises(InputError, match="cannot be repeated"):
        iter(other)
    beyond = loader()
    beyond.load_state_dict(state | {"batches": 100})
    with pytest.raises(InputError, match="100 batches"):
        iter(beyond)
    edited = loader()
    edited.load_state_dict({**state, "batches": 7, "order": ""})
    assert len(list(edited)) == len(edited) - 7
    iterator.close()


def test_a_batch_that_could_not_be_made_was_not_yielded(
    pictures: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    calls = []

    def fails_once(rows: list[tuple[torch.Tensor, int]]) -> list[int]:
        calls.append(rows)
        if len(calls) == 3:
            raise ValueError("an unfit batch")
        return [label for _, label in rows]

    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4, collate_fn=fails_once)
    with pytest.raises(ValueError, match="unfit"):
        list(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["batches"], loader.stats.batches) == (0, 2, 2)
    loader.load_state_dict(state)
    assert len(list(loader)) == len(loader) - 2


def test_a_state_after_set_epoch_is_of_that_epoch(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    def loader() -> DataLoader:
        return DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4, shuffle=True)

    left = loader()
    for _ in left:
        break
    left.set_epoch(5)
    state = left.state_dict()
    assert (state["epoch"], state["batches"]) == (5, 0)
    resumed = loader()
    resumed.load_state_dict(state)
    assert_same(list(resumed), list(left))


def test_set_epoch_chooses_the_order(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    def labels(loader: DataLoader) -> list[int]:
        return torch.cat([labels for _, labels in loader]).tolist()

    counted = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=8, shuffle=True)
    orders = [labels(counted) for _ in range(3)]
    chosen = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=8, shuffle=True)
    chosen.set_epoch(2)
    assert labels(chosen) == orders[2]
    chosen.set_epoch(0)
    assert labels(chosen) == orders[0]
    assert labels(chosen) == orders[1]


def test_leaving_a_loop_ends_the_threads(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=2)
    for _ in loader:
        break
    assert_no_threads()
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert_no_threads()
    assert next(iterator, None) is None


def test_a_broken_picture_is_named_where_its_batch_is(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, tmp_path: Path
) -> None:
    root = broken_copy(pictures, tmp_path)
    loader = DataLoader(root, backbone=backbone, transform=transform, batch_size=4)
    iterator = iter(loader)
    assert [len(next(iterator)[1]) for _ in range(3)] == [4, 4, 4]
    with pytest.raises(SampleError, match=r"heron/03\.jpg") as caught:
        next(iterator)
    assert caught.value.index == 14
    assert_no_threads()


def test_broken_pictures_can_be_skipped(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, tmp_path: Path
) -> None:
    root = broken_copy(pictures, tmp_path)
    loader = DataLoader(root, backbone=backbone, transform=transform, batch_size=1, on_error="skip")
    batches = list(loader)
    assert len(batches) == SAMPLES - 1
    assert (loader.stats.samples, loader.stats.failed_samples) == (SAMPLES - 1, 1)
    four = DataLoader(root, backbone=backbone, transform=transform, batch_size=4, on_error="skip")
    assert [len(labels) for _, labels in four] == [4, 4, 4, 3, 4, 4, 4, 4, 1]


def test_a_process_that_can_open_no_file_leaves_no_sample_out(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.open

    def refuse(path: object, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(".jpg"):
            raise OSError(errno.EMFILE, "Too many open files")
        return really(path, *args, **kwargs)  # type: ignore[arg-type]

    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4, on_error="skip")
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(local, "PATIENCE", RetryPolicy(attempts=2, first_seconds=0.0))
    with pytest.raises(StoreUnavailableError, match=r"Too many open files.*ulimit"):
        list(loader)
    assert loader.stats.failed_samples == 0


def broken_copy(pictures: Path, folder: Path) -> Path:
    for path in sorted(pictures.rglob("*.jpg")):
        target = folder / path.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        target.write_bytes(data[: len(data) // 2] if path.match("heron/03.jpg") else data)
    return folder


def test_pictures_of_different_sizes_are_named(pictures: Path, backbone: nn.Module) -> None:
    def odd(image):
        size = 16 if image.getpixel((0, 0))[2] < 120 else 17
        return v2.functional.to_dtype(v2.functional.to_image(image.resize((size, size))), torch.float32, scale=True)

    loader = DataLoader(pictures, backbone=backbone, transform=odd, batch_size=SAMPLES)
    with pytest.raises(SampleError, match="crop or resize"):
        list(loader)


def test_any_function_may_transform_here(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=lambda image: transform(image), batch_size=8)
    assert_same(list(loader), list(DataLoader(pictures, backbone=backbone, transform=transform, batch_size=8)))
    assert "not portable" in str(loader.plan)

    def fails(image):
        raise KeyError("colour")

    with pytest.raises(SampleError, match="KeyError: 'colour'"):
        list(DataLoader(pictures, backbone=backbone, transform=fails))
    with pytest.raises(SampleError, match="not a tensor"):
        list(DataLoader(pictures, backbone=backbone, transform=lambda image: image))


@pytest.mark.parametrize("engine", ["auto", "compiled"])
def test_a_wrapped_backbone_is_what_is_inside(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, engine: Any
) -> None:
    wrapped = torch.compile(nn.Sequential(nn.DataParallel(backbone)))
    loader = DataLoader(pictures, backbone=wrapped, transform=transform, batch_size=8, engine=engine)
    assert_same(list(loader), list(DataLoader(pictures, backbone=backbone, transform=transform, batch_size=8)))


def test_a_module_that_cannot_be_captured_runs_here(pictures: Path, transform: v2.Compose) -> None:
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    features, _ = next(iter(DataLoader(pictures, backbone=Undecided(), transform=transform, batch_size=3)))
    assert features.shape == (3, 3)


def test_custom_collate_gets_pairs(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    def collate(pairs: list[tuple[torch.Tensor, int]]) -> list:
        return [(tuple(feature.shape), label) for feature, label in pairs]

    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=2, collate_fn=collate)
    assert next(iter(loader)) == [((8,), 0), ((8,), 0)]


def test_without_batching_single_samples_come(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=None)
    feature, label = next(iter(loader))
    assert feature.shape == (8,)
    assert label.shape == ()
    assert len(loader) == SAMPLES


def test_samplers_may_repeat_samples(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=3, sampler=[5, 5, 32, 5, 0])
    (first, labels), (second, _) = list(loader)
    torch.testing.assert_close(first[0], first[1])
    torch.testing.assert_close(first[0], second[0])
    assert labels.tolist() == [0, 0, 2]


def test_several_outputs_come_as_a_tuple(pictures: Path, transform: v2.Compose) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.mean((2, 3)), x.amax((1, 2, 3))

    (mean, largest), labels = next(iter(DataLoader(pictures, backbone=Two(), transform=transform, batch_size=4)))
    assert (mean.shape, largest.shape, labels.shape) == ((4, 3), (4,), (4,))


def test_a_backbone_that_gives_no_tensor_is_named(pictures: Path, transform: v2.Compose) -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": x}

    with pytest.raises(InputError, match="answers a dict"):
        list(DataLoader(pictures, backbone=Named(), transform=transform))


def test_a_timeout_ends_the_wait(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    release = threading.Event()

    def slow(image):
        release.wait(30)
        return transform(image)

    loader = DataLoader(pictures, backbone=backbone, transform=slow, batch_size=4, timeout=0.05)
    iterator = iter(loader)
    threading.Timer(0.5, release.set).start()
    with pytest.raises(BatchTimeoutError, match=r"0\.05 s"):
        next(iterator)
    assert_no_threads()


def test_a_small_buffer_only_slows_down(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=16, buffer_bytes=1)
    assert_same(list(loader), list(DataLoader(pictures, backbone=backbone, transform=transform, batch_size=16)))


def test_ranks_read_shares_of_equal_length(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    loaders = [
        DataLoader(
            pictures,
            backbone=backbone,
            transform=transform,
            batch_size=4,
            shuffle=True,
            rank=rank,
            world_size=2,
        )
        for rank in range(2)
    ]
    assert [len(list(loader)) for loader in loaders] == [len(loader) for loader in loaders] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"worker_init_fn": print}, "worker processes"),
        ({"multiprocessing_context": "fork"}, "worker processes"),
        ({"pin_memory_device": "cuda"}, "device="),
        ({"on_error": "ignore"}, "on_error"),
        ({"rank": 1}, "belong together"),
        ({"pushdown": "all"}, "needs a storage server"),
        ({"pushdown": "layer3"}, "needs a storage server"),
        ({"codec": "int3"}, "int3"),
        ({"shuffle": True, "sampler": [1]}, "mutually exclusive"),
        ({"transform": None}, "no transform"),
        ({"backbone": 3}, "backbone is a int"),
        ({"device": "abacus"}, "abacus"),
        ({"requests_in_flight": 0}, "requests_in_flight"),
        ({"num_workers": -1}, "num_workers"),
        ({"server": "storage:8470"}, "http://"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, arguments: dict, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        DataLoader(pictures, **({"backbone": backbone, "transform": transform} | arguments))


def test_wrong_data_is_refused(tmp_path: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    with pytest.raises(ManifestError):
        DataLoader(tmp_path, backbone=backbone, transform=transform)
    with pytest.raises(InputError, match="pass its dataset instead, and indices="):
        DataLoader(Subset(list(CLASSES), [0]), backbone=backbone)
    with pytest.raises(InputError, match="data is a list"):
        DataLoader([1, 2], backbone=backbone, transform=transform)


def test_an_unportable_transform_needs_no_pushdown(backbone: nn.Module) -> None:
    from hapi.data import describe_transform

    with pytest.raises(TransformError):
        describe_transform(lambda image: image)


def test_ranks_come_from_torch_distributed_when_it_is_used(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4, shuffle=True)
    assert len(loader) == 9
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    read = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        loader.set_epoch(0)
        assert len(loader) == 3
        state = None
        for number, (indices, _, _) in enumerate(loader.indexed()):
            read += indices
            state = loader.state_dict() if number == 1 else state
    assert sorted(read) == list(range(SAMPLES))
    # what one rank saved does for another
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    loader.load_state_dict(state)
    assert len(list(loader)) == 1


def test_subsets_share_the_plan_and_count_together(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4)
    part = loader.subset([8, 3, 5], batch_size=2)
    assert [indices for indices, _, _ in part.indexed()] == [[8, 3], [5]]
    assert (len(part), part.plan, part.stats) == (2, loader.plan, loader.stats)
    assert len(loader) == 9
    assert [
        indices
        for indices, _, _ in DataLoader(
            pictures, backbone=backbone, transform=transform, batch_size=2, indices=[8, 3, 5]
        ).indexed()
    ] == [[8, 3], [5]]


def test_pinning_without_an_accelerator_warns(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="no accelerator"):
        loader = DataLoader(pictures, backbone=backbone, transform=transform, pin_memory=True)
    assert not loader.pin_memory


def test_a_child_process_connects_for_itself(pictures: Path, graph: Graph, transform: v2.Compose) -> None:
    from tests.compute_client.fake_server import FakeServer

    client = FakeServer(pictures, graph).client()
    assert client.register("x").samples == SAMPLES
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if client.register("x").samples == SAMPLES else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    client.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # that is what is tried here
def test_a_child_process_leaves_the_work_of_its_parent_alone(
    pictures: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4)
    iterator = iter(loader)
    next(iterator)
    broken_off: list[int] = []
    with iterator._run._pipeline._cancel.calling(lambda: broken_off.append(1)):  # as requests that are under way
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # instead of waiting for ever
            iterator.close()
            os._exit(len(broken_off))
        assert os.waitpid(child, 0)[1] == 0
        iterator.close()
    assert broken_off == [1]
