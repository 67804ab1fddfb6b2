"""hapi.prepare in PyTorch's transfer-learning recipe, and over loaders of every kind."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.optim as optim
import torchvision
from PIL import Image
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset, WeightedRandomSampler
from torchvision import datasets, models, transforms

import hapi
from compute_client.preparing import prepare
from hapi.errors import InputError, ManifestError
from tests.compute_client.fake_server import FakeServer

SIZE = 32


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that can be told apart, in folders train and val, as the recipe wants them."""
    root = tmp_path_factory.mktemp("hymenoptera")
    noise = np.random.default_rng(0)
    for phase, count in (("train", 9), ("val", 5)):
        for label, name in enumerate(("ants", "bees")):
            (root / phase / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (SIZE + 8, SIZE + 12, 3), np.uint8) // 2
                pixels[..., label] += 90
                Image.fromarray(pixels).save(root / phase / name / f"{number}.jpg", quality=92)
    return root


normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
augmented = transforms.Compose(
    [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
)
plain = transforms.Compose([transforms.Resize(SIZE + 4), transforms.CenterCrop(SIZE), transforms.ToTensor(), normalize])


# -- the recipe, as its users write it -----------------------------------------------------------------------


def train_model(
    model: nn.Module,
    dataloaders: Any,
    dataset_sizes: Any,
    criterion: Any,
    optimizer: Any,
    scheduler: Any,
    num_epochs: int,
) -> tuple[nn.Module, list[tuple[str, float, float]]]:
    since = time.time()
    device = torch.device("cpu")
    history = []
    best_model_wts = copy.deepcopy(model.state_dict())
    best_acc = 0.0

    for epoch in range(num_epochs):
        for phase in ["train", "val"]:
            if phase == "train":
                model.train()
            else:
                model.eval()

            running_loss = 0.0
            running_corrects: Any = 0

            for inputs, labels in dataloaders[phase]:
                inputs = inputs.to(device)
                labels = labels.to(device)

                optimizer.zero_grad()

                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    _, preds = torch.max(outputs, 1)
                    loss = criterion(outputs, labels)

                    if phase == "train":
                        loss.backward()
                        optimizer.step()

                running_loss += loss.item() * inputs.size(0)
                running_corrects += torch.sum(preds == labels.data)
            if phase == "train":
                scheduler.step()

            epoch_loss = running_loss / dataset_sizes[phase]
            epoch_acc = running_corrects.double() / dataset_sizes[phase]
            history.append((f"{epoch} {phase}", epoch_loss, float(epoch_acc)))

            if phase == "val" and epoch_acc > best_acc:
                best_acc = float(epoch_acc)
                best_model_wts = copy.deepcopy(model.state_dict())

    assert time.time() >= since
    model.load_state_dict(best_model_wts)
    return model, history


def recipe(
    data_dir: Path, data_transforms: dict[str, Any], server: Any = None, prepared: bool = True
) -> tuple[nn.Module, nn.Module, list[tuple[str, float, float]]]:
    """The recipe's main part; `prepared` adds HAPI's lines."""
    torch.manual_seed(0)
    image_datasets = {x: datasets.ImageFolder(str(data_dir / x), data_transforms[x]) for x in ["train", "val"]}
    dataloaders: Any = {
        x: DataLoader(image_datasets[x], batch_size=4, shuffle=True, num_workers=0) for x in ["train", "val"]
    }
    dataset_sizes = {x: len(image_datasets[x]) for x in ["train", "val"]}
    class_names = image_datasets["train"].classes

    model_conv = models.resnet18(weights=None)
    for param in model_conv.parameters():
        param.requires_grad = False
    num_ftrs = model_conv.fc.in_features
    model_conv.fc = nn.Linear(num_ftrs, len(class_names))

    criterion = nn.CrossEntropyLoss()
    optimizer_conv = optim.SGD(model_conv.fc.parameters(), lr=0.01, momentum=0.9)
    exp_lr_scheduler = lr_scheduler.StepLR(optimizer_conv, step_size=7, gamma=0.1)

    model: nn.Module = model_conv
    if prepared:
        for x in ["train", "val"]:
            dataloaders[x], model = hapi.prepare(dataloaders[x], model, **(server(x) if server else {}))
    else:
        keep_frozen_part_still(model_conv)
    torch.manual_seed(1)
    trained, history = train_model(
        model, dataloaders, dataset_sizes, criterion, optimizer_conv, exp_lr_scheduler, num_epochs=3
    )
    return model_conv, trained, history


def keep_frozen_part_still(model: nn.Module) -> None:
    """model.train() must not set the frozen BatchNorm layers learning, or features would follow the batches."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]


@pytest.mark.parametrize("tier", ["in process", "server"])
def test_the_recipe_gives_the_losses_it_gave_before(data_dir: Path, tier: str) -> None:
    still = {"train": plain, "val": plain}
    server = None
    if tier == "server":

        def server(phase: str) -> Any:
            return {"server": FakeServer(data_dir / phase).client(), "pushdown": "none"}

    model, _, expected = recipe(data_dir, still, prepared=False)
    mine, head, history = recipe(data_dir, still, server)

    assert [row[0] for row in history] == [row[0] for row in expected]
    for (_, loss, accuracy), (_, wanted, wanted_accuracy) in zip(history, expected, strict=True):
        assert loss == pytest.approx(wanted, abs=1e-4)
        assert accuracy == wanted_accuracy
    assert history[0][1] != pytest.approx(history[-2][1], abs=1e-3), "it trains"
    assert head.state_dict().keys() == {"fc.weight", "fc.bias"}
    torch.testing.assert_close(mine.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-5)


def test_the_recipe_with_augmentation_trains_and_repeats(data_dir: Path) -> None:
    shaken = {"train": augmented, "val": plain}
    _, _, first = recipe(data_dir, shaken)
    _, _, again = recipe(data_dir, shaken)
    _, _, still = recipe(data_dir, {"train": plain, "val": plain})
    assert first == again, "random transforms follow from torch.manual_seed"
    assert first != still


# -- loaders of every kind -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> datasets.ImageFolder:
    return datasets.ImageFolder(str(data_dir / "train"), plain)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()).requires_grad_(False)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def assert_same_epochs(loader: DataLoader, epochs: int = 2) -> hapi.DataLoader:
    """Prepared, `loader` yields the features of the batches that it yields itself."""
    model = Tiny().eval()
    torch.manual_seed(5)
    expected = [[(model(x), y) for x, y in loader] for _ in range(epochs)]
    features, head = prepare(loader, model)
    head.eval()
    torch.manual_seed(5)
    assert len(features) == len(loader)
    for wanted in expected:
        got = [(head(x), y) for x, y in features]
        assert len(got) == len(wanted)
        for (mine, labels), (theirs, their_labels) in zip(got, wanted, strict=True):
            assert torch.equal(labels, their_labels)
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    return features


def assert_batches(features: hapi.DataLoader, head: nn.Module, loader: DataLoader, model: nn.Module) -> None:
    """The head gives of an epoch of features what the model gives of one of pictures."""
    model.eval()
    expected = torch.cat([model(x) for x, _ in loader])
    head.eval()
    torch.testing.assert_close(torch.cat([head(x) for x, _ in features]), expected, rtol=1e-5, atol=1e-6)


def test_order_follows_the_loaders_own_arguments(folder: datasets.ImageFolder) -> None:
    assert_same_epochs(DataLoader(folder))
    assert_same_epochs(DataLoader(folder, 5, shuffle=True))
    assert_same_epochs(DataLoader(folder, 5, shuffle=True, drop_last=True))
    assert_same_epochs(DataLoader(folder, 4, sampler=WeightedRandomSampler([0.1, 0.9] * 9, 11)))
    assert_same_epochs(DataLoader(folder, batch_sampler=BatchSampler(RandomSampler(folder), 7, True)))


def test_a_generator_is_used_as_pytorch_uses_it(folder: datasets.ImageFolder) -> None:
    def batches(loader: Any) -> list[list[int]]:
        return [labels.tolist() for _ in range(2) for _, labels in loader]

    expected = batches(DataLoader(folder, 4, shuffle=True, generator=torch.Generator().manual_seed(3)))
    loader = DataLoader(folder, 4, shuffle=True, generator=torch.Generator().manual_seed(3))
    features, _ = prepare(loader, Tiny())
    assert batches(features) == expected
    assert features.seed == 3


def test_subsets_are_read_by_their_indices(folder: datasets.ImageFolder) -> None:
    parts = torch.utils.data.random_split(folder, [11, 7], torch.Generator().manual_seed(0))
    for part in parts:
        assert_same_epochs(DataLoader(part, 3, shuffle=True))
    assert_same_epochs(DataLoader(Subset(Subset(folder, range(0, 18, 2)), [8, 1, 3]), 2))
    assert_same_epochs(DataLoader(parts[0], batch_sampler=BatchSampler(RandomSampler(parts[0]), 4, False)))


def test_collate_fn_and_single_samples(folder: datasets.ImageFolder) -> None:
    features, _ = prepare(DataLoader(folder, 4, collate_fn=lambda items: [label for _, label in items]), Tiny())
    assert next(iter(features)) == [0, 0, 0, 0]
    single, _ = prepare(DataLoader(folder, batch_size=None), Tiny())
    sample, label = next(iter(single))
    assert sample.shape == (4,)
    assert label == 0


def test_all_phases_share_one_head(folder: datasets.ImageFolder) -> None:
    model = Tiny()
    _, head = prepare(DataLoader(folder), model)
    assert prepare(DataLoader(folder, 2), model)[1] is head
    assert prepare(DataLoader(folder, 2), head)[1] is head
    assert head.fc is model.fc
    model.body[0].requires_grad_(True)
    model.body[1].requires_grad_(True)
    with pytest.raises(InputError, match="every parameter"):
        prepare(DataLoader(folder), model)
    with pytest.raises(InputError, match="is a copy"):
        prepare(DataLoader(folder), copy.deepcopy(head))
    with pytest.raises(InputError, match="begins after None, not 'body'"):
        prepare(DataLoader(folder), head, at="body")


def test_a_wrapped_model_is_what_is_inside(folder: datasets.ImageFolder) -> None:
    model = Tiny()
    model.body = torch.compile(model.body)
    wrapped = torch.compile(nn.DataParallel(model))
    features, head = prepare(DataLoader(folder, 4), wrapped)
    assert head.fc is model.fc
    assert_batches(features, head, DataLoader(folder, 4), Tiny())
    assert prepare(DataLoader(folder, 2), wrapped)[1] is head
    assert prepare(DataLoader(folder, 2), model)[1] is head
    compiled = torch.compile(head, backend="eager")
    features, again = prepare(DataLoader(folder, 2), compiled)
    assert again is compiled, "a head stays wrapped as it was"
    assert_batches(features, again, DataLoader(folder, 2), Tiny())


def test_a_model_that_was_changed_is_divided_anew(folder: datasets.ImageFolder) -> None:
    model = Tiny()
    _, head = prepare(DataLoader(folder), model)
    model.fc = nn.Linear(4, 3)
    _, other = prepare(DataLoader(folder), model)
    assert other is not head
    assert other.fc is model.fc
    del model.body
    model.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()).requires_grad_(False)
    features, head = prepare(DataLoader(folder, 3), model)
    assert_batches(features, head, DataLoader(folder, 3), model)


def test_at_and_options_are_handed_on(folder: datasets.ImageFolder) -> None:
    features, head = prepare(DataLoader(folder, 6), Tiny(), at="body", seed=9)
    assert next(iter(features))[0].shape == (6, 4, 15, 15)
    assert features.seed == 9
    assert head(torch.zeros(2, 4, 15, 15)).shape == (2, 2)


# -- the same files elsewhere --------------------------------------------------------------------------------


def test_data_names_where_the_same_files_lie(data_dir: Path, folder: datasets.ImageFolder) -> None:
    model = Tiny()
    graph = hapi.capture(hapi.split(model, example=torch.zeros(2, 3, SIZE, SIZE))[0], torch.zeros(2, 3, SIZE, SIZE))
    server = FakeServer(data_dir / "train", graph)
    loader = DataLoader(folder, 5, shuffle=True, generator=torch.Generator().manual_seed(0))
    features, head = prepare(loader, model, server.client(), data="s3://photos/train", pushdown="all")
    got = torch.cat([head.eval()(x) for x, _ in features])
    loader = DataLoader(folder, 5, shuffle=True, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(got, torch.cat([model.eval()(x) for x, _ in loader]), rtol=1e-5, atol=1e-6)
    assert server.requests


def test_other_files_are_refused(data_dir: Path, folder: datasets.ImageFolder) -> None:
    server = FakeServer(data_dir / "val")
    with pytest.raises(ManifestError, match="10 samples there, 18 here"):
        prepare(DataLoader(folder), Tiny(), server.client(), data="s3://photos/val")


# -- what cannot be taken over -------------------------------------------------------------------------------


class WithPaths(datasets.ImageFolder):
    def __getitem__(self, index: int) -> Any:
        return (*super().__getitem__(index), self.samples[index][0])


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_errors_say_what_to_do(data_dir: Path, folder: datasets.ImageFolder) -> None:
    root = str(data_dir / "train")
    for dataset, words in [
        (TensorDataset(torch.zeros(3, 1)), "TensorDataset, not a torchvision ImageFolder.*hapi.DataLoader"),
        (Stream(), "Stream, not a torchvision ImageFolder"),
        (WithPaths(root, plain), "WithPaths.*__getitem__ of its own"),
        (datasets.ImageFolder(root), "no transform"),
        (datasets.ImageFolder(root, transforms.Resize(8)), "gives a Image, not a tensor"),
        (datasets.ImageFolder(root, plain, target_transform=str), "target_transform"),
        (datasets.ImageFolder(root, plain, loader=Image.open), "loader of its own"),
        (datasets.ImageFolder(root, plain, is_valid_file=lambda path: path.endswith("1.jpg")), "its own rule"),
    ]:
        with pytest.raises(InputError, match=words):
            prepare(DataLoader(dataset), Tiny())
    with pytest.raises(InputError, match="list is not a torch"):
        prepare([1, 2], Tiny())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="str is not a torch"):
        prepare(DataLoader(folder), "resnet18")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no parameter requires gradients"):
        prepare(DataLoader(folder), torchvision.models.resnet18().requires_grad_(False))


def test_worker_processes_have_nothing_to_do(folder: datasets.ImageFolder) -> None:
    loader = DataLoader(folder, 6, num_workers=2, worker_init_fn=print, persistent_workers=True)
    with pytest.warns(UserWarning, match="worker_init_fn has nothing to do"):
        features, _ = prepare(loader, Tiny())
    assert features.num_workers == 2
    assert sum(len(y) for _, y in features) == 18
