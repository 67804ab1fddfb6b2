"""The last steps of a pipeline as a table: the bits of the steps themselves, which run where a table would not do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as classic
from torchvision.transforms import v2

from hapi.data import TransformSpec, describe_transform
from hapi.data.transforms import spec as module
from hapi.data.transforms.levels import level_table, levels_begin, look_up
from hapi.errors import TransformError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TO_FLOAT: list[dict[str, Any]] = [{"name": "ToImage"}, {"name": "ToDtype", "args": {"dtype": "float32", "scale": True}}]
NORMALIZE: dict[str, Any] = {"name": "Normalize", "args": {"mean": MEAN, "std": STD}}
RESCALE: dict[str, Any] = {"name": "hf.Rescale", "args": {"factor": 1 / 255, "offset": -1, "double": True}}


def noise(width: int = 61, height: int = 47, mode: str = "RGB") -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels).convert(mode)


ENDS: dict[str, list[dict[str, Any]]] = {
    "v2": [*TO_FLOAT, NORMALIZE],
    "classic": [{"name": "ToTensor"}, {"name": "classic.Normalize", "args": {"mean": MEAN, "std": STD}}],
    "preset": [{"name": "classic.PILToTensor"}, {"name": "classic.ConvertImageDtype", "args": {"dtype": "float32"}}],
    "processor": [{"name": "PILToTensor"}, RESCALE, NORMALIZE, {"name": "ToPureTensor"}],
    "one mean": [{"name": "ToTensor"}, {"name": "Normalize", "args": {"mean": [0.5], "std": [0.25]}}],
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("end", ENDS)
def test_a_table_gives_the_bits_of_its_steps(end: str, mode: str) -> None:
    steps = TransformSpec.from_json(ENDS[end]).steps
    image = noise(mode=mode)
    value: Any = image
    try:
        for step in steps:
            value = step.transform(value)
    except RuntimeError:  # three means for one channel: torchvision refuses them
        assert level_table(steps, mode) is None
        return
    table = level_table(steps, mode)
    if value.shape[0] != len(mode):  # torchvision broadcasts one channel to three
        assert table is None
        return
    assert table is not None
    made = look_up(image, table)
    assert torch.equal(made, value.as_subclass(torch.Tensor))
    assert made.is_contiguous()


@pytest.mark.parametrize("end", ENDS)
def test_a_whole_pipeline_looks_its_end_up(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = []

    def noted(image: Image.Image, table: np.ndarray) -> torch.Tensor:
        tables.append(table)
        return look_up(image, table)

    monkeypatch.setattr(module, "look_up", noted)
    spec = TransformSpec.from_json([{"name": "CenterCrop", "args": {"size": [32]}}, *ENDS[end]])
    assert spec(noise()).shape == (3, 32, 32)
    assert spec(noise()).dtype == torch.float32
    assert len(tables) == 2
    assert tables[0] is tables[1]


@pytest.mark.parametrize(
    ("transforms", "begin"),
    [
        ([v2.Resize(8), *[v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]], 1),
        ([v2.ToImage(), v2.Resize(8), v2.ToDtype(torch.float32, scale=True)], 3),
        ([classic.ToTensor(), classic.RandomErasing()], 2),
        ([classic.ToTensor()], 0),
    ],
)
def test_only_steps_that_work_by_value_are_in_it(transforms: list[Any], begin: int) -> None:
    assert levels_begin(describe_transform(v2.Compose(transforms)).steps) == begin


def test_what_a_table_cannot_do_the_steps_do_or_refuse() -> None:
    wrong = [{"name": "ToTensor"}, {"name": "Normalize", "args": {"mean": [0.5] * 3, "std": [0.0] * 3}}]
    with pytest.raises(TransformError, match="Normalize failed"):
        TransformSpec.from_json(wrong)(noise())
    with pytest.raises(TransformError, match=r"ends with torch\.float64"):
        TransformSpec.from_json([{"name": "ToImage"}, {"name": "ToDtype", "args": {"dtype": "float64"}}])(noise())
    assert level_table(TransformSpec.from_json(ENDS["v2"]).steps, "CMYK") is None
    assert level_table((), "RGB") is None
