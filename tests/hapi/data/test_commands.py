"""`hapi data`: what a user types, what is printed, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from hapi.data import build_manifest, open_store
from hapi.data.buckets import create_bucket
from hapi.data.commands import register
from hapi.data.stores import LocalStore, S3Store
from hapi.data.transfer import copy_objects
from hapi.errors import AccessDeniedError, HapiError, InputError, ObjectNotFoundError, StoreUnavailableError
from hapi.settings import StoreSettings

if TYPE_CHECKING:
    from click.testing import Result

    from benchmarks.objectstore import Endpoint

SIZE = ["--size", "64x48"]


def run(*arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["data", *arguments])


def document(*arguments: str) -> dict[str, Any]:
    """The JSON document on standard output, and nothing else there."""
    result = run(*arguments, "--json")
    assert result.exception is None, result.output
    return dict(json.loads(result.stdout))


def test_synth_tells_what_it_made(tmp_path: Path) -> None:
    made = document("synth", str(tmp_path / "set"), "--images", "7", "--classes", "3", *SIZE)
    manifest = build_manifest(tmp_path / "set")
    assert made.pop("seconds") > 0
    assert made == {
        "target": (tmp_path / "set").as_uri(), "images": 7, "classes": list(manifest.classes),
        "bytes": manifest.total_bytes,
    }  # fmt: skip
    result = run("synth", str(tmp_path / "other"), "--images", "2", *SIZE)
    assert "2 pictures of 2 kinds" in " ".join(result.output.split())


def test_push_copies_and_skips_what_is_there(tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    run("synth", str(source), "--images", "6", *SIZE)
    (source / "empty.txt").touch()
    (source / "amber-disks" / "nothing").mkdir()
    total = sum(path.stat().st_size for path in source.rglob("*.jpg"))
    done = document("push", str(source), str(target))
    assert (done["sent"], done["skipped"], done["bytes"]) == (7, 0, total)
    assert build_manifest(target).order_digest == build_manifest(source).order_digest

    changed = build_manifest(target).sample(0).key
    (target / changed).write_bytes(b"x" * (source / changed).stat().st_size)
    done = document("push", str(source), str(target))
    assert (done["sent"], done["skipped"]) == (1, 6)
    assert (target / changed).read_bytes() == (source / changed).read_bytes()
    assert document("push", str(source), str(target), "--overwrite")["sent"] == 7


@pytest.mark.s3
def test_push_and_synth_into_a_new_bucket(s3_store: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_store.environment().items():
        monkeypatch.setenv(name, value)
    assert isinstance(run("synth", "s3://pushed/none", "--images", "1", *SIZE).exception, ObjectNotFoundError)
    made = document("synth", "s3://pushed/a", "--images", "5", "--create", *SIZE)
    assert made["images"] == 5
    run("synth", str(tmp_path), "--images", "5", *SIZE)
    done = document("push", str(tmp_path), "s3://pushed/a", "--create")
    assert (done["sent"], done["skipped"]) == (0, 5)  # the same seed: recognised by their MD5
    done = document("push", "s3://pushed/a", "s3://pushed/b")
    assert (done["sent"], done["bytes"]) == (5, made["bytes"])
    assert build_manifest("s3://pushed/b").order_digest == build_manifest(tmp_path).order_digest


@pytest.mark.s3
@pytest.mark.parametrize("client", ["minio", "boto3"])
def test_a_bucket_is_made_once_by_either_client(
    s3_store: Endpoint, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client == "minio":
        pytest.importorskip("minio", reason="the extra 'minio' is not installed")
        monkeypatch.setattr(S3Store, "create_bucket", None)
    else:
        monkeypatch.setattr("hapi.data.buckets.find_spec", lambda name: None)
    settings = s3_store.settings(attempts=1)
    assert create_bucket(f"s3://made-{client}/some/prefix", settings)
    assert not create_bucket(f"s3://made-{client}", settings)
    assert list(open_store(f"s3://made-{client}", settings).list()) == []
    with pytest.raises(AccessDeniedError, match=f"s3://made-{client}"):
        create_bucket(f"s3://made-{client}", s3_store.settings(secret_key="wrong"))
    with pytest.raises(InputError, match="Check the URI"):
        create_bucket("s3://No_Bucket!", settings)
    with pytest.raises(StoreUnavailableError, match="did not answer"):
        create_bucket("s3://made", s3_store.settings(endpoint="http://127.0.0.1:9", attempts=1))


def test_a_bucket_of_a_store_that_minio_does_not_understand_is_made_by_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    minio = pytest.importorskip("minio", reason="the extra 'minio' is not installed")

    def ask(self: object, bucket_name: str) -> bool:
        raise minio.error.InvalidResponseError(404, "text/xml; charset=utf-8", "<Error/>")

    monkeypatch.setattr(minio.Minio, "bucket_exists", ask)
    monkeypatch.setattr(S3Store, "create_bucket", lambda self: self.bucket == "made")
    settings = StoreSettings.load(endpoint="http://127.0.0.1:9", access_key="me", secret_key="secret")
    assert create_bucket("s3://made/some/prefix", settings)


def test_a_file_is_not_pushed_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n")
    result = run("push", str(tmp_path / "list.csv"), str(tmp_path / "copy"))
    assert isinstance(result.exception, ObjectNotFoundError)
    assert "is a file, not a folder" in str(result.exception)


def test_a_folder_needs_no_bucket(tmp_path: Path) -> None:
    assert create_bucket(str(tmp_path / "new")) is False
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["push", "{tmp}/none", "{tmp}/to"], ObjectNotFoundError, "does not exist"),
        (["push", "{tmp}", "{tmp}-to"], InputError, "nothing in it"),
        (["push", "{tmp}/x/..", "{tmp}"], InputError, "the same place"),
        (["push", "{tmp}", "{tmp}/x/copy"], InputError, "would be copied as well"),
        (["push", "s3://b", "s3://b/copy"], InputError, "would be copied as well"),
        (["push", "http://host/x", "{tmp}"], InputError, "not an address"),
        (["synth", "{tmp}", "--size", "large"], InputError, "as in 500x375"),
        (["synth", "{tmp}", "--size", "3x3"], InputError, "sides"),
        (["synth", "{tmp}", "--classes", "1000"], InputError, "kinds of pictures"),
    ],
)
def test_what_cannot_work_is_a_sentence(
    arguments: list[str], error: type[HapiError], says: str, tmp_path: Path
) -> None:
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert isinstance(result.exception, error)
    assert says in str(result.exception)
    assert error.exit_code == 2


class FailingStore(LocalStore):
    """Refuses one key, and counts what it was given."""

    def __init__(self, root: Path, refused: str) -> None:
        super().__init__(root)
        self.refused = refused
        self.puts = 0

    def put(self, key: str, data: bytes) -> None:
        self.puts += 1
        if key == self.refused:
            raise StoreUnavailableError(f"{key}: the store is gone")
        super().put(key, data)


def test_the_first_failure_ends_a_copy_soon(tmp_path: Path) -> None:
    source = LocalStore(tmp_path / "from")
    for number in range(200):
        source.put(f"{number:03d}", b"x")
    first = next(iter(source.list())).key
    target = FailingStore(tmp_path / "to", first)
    with pytest.raises(StoreUnavailableError, match="the store is gone"):
        copy_objects(source, target, workers=2)
    assert target.puts < 50
