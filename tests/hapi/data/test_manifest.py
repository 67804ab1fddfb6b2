"""A manifest lists what ImageFolder lists, in its order; it is exact, strict to read, and large ones stay small."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from hapi.data import Manifest, ObjectInfo, Sample, build_manifest, dataset_root, open_store, read_sample
from hapi.data.folder import IMAGE_EXTENSIONS, folder_manifest
from hapi.data.manifest import SCHEMA
from hapi.data.stores import S3Store
from hapi.errors import ManifestError, ObjectNotFoundError

if TYPE_CHECKING:
    from benchmarks.objectstore import Endpoint

TREE = [
    "dog/b.jpg", "dog/a.JPG", "dog/B.jpg", "dog/z/1.png", "dog/z y/1.png", "dog/z/2/q.webp", "dog/z-/k.Tiff",
    "dog/notes.txt", "dog/.hidden.jpeg", "dog/.jpg", "dog/é.jpg", "dog/e\u0301.jpg", "dog/10.jpg", "dog/9.jpg",
    "Cat/x.jpg", "Cat/sub/sub/sub/y.ppm", "Cat/x.jpg.bak", "Cat/x.gif", "cat/lower.bmp", "10/i.pgm", "9/i.tif",
    "über katze/a b.jpeg", ".cache/thing.png", "top.jpg", "readme.md",
]  # fmt: skip


def plant(root: Path, keys: list[str]) -> Path:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(key.encode())
    return root


def rows(manifest: Manifest) -> list[tuple[str, int | None]]:
    return [(manifest.sample(index).key, manifest.sample(index).label) for index in range(len(manifest))]


def imagefolder(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    dataset = ImageFolder(str(root))
    return dataset.classes, [(os.path.relpath(path, root), label) for path, label in dataset.samples]


class FlatStore:
    """A store that is only a list of keys, in any order, as a bucket is."""

    uri = "s3://fake/set"

    def __init__(self, objects: list[ObjectInfo]) -> None:
        self.objects = objects

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (found for found in self.objects if found.key.startswith(prefix))


def test_the_extensions_are_those_of_torchvision() -> None:
    assert IMAGE_EXTENSIONS == IMG_EXTENSIONS


def test_lists_what_imagefolder_lists_in_its_order(tmp_path: Path) -> None:
    root = plant(tmp_path / "set", TREE)
    (root / "linked").symlink_to(root / "dog")
    manifest = build_manifest(root)
    classes, samples = imagefolder(root)
    assert list(manifest.classes) == classes
    assert rows(manifest) == samples
    assert manifest.labels is not None
    assert manifest.labels.tolist() == [label for _, label in samples]
    assert manifest.total_bytes == sum((root / key).stat().st_size for key, _ in samples)


NAMES = st.text(st.sampled_from("aAbz09 -._é~"), min_size=1, max_size=4).filter(lambda name: name.strip(".") != "")


@given(st.lists(st.tuples(NAMES, st.lists(NAMES, max_size=2), NAMES), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_is_imagefolders_for_any_names(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, list[str], str]]
) -> None:
    keys = sorted({"/".join([top, *middle, name + ".jpg"]) for top, middle, name in parts})
    root = tmp_path_factory.mktemp("any")
    try:
        plant(root, keys)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        return  # a name that is both a file and a folder
    classes, samples = imagefolder(root)
    shuffled = [ObjectInfo(key, 1, "v") for key in keys[1::2] + keys[::2]]
    for manifest in (build_manifest(root), folder_manifest(FlatStore(shuffled))):  # type: ignore[arg-type]
        assert list(manifest.classes) == classes
        assert rows(manifest) == samples


def test_an_empty_class_is_refused_as_imagefolder_does(tmp_path: Path) -> None:
    root = plant(tmp_path, ["a/1.jpg", "b/notes.txt"])
    (root / "c").mkdir()
    with pytest.raises(FileNotFoundError):
        imagefolder(root)
    with pytest.raises(ManifestError, match=r"class folders b, c.*Known image extensions: \.jpg"):
        build_manifest(root)


def test_a_flat_folder_is_a_dataset_without_labels(tmp_path: Path) -> None:
    root = plant(tmp_path, ["b.jpg", "a.png", "notes.txt"])
    manifest = build_manifest(root)
    assert rows(manifest) == [("a.png", None), ("b.jpg", None)]
    assert manifest.classes == ()
    assert manifest.labels is None
    assert Manifest.from_bytes(manifest.to_bytes()).digest == manifest.digest


def test_no_images_at_all_is_an_error_that_tells_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nothing lies there"):
        build_manifest(plant(tmp_path, []))
    with pytest.raises(ManifestError, match=r"no images among its \d+ files"):
        build_manifest(plant(tmp_path, ["notes.txt"]))
    with pytest.raises(ObjectNotFoundError, match="is a file"):
        build_manifest(tmp_path / "notes.txt")
    with pytest.raises(ObjectNotFoundError, match="does not exist"):
        build_manifest(tmp_path / "nowhere")


def test_a_file_name_that_is_not_text_is_named(tmp_path: Path) -> None:
    plant(tmp_path, ["a/1.jpg"])
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.jpg")).write_bytes(b"")
    with pytest.raises(ManifestError, match="not valid UTF-8"):
        build_manifest(tmp_path)


@pytest.mark.s3
def test_a_bucket_has_the_order_of_the_folder_that_it_copies(s3_store: Endpoint, tmp_path: Path) -> None:
    root = plant(tmp_path / "set", [key for key in TREE if not key.endswith("sub/y.ppm")])
    store = S3Store("manifests", "copies/one", s3_store.settings())
    store.create_bucket()
    for found in open_store(root).list():
        store.put(found.key, open_store(root).get(found.key))
    here, there = build_manifest(root), build_manifest(store)
    assert rows(there) == rows(here)
    assert there.order_digest == here.order_digest
    assert there.digest != here.digest
    assert there.uri == "s3://manifests/copies/one"
    for index in range(len(there)):
        assert read_sample(store, there.sample(index)) == there.sample(index).key.encode()
    store.close()


# -- digests --------------------------------------------------------------------------------------------------


def manifest_of(uri: str = "s3://b", classes: tuple[str, ...] = ("x", "y"), **changes: object) -> Manifest:
    columns = {
        "key": ["x/1", "x/2", "y/1"], "offset": [0, 0, 0], "length": [10, 11, 12], "label": [0, 0, 1],
        "version": ["a", "b", "c"], **changes,
    }  # fmt: skip
    return Manifest(uri, classes, pa.table(columns, schema=SCHEMA))


def test_the_digest_covers_everything_and_the_order_digest_keys_and_labels() -> None:
    base = manifest_of()
    assert manifest_of().digest == base.digest
    changed = {
        "uri": manifest_of(uri="s3://c"),
        "classes": manifest_of(classes=("x", "z")),
        "length": manifest_of(length=[10, 11, 13]),
        "version": manifest_of(version=["a", "b", "d"]),
        "key": manifest_of(key=["x/1", "x/3", "y/1"]),
        "moved": manifest_of(key=["x/", "1x/2", "y/1"]),
        "label": manifest_of(label=[0, 1, 1]),
        "offset": manifest_of(offset=[0, 0, 5]),
    }
    digests = [manifest.digest for manifest in changed.values()]
    assert len({base.digest, *digests}) == len(changed) + 1
    same_order = {name for name, manifest in changed.items() if manifest.order_digest == base.order_digest}
    assert same_order == {"uri", "classes", "length", "version"}


def test_digests_are_pinned_because_features_and_states_are_kept_under_them() -> None:
    assert manifest_of().digest == "27547698e42abe7a9c4737e5552be39e1a4bd196271eba2f20c3ba7070abb88d"
    lines = b"x/1\0000\0000\0\nx/2\0000\0000\0\ny/1\0000\0001\0\n"
    assert manifest_of().order_digest == hashlib.sha256(lines).hexdigest()


def test_digests_do_not_depend_on_how_the_columns_are_chunked() -> None:
    table = manifest_of()._table
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 2)])
    assert Manifest("s3://b", ("x", "y"), pieces).digest == manifest_of().digest
    assert Manifest("s3://b", ("x", "y"), pieces).order_digest == manifest_of().order_digest


# -- bytes ----------------------------------------------------------------------------------------------------


def test_bytes_round_trip_and_are_the_same_each_time() -> None:
    manifest = manifest_of()
    data = manifest.to_bytes()
    again = Manifest.from_bytes(data)
    assert again.to_bytes() == data
    assert (again.uri, again.classes, again.digest) == (manifest.uri, manifest.classes, manifest.digest)
    assert again.sample(2) == Sample("y/1", 0, 12, 1, "c")
    with pytest.raises(IndexError):
        again.sample(3)
    with pytest.raises(IndexError):
        again.sample(-1)


def damaged() -> dict[str, bytes]:
    good = manifest_of().to_bytes()
    schema = SCHEMA.with_metadata({"hapi.manifest/1": json.dumps({"uri": "s3://b", "classes": ["x"]})})

    def stream(schema: pa.Schema, *batches: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    odd_head = SCHEMA.with_metadata({"hapi.manifest/1": '{"uri": 3, "classes": []}'})
    no_json = SCHEMA.with_metadata({"hapi.manifest/1": "{"})
    classes = SCHEMA.with_metadata({"hapi.manifest/1": '{"uri": "s3://b", "classes": [1]}'})
    return {
        "nothing": b"",
        "noise": os.urandom(300),
        "pickle": b"\x80\x04\x95\x05\x00\x00\x00",
        "cut short": good[:-90],
        "other columns": stream(pa.schema([("a", pa.int64())]).with_metadata(schema.metadata)),
        "no head": stream(SCHEMA),
        "two heads": stream(SCHEMA.with_metadata({**(schema.metadata or {}), "more": "x"})),
        "odd head": stream(odd_head),
        "head not JSON": stream(no_json),
        "classes not text": stream(classes),
        "no samples": stream(schema),
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_bytes_are_refused(name: str) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_bytes(damaged()[name])


@pytest.mark.parametrize("value", [0x00, 0x01, 0x07, 0xFF])
def test_a_changed_byte_never_does_worse_than_a_manifest_error(value: int) -> None:
    """Arrow says of some that it has not implemented them; of others the columns stay whole but for their ends."""
    data = manifest_of().to_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] = value
        try:
            found = Manifest.from_bytes(bytes(changed))
        except ManifestError:
            continue
        assert len(found.digest) == 64


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": [0, 0, 2]}, "outside of the 2 classes"),
        ({"label": [0, -1, 1]}, "outside of the 2 classes"),
        ({"label": [0, None, 1]}, "1 of 3 samples have no label"),
        ({"classes": ()}, "0 of 3 samples have no label"),
        ({"length": [1, -1, 1]}, "negative"),
        ({"offset": [0, -1, 0]}, "negative"),
        ({"key": ["x", "../y", "z"]}, r"'\.\./y' does not stay below"),
        ({"key": ["x", "/y", "z"]}, "does not stay below"),
        ({"key": ["x", "a/./y", "z"]}, "does not stay below"),
        ({"key": ["x", "", "z"]}, "does not stay below"),
        ({"key": ["x", "a\0b", "z"]}, "does not stay below"),
    ],
)
def test_what_no_reader_could_rely_on_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        manifest_of(**changes)  # type: ignore[arg-type]


def test_keys_with_dots_that_stay_below_are_fine() -> None:
    assert len(manifest_of(key=["...", "a..b/c.", ".x/y"])) == 3


def test_many_samples_take_columns_and_not_objects() -> None:
    count = 200_000
    keys = [f"class{index % 100:02d}/{index:07d}.jpg" for index in range(count)]
    objects = (ObjectInfo(key, index, f"{index:032x}") for index, key in enumerate(keys))
    manifest = folder_manifest(FlatStore(objects))  # type: ignore[arg-type]
    assert len(manifest) == count
    assert manifest._table.nbytes < 120 * count
    assert manifest.sample(0) == Sample("class00/0000000.jpg", 0, 0, 0, f"{0:032x}")
    assert manifest.sample(count - 1).key == "class99/0199999.jpg"
    assert manifest.labels is not None
    assert np.array_equal(manifest.labels, np.repeat(np.arange(100), count // 100))
    assert manifest.total_bytes == count * (count - 1) // 2


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("s3://b/p/train.csv", ("s3://b/p", "train.csv")),
        ("s3://b/train.JSONL", ("s3://b", "train.JSONL")),
        ("s3://b/p", ("s3://b/p", None)),
        ("s3://b.csv", ("s3://b.csv", None)),
        ("/data/a b/t r.parquet", ("file:///data/a%20b", "t r.parquet")),
        ("/t.csv", ("file:///", "t.csv")),
        ("/data/../secret/t.csv", ("file:///secret", "t.csv")),
    ],
)
def test_the_root_of_an_address_is_known_before_anything_is_opened(uri: str, root: tuple[str, str | None]) -> None:
    assert dataset_root(uri) == root
