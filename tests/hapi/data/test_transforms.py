"""A described transform gives the bits of the torchvision pipeline that it was read from."""

from __future__ import annotations

import io
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision import transforms as classic
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from hapi.data import (
    TransformSpec,
    build_manifest,
    describe_transform,
    load_sample,
    open_store,
    read_sample,
    sample_seed,
)
from hapi.data.transforms.steps import KINDS
from hapi.errors import ImageError, TransformError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_FLOAT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
JSON_TO_FLOAT = [{"name": "ToImage"}, {"name": "ToDtype", "args": {"dtype": "float32", "scale": True}}]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with grain: every interpolation and colour operation has something to do."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / (7 + 3 * c) + seed) + np.cos(y / (5 + 2 * c)) for c in range(3)], axis=-1)
    grain = np.random.default_rng(seed).normal(0, 0.2, (height, width, 3))
    return Image.fromarray(np.uint8(np.clip((waves + grain) * 60 + 128, 0, 255)))


PICTURES = [picture(320, 213), picture(180, 333, seed=1), picture(97, 90, seed=2)]


def local(transform: Any, image: Image.Image, seed: int = 0, epoch: int = 0, index: int = 0) -> torch.Tensor:
    """What a user gets who seeds torch and calls the transform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sample_seed(seed, epoch, index))
        return torch.as_tensor(transform(image))


DETERMINISTIC: dict[str, Any] = {
    "v2": v2.Compose([v2.Resize(72), v2.CenterCrop(64), *TO_FLOAT, v2.Normalize(MEAN, STD)]),
    "v2-tensor-first": v2.Compose([v2.ToImage(), v2.Resize((64, 80)), v2.ToDtype(torch.float32, scale=True)]),
    "v2-no-antialias": v2.Compose([v2.PILToTensor(), v2.Resize(50, antialias=False), v2.ConvertImageDtype()]),
    "v2-nested": v2.Compose([v2.Compose([v2.Resize(40)]), nn.Sequential(v2.Pad((2, 3), fill=7)), *TO_FLOAT]),
    "v2-gray": v2.Compose([v2.Grayscale(3), *TO_FLOAT, v2.ToPureTensor()]),
    "v2-max-size": v2.Compose([v2.Resize(60, max_size=70), *TO_FLOAT]),
    "v2-enlarging-crop": v2.Compose([v2.CenterCrop((301, 150)), *TO_FLOAT]),
    "classic": classic.Compose(
        [classic.Resize(72), classic.CenterCrop(64), classic.ToTensor(), classic.Normalize(MEAN, STD)]
    ),
    "classic-dtype": classic.Compose([classic.PILToTensor(), classic.ConvertImageDtype(torch.float32)]),
    "classic-tensor-resize": classic.Compose([classic.ToTensor(), classic.Resize((64, 72), antialias=True)]),
    "classic-alone": classic.ToTensor(),
    "mixed": v2.Compose([classic.Resize(50), v2.CenterCrop(48), classic.ToTensor(), v2.Normalize(MEAN, STD)]),
    **{
        f"interpolation-{mode.value}": v2.Compose([v2.Resize(64, interpolation=mode), *TO_FLOAT])
        for mode in InterpolationMode
    },
    "interpolation-pillow-number": v2.Compose([v2.Resize(64, interpolation=Image.Resampling.BICUBIC), *TO_FLOAT]),
    **{
        name: weights.transforms()
        for name, weights in {
            "preset-resnet18": models.ResNet18_Weights.DEFAULT,
            "preset-vit": models.ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1,
            "preset-efficientnet": models.EfficientNet_B0_Weights.DEFAULT,
            "preset-swin": models.Swin_T_Weights.DEFAULT,
            "preset-inception": models.Inception_V3_Weights.DEFAULT,
        }.items()
    },
}


def with_tail(*steps: Any) -> v2.Compose:
    return v2.Compose([*steps, *TO_FLOAT])


RANDOM: dict[str, Any] = {
    "crop-flip": v2.Compose([v2.RandomResizedCrop(64), v2.RandomHorizontalFlip(), *TO_FLOAT, v2.Normalize(MEAN, STD)]),
    "crop-padded": with_tail(v2.RandomCrop(96, padding=(1, 2, 3, 4), pad_if_needed=True, fill=(9, 8, 7))),
    "vertical-flip": with_tail(v2.RandomVerticalFlip(0.5)),
    "jitter": with_tail(v2.ColorJitter(0.4, 0.4, (0.5, 1.5), 0.1)),
    "gray-blur": with_tail(v2.RandomGrayscale(0.5), v2.GaussianBlur(5, sigma=(0.1, 2.0))),
    "simclr": with_tail(v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.5), v2.RandomGrayscale(0.2)),
    "rotation": with_tail(v2.RandomRotation(30, interpolation=InterpolationMode.BILINEAR, expand=True, fill=128)),
    "affine": with_tail(v2.RandomAffine(20, translate=(0.1, 0.2), scale=(0.8, 1.2), shear=(-5, 5, -3, 3))),
    "perspective": with_tail(v2.RandomPerspective(0.4, p=0.7)),
    "photometric": with_tail(
        v2.RandomInvert(), v2.RandomPosterize(3), v2.RandomSolarize(100.0), v2.RandomAutocontrast(),
        v2.RandomEqualize(), v2.RandomAdjustSharpness(2.0),
    ),
    "trivial": with_tail(v2.TrivialAugmentWide()),
    "rand-augment": with_tail(v2.RandAugment(num_ops=3, magnitude=12)),
    "auto-augment": with_tail(v2.AutoAugment()),
    "erasing": v2.Compose([*TO_FLOAT, v2.RandomErasing(p=0.7, value="random")]),
    "erasing-value": v2.Compose([*TO_FLOAT, v2.RandomErasing(p=0.9, value=(0.1, 0.2, 0.3))]),
    "tensor-jitter": v2.Compose([*TO_FLOAT, v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomResizedCrop(48)]),
    "classic": classic.Compose(
        [
            classic.RandomResizedCrop(64), classic.RandomHorizontalFlip(), classic.ColorJitter(0.3, 0.3, 0.3),
            classic.RandomRotation(15), classic.ToTensor(), classic.Normalize(MEAN, STD), classic.RandomErasing(0.5),
        ]
    ),
    "classic-augment": classic.Compose(
        [
            classic.RandomCrop(80, padding=[4, 6], pad_if_needed=True), classic.RandomAffine(10, shear=5),
            classic.RandomApply([classic.GaussianBlur(3)], p=0.5), classic.RandAugment(), classic.ToTensor(),
        ]
    ),
}  # fmt: skip
ALL = {**DETERMINISTIC, **RANDOM}


@pytest.mark.parametrize("name", ALL)
def test_gives_the_bits_of_the_local_pipeline(name: str) -> None:
    transform, spec = ALL[name], describe_transform(ALL[name])
    assert spec.is_random is (name in RANDOM)
    again = TransformSpec.from_json(spec.to_json())
    assert again.to_json() == spec.to_json()
    assert again.digest == spec.digest
    for index, image in enumerate(PICTURES):
        for epoch in range(3 if spec.is_random else 1):
            place = {"seed": 5, "epoch": epoch, "index": index}
            expected = local(transform, image, **place)
            for made in (spec(image, **place), again(image, **place)):
                assert made.dtype == torch.float32
                assert type(made) is torch.Tensor
                assert made.is_contiguous()
                assert torch.equal(made, expected)


@pytest.mark.parametrize("name", RANDOM)
def test_random_draws_come_from_seed_epoch_and_index_alone(name: str) -> None:
    spec = describe_transform(RANDOM[name])
    image = PICTURES[0]
    first = spec(image, seed=1, epoch=2, index=3)
    torch.manual_seed(99)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    torch.rand(7)
    torch.set_rng_state(states[0])
    assert torch.equal(spec(image, seed=1, epoch=2, index=3), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tobytes() == states[2]
    others = [spec(image, seed=1, epoch=e, index=i) for e, i in ((2, 4), (3, 3), (5, 5), (0, 0), (7, 1), (8, 9))]
    assert any(other.shape != first.shape or not torch.equal(other, first) for other in others)


@pytest.mark.parametrize("name", ["crop-flip", "erasing", "classic"])
def test_another_default_device_changes_nothing(name: str) -> None:
    spec = describe_transform(RANDOM[name])
    expected = spec(PICTURES[0], seed=1)
    torch.set_default_device("meta")
    try:
        made = spec(PICTURES[0], seed=1)
    finally:
        torch.set_default_device(None)
    assert torch.equal(made, expected)


def test_random_transforms_are_equal_in_any_thread_and_order() -> None:
    spec = describe_transform(RANDOM["classic"])
    image = PICTURES[0]
    alone = [spec(image, seed=3, epoch=1, index=index) for index in range(24)]
    start = threading.Barrier(4)

    def work(indices: list[int]) -> dict[int, torch.Tensor]:
        start.wait()
        return {index: spec(image, seed=3, epoch=1, index=index) for index in indices}

    orders = [list(range(24)), list(reversed(range(24))), list(range(0, 24, 2)), list(range(1, 24, 2))]
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(work, orders):
            assert all(torch.equal(tensor, alone[index]) for index, tensor in made.items())


def test_another_thread_keeps_the_global_generator_while_a_sample_is_drawn() -> None:
    spec = describe_transform(RANDOM["simclr"])
    torch.manual_seed(11)
    expected = torch.rand(2000)
    torch.manual_seed(11)
    stop = threading.Event()

    def work() -> None:
        index = 0
        while not stop.is_set():
            spec(PICTURES[2], index=index)
            index += 1

    thread = threading.Thread(target=work)
    thread.start()
    drawn = torch.cat([torch.rand(20) for _ in range(100)])
    stop.set()
    thread.join()
    assert torch.equal(drawn, expected)


def test_sample_seeds_are_pinned_because_features_are_kept_under_them() -> None:
    assert sample_seed(0, 0, 0) == 4722993954564534302
    assert len({sample_seed(s, e, i) for s in range(3) for e in range(3) for i in range(100)}) == 900
    assert all(0 <= sample_seed(2**62, 0, i) < 2**63 for i in range(100))


def test_pickles_and_compares_by_content() -> None:
    spec = describe_transform(RANDOM["crop-flip"])
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301
    assert spec != describe_transform(RANDOM["simclr"])
    assert describe_transform(spec) is spec
    assert describe_transform(spec.to_json()) == spec
    assert TransformSpec.from_json([{"name": "Resize", "args": {"size": 256}}]) == TransformSpec.from_json(
        [{"name": "Resize", "args": {"size": [256], "antialias": True, "interpolation": "bilinear", "max_size": None}}]
    )


IN_RANDOM_APPLY = {"name": "RandomApply", "args": {"transforms": [{"name": "Pad", "args": {"padding": 99}}] * 9}}


def test_a_transform_changed_later_does_not_change_its_description() -> None:
    resize = v2.Resize(40)
    spec = describe_transform(with_tail(resize))
    resize.size = [20]
    assert min(spec(PICTURES[0]).shape[1:]) == 40


class Brighter(v2.Transform):
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return inpt


class MyResize(v2.Resize):
    """A subclass may do anything."""


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        (v2.Compose([v2.Lambda(lambda image: image), *TO_FLOAT]), "Lambda"),
        (v2.Compose([v2.FiveCrop(8), *TO_FLOAT]), "FiveCrop is not portable; torchvision's that are: .*CenterCrop, "),
        (v2.Compose([Brighter(), *TO_FLOAT]), "Brighter"),
        (v2.Compose([MyResize(8), *TO_FLOAT]), "MyResize"),
        (with_tail(v2.RandomApply([Brighter()])), "Brighter"),
        (lambda image: image, "<lambda>"),
        (v2.Compose([v2.Resize(8), np.asarray]), "asarray"),
        (None, "NoneType"),
        (models.ResNet18_Weights.DEFAULT.transforms, "partial"),
        (with_tail(v2.Pad(1, fill={torch.Tensor: 3})), "fill"),
        (classic.Compose([classic.RandomChoice([classic.Pad(1)]), classic.ToTensor()]), "RandomChoice"),
    ],
)
def test_what_is_not_portable_is_named_with_the_way_out(transform: Any, named: str) -> None:
    with pytest.raises(TransformError, match=named) as caught:
        describe_transform(transform)
    assert 'pushdown="none"' in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Compose([v2.Resize(8)]), "ends with an image"),
        (v2.Compose([v2.ToImage()]), "ends with uint8"),
        (v2.Compose([v2.ToImage(), v2.Normalize(MEAN, STD)]), "Normalize is given uint8"),
        (v2.Compose([v2.Normalize(MEAN, STD), *TO_FLOAT]), "Normalize is given an image"),
    ],
)
def test_a_pipeline_without_a_float_tensor_is_refused_before_any_sample(transform: Any, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        describe_transform(transform)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        "Resize",
        [],
        ["Resize"],
        [{"name": "os.system", "args": {}}],
        [{"name": "__class__"}],
        [{"name": "Lambda", "args": {"lambd": "x"}}],
        [{"name": ["Resize"], "args": {}}],
        [{"name": "Resize", "args": [1]}],
        [{"name": "Resize", "args": {"size": 8}, "extra": 1}],
        [{"name": "Resize", "args": {}}],
        [{"name": "Resize", "args": {"size": 8, "colour": 1}}],
        [{"name": "Resize", "args": {"size": "8"}}],
        [{"name": "Resize", "args": {"size": True}}],
        [{"name": "Resize", "args": {"size": 8.5}}],
        [{"name": "Resize", "args": {"size": 0}}],
        [{"name": "Resize", "args": {"size": 10**6}}],
        [{"name": "Resize", "args": {"size": [8, 10**6]}}],
        [{"name": "Resize", "args": {"size": [8, 8, 8]}}],
        [{"name": "Resize", "args": {"size": 8, "interpolation": "magic"}}],
        [{"name": "Resize", "args": {"size": 8, "interpolation": 99}}],
        [{"name": "Pad", "args": {"padding": 10**5}}],
        [{"name": "RandomHorizontalFlip", "args": {"p": 1.5}}],
        [{"name": "RandomHorizontalFlip", "args": {"p": float("nan")}}],
        [{"name": "Normalize", "args": {"mean": [0.0] * 100, "std": [1.0] * 100}}],
        [{"name": "GaussianBlur", "args": {"kernel_size": 4}}],
        [{"name": "GaussianBlur", "args": {"kernel_size": 99999}}],
        [{"name": "ToDtype", "args": {"dtype": "object"}}],
        [{"name": "RandomApply", "args": {"transforms": []}}],
        [{"name": "RandomApply", "args": {"transforms": [{"name": "RandomApply", "args": {"transforms": [
            {"name": "RandomVerticalFlip"}]}}]}}],
        [{"name": "ToImage"}] * 65,
    ],
)  # fmt: skip
def test_from_json_refuses_what_is_unknown_malformed_or_excessive(document: Any) -> None:
    with pytest.raises(TransformError):
        TransformSpec.from_json(document)


@pytest.mark.parametrize(
    ("size", "steps"),
    [
        ((1, 60_000), [{"name": "Resize", "args": {"size": 4096}}]),
        ((60_000, 1), [{"name": "classic.Resize", "args": {"size": 4096}}]),
        ((30_000, 2), [{"name": "RandomRotation", "args": {"degrees": 45, "expand": True}}]),
        ((40_000, 1), [{"name": "Pad", "args": {"padding": 4096}}]),
        ((40_000, 1), [{"name": "RandomCrop", "args": {"size": 4096, "pad_if_needed": True}}]),
        (
            (9_000, 9_000),
            [{"name": "RandomApply", "args": {"transforms": [{"name": "Pad", "args": {"padding": 999}}]}}],
        ),
        ((40_000, 1), [{"name": "CenterCrop", "args": {"size": 4096}}]),
        ((60_000, 1), [{"name": "hf.CenterCrop", "args": {"height": 4096, "width": 1, "rounding": "ceil"}}]),
    ],
)
def test_no_image_makes_a_step_fill_the_memory(size: tuple[int, int], steps: list[dict[str, Any]]) -> None:
    spec = TransformSpec.from_json(steps + JSON_TO_FLOAT)
    with pytest.raises(TransformError, match="pixels of an image of"):
        spec(Image.new("RGB", size))


def test_a_step_that_cannot_treat_an_image_says_which_and_why() -> None:
    spec = describe_transform(with_tail(v2.RandomCrop(500)))
    with pytest.raises(TransformError, match=r"RandomCrop failed on an image of 320x213 pixels.*larger"):
        spec(PICTURES[0])
    before = describe_transform(classic.Compose([classic.RandomErasing(p=1), classic.ToTensor()]))
    with pytest.raises(TransformError, match=r"classic\.RandomErasing failed on an image of 320x213 pixels"):
        before(PICTURES[0])


def test_every_known_step_can_be_made_and_read_back() -> None:
    needed = {"size": 8, "padding": 1, "mean": [0.5], "std": [0.5], "dtype": "float32", "degrees": 10,
              "sharpness_factor": 2, "bits": 4, "threshold": 100, "kernel_size": 3, "height": 8, "width": 8,
              "rounding": "floor", "short": 8, "long": 9, "within": "box", "interpolation": "bilinear",
              "factor": 0.5, "offset": 0, "double": True, "transforms": [{"name": "RandomVerticalFlip"}]}  # fmt: skip
    for name, kind in KINDS.items():
        args = {key: needed[key] for key in kind.arguments if key in needed}
        spec = TransformSpec.from_json([{"name": name, "args": args}])
        assert spec.to_json() == TransformSpec.from_json(spec.to_json()).to_json()


def test_load_sample_decodes_and_transforms() -> None:
    buffer = io.BytesIO()
    PICTURES[0].save(buffer, "PNG")
    spec = describe_transform(DETERMINISTIC["v2"])
    assert torch.equal(load_sample(buffer.getvalue(), spec), spec(PICTURES[0]))
    with pytest.raises(ImageError):
        load_sample(b"no image", spec)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["preset-resnet18", "preset-vit", "crop-flip", "classic"])
def test_real_photographs_give_what_imagefolder_gives(shared_data: Path, name: str) -> None:
    root = shared_data / "images" / "flowers5"
    dataset, manifest, store = ImageFolder(str(root)), build_manifest(root), open_store(root)
    spec = describe_transform(ALL[name])
    for index in range(0, len(manifest), 61):
        data = read_sample(store, manifest.sample(index))
        image, label = dataset[index]
        assert label == manifest.sample(index).label
        expected = local(ALL[name], image, seed=2, epoch=1, index=index)
        assert torch.equal(load_sample(data, spec, seed=2, epoch=1, index=index), expected)
