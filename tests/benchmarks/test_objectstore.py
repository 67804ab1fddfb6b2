"""The S3 server that tests and benchmarks start: it starts, keeps its data, and ends only what it began."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import objectstore
from benchmarks.installing import ObjectStoreError, run_step
from benchmarks.objectstore import Endpoint, object_store
from benchmarks.testbed.services import store_kind
from hapi.data.stores import S3Store
from hapi.errors import AccessDeniedError, InputError

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("kind", objectstore.KINDS)
def test_data_and_keys_outlive_a_stop_and_everything_ends(s3_store: Endpoint, tmp_path: Path, kind: str) -> None:
    # s3_store has shown that a server can be started here; this one is a second, of its own
    try:
        objectstore.KINDS[kind].install()
    except ObjectStoreError as error:
        pytest.skip(f"no {kind} on this machine: {error}")
    with object_store(tmp_path, kind=kind) as first:
        assert first.url != s3_store.url
        assert objectstore.start(tmp_path, kind=kind) == first
        assert objectstore.status(tmp_path) == first
        store = S3Store("kept", "", first.settings())
        assert store.create_bucket()
        assert not store.create_bucket()
        store.put("a.bin", b"data")
        store.close()
        recorded = json.loads((tmp_path / "state.json").read_text())["processes"]
        assert all(psutil.Process(number).create_time() == began for number, began in recorded)
    assert not any(psutil.pid_exists(number) for number, _ in recorded)
    assert objectstore.status(tmp_path) is None
    assert objectstore.stop(tmp_path) is False

    with object_store(tmp_path, kind=kind) as second:
        assert second.secret_key == first.secret_key
        store = S3Store("kept", "", second.settings())
        assert store.get("a.bin") == b"data"
        with pytest.raises(AccessDeniedError):
            S3Store("kept", "", second.settings(secret_key="another")).get("a.bin")
        store.close()


def test_a_store_that_cannot_be_recorded_leaves_no_process(
    s3_store: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        objectstore.rclone.install()
    except ObjectStoreError as error:
        pytest.skip(f"no rclone on this machine: {error}")
    begun: list[int] = []

    def keep_state(folder: Path, state: dict[str, Any]) -> None:
        begun.extend(number for number, _ in state["processes"])
        raise OSError("no space left")

    monkeypatch.setattr(objectstore, "_keep_state", keep_state)
    with pytest.raises(OSError, match="no space left"):
        objectstore.start(tmp_path, kind="rclone")
    assert begun
    assert not any(map(psutil.pid_exists, begun))


def test_a_process_that_took_a_recorded_number_is_left_alone(tmp_path: Path) -> None:
    state = {"url": "http://127.0.0.1:1", "access_key": "a:b", "secret_key": "s", "region": "r"}
    (tmp_path / "state.json").write_text(json.dumps({**state, "processes": [[os.getpid(), 12.5]]}))
    assert objectstore.status(tmp_path) is None
    assert objectstore.stop(tmp_path) is False  # this very process has the number, and goes on


def test_secrets_are_for_the_user_alone_and_not_in_the_repr(s3_store: Endpoint, tmp_path: Path) -> None:
    assert s3_store.secret_key not in repr(s3_store)
    assert s3_store.secret_key not in repr(s3_store.settings())
    objectstore._keep_state(tmp_path, {"secret_key": "s"})
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0


def test_the_command_tells_what_runs(s3_store: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert objectstore.main(["status", "--root", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out) == {"running": False}
    assert objectstore.main(["stop", "--root", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"running": False, "stopped": False}
    taken = s3_store.url.rpartition(":")[2]
    assert objectstore.main(["start", "--root", str(tmp_path), "--port", taken]) == 1
    assert f"cannot listen on 127.0.0.1:{taken}" in capsys.readouterr().err


def test_benchmarks_take_the_store_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAPI_BENCH_STORE", raising=False)
    assert store_kind() == "rclone"
    monkeypatch.setenv("HAPI_BENCH_STORE", "swift")
    assert store_kind() == "swift"
    monkeypatch.setenv("HAPI_BENCH_STORE", "minio")
    with pytest.raises(InputError, match=r"HAPI_BENCH_STORE is 'minio'\. Known are rclone, swift"):
        store_kind()


def test_what_cannot_work_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ObjectStoreError, match="account:user"):
        objectstore.start(tmp_path, access_key="plain")
    with pytest.raises(ObjectStoreError, match=r"cannot install swift==2.*set HAPI_SWIFT_VENV"):
        run_step(["false"], "swift==2", "set HAPI_SWIFT_VENV")
