"""Stored pictures that are sent without what the transform does not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from awkward_models import SIZE
from fastapi.testclient import TestClient
from PIL import Image
from torchvision.transforms import v2

from hapi.data import TransformSpec, describe_transform, load_sample
from hapi.data.images import Window
from hapi.data.trimming import is_available
from hapi.wire import FeatureBatch, read_stream
from storage_server.http.app import app_of
from storage_server.service import Service

pytestmark = pytest.mark.skipif(not is_available(), reason="no libturbojpeg on this machine (Debian: libturbojpeg0)")

CROPPED = describe_transform(
    v2.Compose([v2.RandomCrop(120), v2.Resize(20), v2.CenterCrop(SIZE), v2.ToImage(), v2.ToDtype(torch.float32, True)])
)
WHOLE = describe_transform(v2.Compose([v2.Resize((SIZE, SIZE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))
PICTURES = 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG pictures, and last of all something that is none."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "a").mkdir()
    noise = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = noise.integers(0, 255, (200, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "a" / f"{number}.jpg", quality=80)
    (root / "a" / "z.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return root


@pytest.fixture
def client(make_service: Callable[..., Service], pictures: Path) -> TestClient:
    return TestClient(app_of(make_service(roots=(str(pictures),))))


def registered(client: TestClient, pictures: Path) -> str:
    return client.post("/v1/datasets", json={"uri": str(pictures)}).json()["digest"]


def asked(client: TestClient, pictures: Path, transform: TransformSpec, **more: object) -> list[FeatureBatch]:
    body = {
        "dataset": registered(client, pictures),
        "indices": list(range(PICTURES + 1)),
        "cut": "input",
        "transform": transform.to_json(),
        "seed": 4,
        "epoch": 2,
        "compression": "trimmed",
        **more,
    }
    answer = client.post("/v1/extract", json=body)
    assert answer.status_code == 200, answer.text
    return list(read_stream([answer.content]))


def test_less_is_sent_and_the_transform_makes_the_same_of_it(client: TestClient, pictures: Path) -> None:
    files = sorted((pictures / "a").iterdir())
    seen = []
    for batch in asked(client, pictures, CROPPED):
        for index, data, part in zip(batch.indices.tolist(), batch.objects, batch.windows.tolist(), strict=True):
            seen.append(index)
            stored = files[index].read_bytes()
            if index == PICTURES:
                assert (data, part) == (stored, [0, 0, 0, 0])
                continue
            assert len(data) < 0.7 * len(stored)
            window = Window(*part)
            assert window[2:] == (300, 200)
            of_sample = {"seed": 4, "epoch": 2, "index": index}
            wanted = load_sample(stored, CROPPED, **of_sample)
            assert torch.equal(load_sample(data, CROPPED, window=window, **of_sample), wanted)
    assert sorted(seen) == list(range(PICTURES + 1))


def test_pictures_that_are_read_whole_are_sent_as_they_are(client: TestClient, pictures: Path) -> None:
    files = sorted((pictures / "a").iterdir())
    for batch in asked(client, pictures, WHOLE):
        assert [files[index].read_bytes() for index in batch.indices] == batch.objects
        assert not batch.windows.any()


def test_trimming_is_work_that_the_answer_tells_of(client: TestClient, pictures: Path) -> None:
    told = [batch.work for batch in asked(client, pictures, CROPPED) if batch.work is not None]
    assert sum(work.seconds for work in told) > 0
    assert 'hapi_stage_seconds_total{stage="trim"}' in client.get("/metrics").text


@pytest.mark.parametrize(
    "more", [{"transform": None}, {"cut": "output", "model": "0" * 64}, {"transform": [{"name": "Nothing"}]}]
)
def test_what_makes_no_sense_is_refused(client: TestClient, pictures: Path, more: dict) -> None:
    body = {"dataset": registered(client, pictures), "indices": [0], "cut": "input", "compression": "trimmed"}
    answer = client.post("/v1/extract", json={**body, "transform": CROPPED.to_json(), **more})
    assert answer.status_code == 422
    assert "trim" in answer.text or "Nothing" in answer.text
