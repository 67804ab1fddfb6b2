"""Synthetic pictures are deterministic, look like photographs to a statistician, and can be told apart by a machine."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from hapi.data import build_manifest, decode_image, describe_transform, load_sample
from hapi.data.stores import LocalStore
from hapi.data.synth import MAX_CLASSES, look, looks, synth_image, synth_key
from hapi.data.transfer import put_pictures
from hapi.errors import InputError

SMALL = (160, 120)


@pytest.fixture(scope="module")
def pictures() -> list[tuple[str, bytes]]:
    return [synth_image(index, 5, 0) for index in range(20)]


def test_the_same_arguments_give_the_same_bytes_and_others_do_not() -> None:
    first = synth_image(3, 5, 7, SMALL)
    assert synth_image(3, 5, 7, SMALL) == first
    assert synth_image(3, 5, 8, SMALL)[0] == first[0]
    others = [synth_image(4, 5, 7, SMALL), synth_image(3, 5, 8, SMALL), synth_image(8, 5, 7, SMALL)]
    assert len({first[1], *(data for _, data in others)}) == 4


def test_a_class_is_the_same_whatever_the_seed_and_the_number_of_classes() -> None:
    assert [kind.name for kind in looks(5)] == [look(number).name for number in range(5)]
    assert synth_image(2, 5, 0, SMALL)[0] == synth_image(2, 9, 4, SMALL)[0] == look(2).name
    assert len({look(number).name for number in range(MAX_CLASSES)}) == MAX_CLASSES


def test_sizes_and_bytes_are_those_of_a_photo_collection(pictures: list[tuple[str, bytes]]) -> None:
    sizes = [decode_image(data).size for _, data in pictures]
    assert len(set(sizes)) > 5
    assert sum(height > width for width, height in sizes) == 5
    assert all(max(size) <= 500 and max(size) >= 450 for size in sizes)
    assert 80_000 < np.mean([len(data) for _, data in pictures]) < 130_000


def test_the_spectrum_falls_with_frequency_as_that_of_photographs(pictures: list[tuple[str, bytes]]) -> None:
    """Amplitude ~ 1/f (Field, 1987): photographs have slopes of -0.8 to -1.5 in a log-log plot, noise has 0."""
    slopes = []
    for _, data in pictures:
        side = 256
        grey = np.asarray(decode_image(data).convert("L").resize((side, side)), np.float64)
        window = np.hanning(side)
        amplitude = np.abs(np.fft.fft2((grey - grey.mean()) * window * window[:, None]))
        f = np.fft.fftfreq(side) * side
        radius = np.hypot(f, f[:, None])
        bands = 2.0 ** np.arange(1.5, 6.5, 0.5)
        means = [amplitude[(radius >= low) & (radius < low * 2**0.5)].mean() for low in bands]
        slopes.append(np.polyfit(np.log(bands), np.log(means), 1)[0])
    assert -1.5 < np.mean(slopes) < -0.8


def ridge_accuracy(features: torch.Tensor, labels: torch.Tensor, train: int) -> float:
    """A linear probe: ridge regression on the first `train` rows, accuracy on the others."""
    scaled = (features - features[:train].mean(0)) / (features[:train].std(0) + 1e-6)
    x = torch.cat([scaled, torch.ones(len(scaled), 1)], dim=1).double()
    y = torch.nn.functional.one_hot(labels).double()
    gram = x[:train].T @ x[:train] + 0.1 * x.shape[1] * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x[:train].T @ y[:train])
    return float(((x[train:] @ weights).argmax(1) == labels[train:]).float().mean())


def test_classes_can_be_learned_from_simple_features_but_are_not_obvious() -> None:
    labels = torch.arange(200) % 5
    thumbs = []
    for index in range(200):
        image = Image.open(io.BytesIO(synth_image(index, 5, 1, SMALL)[1])).resize((4, 4), Image.Resampling.BOX)
        thumbs.append(torch.from_numpy(np.asarray(image, np.float32).copy()).flatten())
    assert 0.35 < ridge_accuracy(torch.stack(thumbs), labels, 130) < 0.9


@pytest.mark.shared_data
def test_a_pretrained_network_learns_them_well(shared_data: Path) -> None:
    from safetensors.torch import load_file

    network = models.mobilenet_v2()
    network.load_state_dict(load_file(shared_data / "weights" / "mobilenet_v2.safetensors"))
    network.classifier = torch.nn.Identity()
    spec = describe_transform(models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms())
    images = torch.stack([load_sample(synth_image(index, 5, 2, (320, 240))[1], spec) for index in range(90)])
    with torch.inference_mode():
        features = torch.cat([network.eval()(batch) for batch in images.split(15)])
    assert ridge_accuracy(features, torch.arange(90) % 5, 60) > 0.9


def test_pictures_in_a_store_are_a_dataset(tmp_path: Path) -> None:
    seen: list[int] = []
    done = put_pictures(LocalStore(tmp_path), 12, classes=3, seed=4, size=SMALL, progress=seen.append)
    manifest = build_manifest(tmp_path)
    assert len(manifest) == done.sent == len(seen) == 12
    assert manifest.total_bytes == done.bytes == sum(seen)
    assert list(manifest.classes) == sorted(kind.name for kind in looks(3))
    assert manifest.labels is not None
    assert np.bincount(manifest.labels).tolist() == [4, 4, 4]
    name, data = synth_image(7, 3, 4, SMALL)
    assert (tmp_path / synth_key(7, name)).read_bytes() == data


@pytest.mark.parametrize(("classes", "size"), [(0, SMALL), (MAX_CLASSES + 1, SMALL), (5, (8, 100)), (5, (9999, 100))])
def test_impossible_pictures_are_refused(classes: int, size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="classes|sides"):  # noqa: RUF043
        put_pictures(LocalStore(tmp_path), 3, classes=classes, size=size)
    assert list(tmp_path.iterdir()) == []
