"""Training follows its written rules: a plain PyTorch loop that applies them gives the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from compute_client import DataLoader, HeadTrainer, load_head
from compute_client.head import build_head
from compute_client.train import split_indices
from hapi.errors import InputError
from hapi.plan import Plan
from tests.compute_client.conftest import CLASSES, SAMPLES
from tests.compute_client.test_loader_local import broken_copy, features_of

SEED = 6


def loader_of(pictures: Path, backbone: nn.Module, transform: object, **arguments: object) -> DataLoader:
    return DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4, seed=SEED, **arguments)


def plain_training(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, epochs: int, mlp: bool, adam: bool
) -> tuple[list[float], list[float]]:
    """The rules of HeadTrainer's docstring, written with nothing but PyTorch."""
    dataset = ImageFolder(str(pictures), transform)
    held_out = round(len(dataset) * 0.2)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(SEED)).tolist()
    training = Subset(dataset, sorted(order[held_out:]))
    validation = Subset(dataset, sorted(order[:held_out]))
    torch.manual_seed(SEED)
    head: nn.Module = nn.Linear(8, 3)
    if mlp:
        torch.manual_seed(SEED)
        head = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 3))
    optimizer: torch.optim.Optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
    if adam:
        optimizer = torch.optim.Adam(head.parameters(), lr=0.001)
    losses, accuracies = [], []
    batches = TorchLoader(training, 4, shuffle=True, generator=torch.Generator().manual_seed(SEED))
    for _ in range(epochs):
        total = 0.0
        for images, labels in batches:
            loss = nn.functional.cross_entropy(head(features_of(backbone, images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        losses.append(total / len(training))
        with torch.no_grad():
            right = sum(
                (head(features_of(backbone, images)).argmax(1) == labels).sum().item()
                for images, labels in TorchLoader(validation, 4)
            )
        accuracies.append(right / len(validation))
    return losses, accuracies


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_training_equals_a_plain_loop(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, mlp: bool, adam: bool
) -> None:
    losses, accuracies = plain_training(pictures, backbone, transform, 3, mlp, adam)
    trainer = HeadTrainer(
        loader_of(pictures, backbone, transform),
        epochs=3,
        head="mlp" if mlp else "linear",
        optimizer="adam" if adam else "sgd",
    )
    result = trainer.fit()
    assert result.losses == pytest.approx(losses, abs=1e-5)
    assert result.accuracies == pytest.approx(accuracies)
    assert (result.final_loss, result.accuracy) == (result.losses[-1], result.accuracies[-1])
    assert (result.samples, result.train_samples, result.val_samples) == (SAMPLES, 26, 7)
    assert result.classes == list(CLASSES)
    assert len(result.epoch_seconds) == 3
    assert sum(result.epoch_seconds) <= result.seconds
    assert result.peak_rss_bytes > 2**20
    json.dumps(result.to_json(), allow_nan=False)


def test_training_again_gives_the_same(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    trainer = HeadTrainer(loader_of(pictures, backbone, transform), epochs=2)
    first = trainer.fit()
    assert trainer.fit().losses == first.losses
    other = HeadTrainer(DataLoader(pictures, backbone=backbone, transform=transform, batch_size=4, seed=1), epochs=2)
    assert other.fit().losses != first.losses


def test_building_a_head_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two = (build_head("linear", (8,), 3, seed=5) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.weight, two.weight)


def test_features_are_computed_once_unless_they_change(
    pictures: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    loader = loader_of(pictures, backbone, transform)
    assert HeadTrainer(loader, epochs=3).fit().cached_samples == 2 * (26 + 7)
    assert loader.stats.samples_by_cut == {"input": 26 + 7}
    random = v2.Compose([v2.RandomResizedCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    loader = loader_of(pictures, backbone, random)
    assert HeadTrainer(loader, epochs=3).fit().cached_samples == 0
    assert loader.stats.samples_by_cut == {"input": 3 * (26 + 7)}


def test_everything_can_be_trained_on(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    result = HeadTrainer(loader_of(pictures, backbone, transform), epochs=1, val_split=0).fit()
    assert (result.train_samples, result.val_samples, result.accuracy) == (SAMPLES, 0, None)


def test_progress_is_told(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    class Notes(list):
        def begins(self, plan: Plan) -> None:
            self.append(plan.policy)

        def epoch_begins(self, epoch: int, batches: int) -> None:
            self.append((epoch, batches))

        def batch_done(self, epoch: int, loss: float, samples: int) -> None:
            self.append(samples)

        def epoch_done(self, epoch: int, loss: float, accuracy: float | None, seconds: float) -> None:
            self.append(loss)

    notes = Notes()
    result = HeadTrainer(loader_of(pictures, backbone, transform), epochs=1).fit(notes)
    assert notes == ["none", (0, 7), 4, 8, 12, 16, 20, 24, 26, result.final_loss]


def test_a_saved_head_gives_the_same_logits(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, tmp_path: Path
) -> None:
    trainer = HeadTrainer(loader_of(pictures, backbone, transform), epochs=1, head="mlp", hidden=5)
    with pytest.raises(InputError, match="fit"):
        trainer.save(tmp_path / "head.safetensors")
    trainer.fit()
    trainer.save(tmp_path / "head.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", "head.safetensors"]
    head, description = load_head(tmp_path / "head.safetensors")
    features = torch.randn(2, 8)
    assert torch.equal(head(features), trainer.head(features))
    assert (description["classes"], description["head"]) == (list(CLASSES), "mlp")
    assert description["transform"][0]["name"]
    description["hidden"] = 6
    (tmp_path / "head.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="do not belong together"):
        load_head(tmp_path / "head.safetensors")
    (tmp_path / "head.json").write_text("{")
    with pytest.raises(InputError):
        load_head(tmp_path / "head.safetensors")


def test_skipped_samples_are_counted(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, tmp_path: Path
) -> None:
    loader = loader_of(broken_copy(pictures, tmp_path), backbone, transform, on_error="skip")
    assert HeadTrainer(loader, epochs=2, val_split=0).fit().failed_samples == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"optimizer": "lbfgs"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"val_split": 1.0},
        {"val_split": -0.1},
        {"val_split": 0.99},
        {"weight_decay": -1},
    ],
)
def test_impossible_training_is_refused(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, arguments: dict
) -> None:
    with pytest.raises(InputError):
        HeadTrainer(loader_of(pictures, backbone, transform), **arguments)


def test_a_head_of_no_known_kind_is_refused(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    with pytest.raises(InputError, match="linear"):
        HeadTrainer(loader_of(pictures, backbone, transform), head="transformer")


def test_pictures_without_labels_are_refused(
    pictures: Path, backbone: nn.Module, transform: v2.Compose, tmp_path: Path
) -> None:
    (tmp_path / "one.jpg").write_bytes((pictures / "ibis" / "00.jpg").read_bytes())
    with pytest.raises(InputError, match=r"no labels.*column 'label'"):
        HeadTrainer(loader_of(tmp_path, backbone, transform))


@pytest.mark.parametrize("samples", [1, 10, 33])
def test_a_split_is_a_partition(samples: int) -> None:
    training, validation = split_indices(samples, 0.3, 0)
    assert sorted(training + validation) == list(range(samples))
    assert len(validation) == round(samples * 0.3)
    assert (training, validation) == (sorted(training), sorted(validation))
