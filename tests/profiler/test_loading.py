"""What loading costs: all samples are read and decoded, broken ones are counted, the dataset is seen evenly."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from example_images import jpeg, write_folder
from PIL import Image

from hapi.data import ObjectStore, TransformSpec, build_manifest, open_store
from hapi.errors import ManifestError, TransformError
from profiler import LoadCost, measure_loading
from profiler.loading import load_examples, measure_decoding

TRANSFORM = TransformSpec.from_json(
    [
        {"name": "Resize", "args": {"size": [16, 16]}},
        {"name": "ToImage", "args": {}},
        {"name": "ToDtype", "args": {"dtype": "float32", "scale": True}},
    ]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


class Recorder:
    """A store that notes what is read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.read: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get(self, key: str, *args: object, **kwargs: object) -> bytes:
        self.read.append(key)
        return self._store.get(key, *args, **kwargs)  # type: ignore[arg-type]


def test_it_reads_and_decodes_evenly_spread_samples(folder: Path) -> None:
    manifest = build_manifest(folder)
    store = Recorder(open_store(str(folder)))
    ticks = iter(range(100))
    cost = measure_loading(store, manifest, TRANSFORM, samples=5, workers=2, clock=lambda: float(next(ticks)))  # type: ignore[arg-type]
    assert cost == LoadCost(0.2, 0.2, 0.2, manifest.total_bytes / 10, 0)  # one tick for each of three passes
    spread = {"cat/0.jpg", "cat/2.jpg", "cat/4.jpg", "dog/6.jpg", "dog/8.jpg"}
    assert set(store.read) == spread
    assert len(store.read) == 1 + 5 + 5  # to warm up, to read, to load


def test_the_fastest_of_a_few_passes_counts() -> None:
    objects = [jpeg(1), jpeg(2)]
    moments = iter([0.0, 0.2, 1.0, 1.1, 2.0, 2.4])
    assert measure_decoding(objects, TRANSFORM, clock=lambda: next(moments)) == pytest.approx(0.05)
    moments = iter([0.0, 0.6])
    assert measure_decoding(objects, TRANSFORM, clock=lambda: next(moments)) == pytest.approx(0.3)


def test_broken_samples_are_counted(folder: Path) -> None:
    (folder / "cat" / "0.jpg").write_bytes(b"no image")
    manifest = build_manifest(folder)
    cost = measure_loading(open_store(str(folder)), manifest, TRANSFORM, samples=1000)
    assert cost.failed == 1
    assert min(cost.load_seconds, cost.read_seconds, cost.decode_seconds) > 0


def test_what_the_transform_fails_on_is_counted_as_the_job_may_leave_it_out(folder: Path) -> None:
    steps = [{"name": "RandomCrop", "args": {"size": [12, 12]}}, *TRANSFORM.to_json()[1:]]
    narrow = io.BytesIO()
    Image.new("RGB", (8, 8)).save(narrow, "PNG")
    (folder / "cat" / "0.jpg").write_bytes(narrow.getvalue())
    cost = measure_loading(
        open_store(str(folder)), build_manifest(folder), TransformSpec.from_json(steps), samples=1000
    )
    assert cost.failed == 1
    examples = load_examples([narrow.getvalue(), jpeg(1), jpeg(2)], TransformSpec.from_json(steps))
    assert examples is not None
    assert examples.shape == (2, 3, 12, 12)
    with pytest.raises(TransformError, match="RandomCrop failed"):  # on 30x20 pixels, too
        measure_loading(
            open_store(str(folder)),
            build_manifest(folder),
            TransformSpec.from_json([{"name": "RandomCrop", "args": {"size": [40, 40]}}, *steps[1:]]),
        )


def test_decoding_what_is_already_here() -> None:
    ticks = iter(range(100))
    objects = [jpeg(1), b"no image", jpeg(2), jpeg(3)]
    assert measure_decoding(objects, TRANSFORM, clock=lambda: float(next(ticks))) == 0.25
    assert measure_decoding([], TRANSFORM) == 0.0


def test_nothing_to_measure(folder: Path) -> None:
    with pytest.raises(ManifestError, match="no sample"):
        measure_loading(open_store(str(folder)), build_manifest(folder), TRANSFORM, samples=0)
