"""A folder as an object store: keys stay below the root, errors say what is wrong."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from hapi.backoff import RetryPolicy
from hapi.data import ObjectInfo, normalize_uri, open_store
from hapi.data.stores import LocalStore, S3Store, described, local, opened_again
from hapi.errors import AccessDeniedError, InputError, ObjectNotFoundError, StoreError, StoreUnavailableError
from hapi.settings import StoreSettings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for key in ("a.txt", "b/c.txt", "b/d/e.txt", "bb/f.txt"):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(key.encode())
    (folder / "empty").mkdir()
    return folder


def test_lists_by_string_prefix_and_shows_empty_folders(root: Path) -> None:
    store = open_store(root)
    assert {found.key for found in store.list()} == {"a.txt", "b/c.txt", "b/d/e.txt", "bb/f.txt", "empty/"}
    assert {found.key for found in store.list("b")} == {"b/c.txt", "b/d/e.txt", "bb/f.txt"}
    assert {found.key for found in store.list("b/")} == {"b/c.txt", "b/d/e.txt"}
    assert {found.key for found in store.list("b/d/e")} == {"b/d/e.txt"}
    assert {found.key for found in store.list("e")} == {"empty/"}
    assert list(store.list("none/such")) == []
    [marker] = store.list("empty")
    assert marker.is_folder
    assert not store.info("a.txt").is_folder


def test_reads_whole_objects_and_exact_ranges(root: Path) -> None:
    store = open_store(root.as_uri())
    assert store.get("b/c.txt") == b"b/c.txt"
    assert store.get("b/c.txt", 2) == b"c.txt"
    assert store.get("b/c.txt", 2, 3) == b"c.t"
    assert store.get("b/c.txt", 2, 0) == b""
    with pytest.raises(StoreError, match=r"9 bytes from 2 .* holds 5 .*list the dataset again"):
        store.get("b/c.txt", 2, 9)
    with pytest.raises(ValueError, match="negative"):
        store.get("b/c.txt", -1)


def test_a_version_changes_with_the_content(root: Path) -> None:
    store = open_store(root)
    before = store.info("a.txt")
    assert before == ObjectInfo("a.txt", 5, before.version)
    assert before in set(store.list())
    store.put("a.txt", b"other")
    os.utime(root / "a.txt", ns=(1, 1))
    assert store.info("a.txt").version != before.version


def test_deletes_objects_and_nothing_that_is_not_there(root: Path) -> None:
    store = open_store(root)
    for _ in range(2):
        store.delete("b/c.txt")
        store.delete("no/such/thing")
    assert {found.key for found in store.list("b")} == {"b/d/e.txt", "bb/f.txt"}
    with pytest.raises(AccessDeniedError, match="does not stay below"):
        store.delete("../other")


def test_puts_whole_objects_and_leaves_no_drafts(root: Path) -> None:
    store = open_store(root)
    store.put("new/deep/x.bin", b"1")
    store.put("new/deep/x.bin", b"22")
    assert store.get("new/deep/x.bin") == b"22"
    assert os.listdir(root / "new/deep") == ["x.bin"]
    with pytest.raises(StoreError):
        store.put("b", b"a folder is in the way")
    assert sorted(os.listdir(root)) == ["a.txt", "b", "bb", "empty", "new"]


@pytest.mark.parametrize("key", ["../secret", "b/../../secret", "/etc/hostname", "", "b/./c.txt", "..", "a\0b"])
def test_keys_cannot_leave_the_root(root: Path, key: str) -> None:
    (root.parent / "secret").write_text("secret")
    stores = [open_store(root), open_store("s3://bucket/prefix")]
    for store in stores:
        for use in (store.get, store.info, lambda k, s=store: s.put(k, b"x")):
            with pytest.raises(AccessDeniedError, match="does not stay below"):
                use(key)
    assert (root.parent / "secret").read_text() == "secret"


def test_links_are_followed_inside_of_the_root_only(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "s.txt").write_text("secret")
    (root / "inside").symlink_to(root / "b")
    (root / "same.txt").symlink_to("a.txt")
    store = open_store(root)
    assert store.get("inside/c.txt") == b"b/c.txt"
    assert {"inside/c.txt", "inside/d/e.txt", "same.txt"} <= {found.key for found in store.list()}

    (root / "out").symlink_to(outside)
    (root / "file.txt").symlink_to(outside / "s.txt")
    for use in (lambda: store.get("out/s.txt"), lambda: store.get("file.txt"), lambda: store.info("file.txt"),
                lambda: store.put("out/new.txt", b""), lambda: list(store.list())):  # fmt: skip
        with pytest.raises(AccessDeniedError, match=r"leads out of the folder.*HAPI_FILE_FOLLOW_LINKS"):
            use()
    assert os.listdir(outside) == ["s.txt"]
    trusting = LocalStore(root, follow_links=True)
    assert trusting.get("out/s.txt") == b"secret"


@pytest.mark.parametrize("is_linux", [True, False])
def test_nothing_is_told_of_what_lies_outside(root: Path, monkeypatch: pytest.MonkeyPatch, is_linux: bool) -> None:
    if not is_linux:
        monkeypatch.setattr(local, "_LINKS_TO_OPEN", None)
    outside = root.parent / "outside"
    outside.mkdir()
    os.mkfifo(outside / "pipe")  # opening it would wait for who writes
    (outside / "file").write_text("secret")
    for name in ("pipe", "file", "missing"):
        (root / name).symlink_to(outside / name)
        with pytest.raises(AccessDeniedError, match="leads out of the folder"):
            open_store(root).get(name)
    assert open_store(root).get("a.txt", 2, 3) == b"txt"
    assert open_store(root).get("a.txt", 2) == b"txt"
    assert open_store(root).get("a.txt", 50) == b""


def test_a_file_that_a_link_replaces_while_it_is_opened_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if local._LINKS_TO_OPEN is None:
        pytest.skip("needs /proc")
    secret, really = root.parent / "secret.txt", os.readlink
    secret.write_text("secret")

    def replaced(path: str) -> str:
        found = really(path)
        (root / "a.txt").unlink(missing_ok=True)
        (root / "a.txt").symlink_to(secret)
        return found

    monkeypatch.setattr(os, "readlink", replaced)
    assert open_store(root).get("a.txt") == b"a.txt"


def test_a_root_beside_one_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "x").write_text("x")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "data2")
    with pytest.raises(AccessDeniedError):
        open_store(tmp_path / "data").get("link/x")


def test_a_link_to_a_folder_above_is_no_endless_walk(root: Path) -> None:
    (root / "b" / "up").symlink_to(root)
    with pytest.raises(StoreError, match="endless"):
        list(open_store(root).list())


def test_what_is_missing_is_not_found_and_what_is_forbidden_is_denied(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root)
    for key in ("none.txt", "b", "a.txt/x"):
        with pytest.raises(ObjectNotFoundError, match=r"does not exist|is a folder"):
            store.get(key)
        with pytest.raises(ObjectNotFoundError):
            store.info(key)
    with pytest.raises(ObjectNotFoundError, match="Check the path"):
        list(open_store(root / "nowhere").list())

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(AccessDeniedError, match="permission denied"):
        store.get("a.txt")


def test_pickles(root: Path) -> None:
    store = pickle.loads(pickle.dumps(open_store(root)))  # noqa: S301
    assert store.get("a.txt") == b"a.txt"
    assert store.uri == root.as_uri()


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("s3://photos", "s3://photos"),
        ("s3://photos/", "s3://photos"),
        ("s3://photos/train/", "s3://photos/train"),
        ("S3://photos/a b", "s3://photos/a b"),
        ("/data/a b", "file:///data/a%20b"),
        ("file:///data/a%20b/", "file:///data/a%20b"),
        ("file://localhost/data", "file:///data"),
        ("/data/x/../y", "file:///data/y"),
        ("file:///data/x/%2e%2e/y", "file:///data/y"),
        ("/", "file:///"),
    ],
)
def test_there_is_one_way_to_write_a_root(given: str, normal: str) -> None:
    assert normalize_uri(given) == normal
    assert normalize_uri(normal) == normal
    assert open_store(given).uri == normal


@pytest.mark.parametrize(
    "uri", ["", "http://host/data", "s3://", "s3:///key", "ftp://x", "file://host/share", "s3://b/../c", "a\0b"]
)
def test_other_addresses_are_refused(uri: str) -> None:
    for use in (open_store, normalize_uri):
        with pytest.raises(InputError, match=r"address|bucket|parts"):
            use(uri)


def test_which_store_an_address_opens(root: Path) -> None:
    assert isinstance(open_store("s3://b/p"), S3Store)
    assert isinstance(open_store(str(root)), LocalStore)


def test_what_vanishes_while_it_is_listed_is_not_in_the_listing_and_ends_it_not(root: Path) -> None:
    """Another process renames its drafts and removes what it needs no more."""
    (root / "z").mkdir()
    (root / "z" / "g.txt").write_bytes(b"")
    for name in ("1.part", "2.part"):
        (root / name).write_bytes(b"")
    listing = open_store(root).list()
    found = {next(listing).key}
    for name in ("1.part", "2.part", "z/g.txt"):
        if name not in found:
            (root / name).unlink()
    if not list((root / "z").iterdir()):
        (root / "z").rmdir()
    found |= {item.key for item in listing}
    assert {"a.txt", "b/c.txt", "b/d/e.txt", "bb/f.txt", "empty/"} <= found


def test_a_root_that_is_a_link_may_be_set_anew(root: Path) -> None:
    current, newer = root.parent / "current", root.parent / "newer"
    newer.mkdir()
    (newer / "a.txt").write_bytes(b"newer")
    current.symlink_to(root)
    store = open_store(current)
    assert store.get("a.txt") == b"a.txt"
    current.unlink()
    current.symlink_to(newer)
    assert store.get("a.txt") == b"newer"
    (newer / "old.txt").symlink_to(root / "a.txt")
    with pytest.raises(AccessDeniedError, match="leads out of the folder"):
        store.get("old.txt")


class Shortage:
    """A system that does not open `a.txt` the first `times` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int, number: int = errno.EMFILE) -> None:
        self.left, self._number, self._really = times, number, os.open
        monkeypatch.setattr(os, "open", self._open)
        monkeypatch.setattr(local, "PATIENCE", RetryPolicy(attempts=3, first_seconds=0.0))

    def _open(self, path: Any, *args: Any, **kwargs: Any) -> int:
        if self.left and str(path).endswith("a.txt"):
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number))
        return self._really(path, *args, **kwargs)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_process_that_has_too_much_open_tries_again_and_blames_no_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = open_store(root)
    Shortage(monkeypatch, 2, number)
    assert store.get("a.txt") == b"a.txt"
    shortage = Shortage(monkeypatch, 3, number)
    with pytest.raises(StoreUnavailableError, match=r"a\.txt: .*nothing of the file.*ulimit -n.*after 3 tries"):
        store.get("a.txt")
    assert shortage.left == 0


def test_a_description_opens_the_same_store_whatever_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"endpoint": "http://127.0.0.1:1", "access_key": "name", "secret_key": "secret", "ca_bundle": "/ca.pem"}
    bucket = open_store("s3://bucket/some/prefix", StoreSettings.load(**secret, HAPI_FILE_FOLLOW_LINKS=True))
    folder = open_store(root, StoreSettings.load(HAPI_FILE_FOLLOW_LINKS=True))
    told = described(bucket), described(folder)
    monkeypatch.setenv("HAPI_S3_REGION", "elsewhere")
    again, there = (opened_again(text) for text in told if text is not None)
    assert isinstance(bucket, S3Store)
    assert isinstance(again, S3Store)
    assert (again.uri, again.settings) == (bucket.uri, bucket.settings)
    assert isinstance(there, LocalStore)
    assert there.follows_links
    assert there.get("b/c.txt") == b"b/c.txt"


def test_a_store_of_another_kind_is_not_described() -> None:
    class Other(LocalStore):
        pass

    assert described(object()) is None  # type: ignore[arg-type]
    assert described(Other("/")) is None, "it may do anything that the store it is made from does not"
