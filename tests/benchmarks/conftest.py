"""What the tests of baselines train on: a few pictures, and a network that is quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

PER_CLASS = 7


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for label, name in enumerate(("crane", "heron")):
        for number in range(PER_CLASS):
            place = root / name / ("deep" if number == 3 else "")
            place.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 256, (40, 50, 3), np.uint8) // 2
            pixels[..., label] += 90
            Image.fromarray(pixels).save(place / f"{number}.JPG", format="JPEG", quality=90)
    (root / "crane" / "notes.txt").write_text("not an image")
    (root / "readme.jpg").write_text("beside the classes")
    return root


@pytest.fixture(scope="session")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vit")
    transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    ).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    return f"hf:{folder}"
