"""A real S3 server on loopback, without Docker or privileges: OpenStack Swift with s3api, or rclone's, from PyPI.

    python -m benchmarks.objectstore start|stop|status --root DIR [--kind swift|rclone]

`start` prints one JSON document with the address and the keys. Data stays in DIR between starts; `stop` ends only the
processes that `start` began. Linux only; the first start installs the server (Swift: about 20 s).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks import rclone, swift
from benchmarks.installing import ObjectStoreError
from benchmarks.swift import REGION
from hapi.settings import StoreSettings


class Program(Protocol):
    """What a module like benchmarks.swift tells of the servers that make a store."""

    NAME: str
    ACCESS_KEY: str
    ACCESS_KEY_FORM: str
    ACCESS_KEY_WORDS: str
    REMARK: str

    def install(self) -> Path: ...
    def servers(self) -> tuple[str, ...]: ...
    def prepare(
        self, root: Path, venv: Path, host: str, ports: Mapping[str, int], access_key: str, secret_key: str
    ) -> dict[str, list[str]]: ...
    def health(self, kind: str, host: str, ports: Mapping[str, int]) -> str | None: ...


PROGRAMS: tuple[Program, ...] = (swift, rclone)
KINDS: Mapping[str, Program] = {program.NAME: program for program in PROGRAMS}
"""Swift keeps to all of S3's rules that tests look at; rclone costs little."""

START_SECONDS = 30.0
STOP_SECONDS = 5.0
PORT_TRIES = 3  # a port can be taken between choosing and binding it
_STATE = "state.json"


@dataclass(frozen=True)
class Endpoint:
    """Where a running store answers, and its keys."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = REGION

    def environment(self) -> dict[str, str]:
        """The variables that lead the `hapi` command to this store."""
        return {
            "HAPI_S3_ENDPOINT": self.url,
            "HAPI_S3_ACCESS_KEY": self.access_key,
            "HAPI_S3_SECRET_KEY": self.secret_key,
            "HAPI_S3_REGION": self.region,
        }

    def settings(self, **changes: Any) -> StoreSettings:
        """The same for `hapi.data.open_store`, with `changes` to single fields."""
        values = {"endpoint": self.url, "access_key": self.access_key, "secret_key": self.secret_key}
        return StoreSettings.load(**{**values, "region": self.region, **changes})


@contextlib.contextmanager
def object_store(root: str | os.PathLike[str], *, kind: str = swift.NAME) -> Iterator[Endpoint]:
    """A store with its data below `root`, for as long as the context lasts; ObjectStoreError says why there is none."""
    endpoint = start(root, kind=kind)
    try:
        yield endpoint
    finally:
        stop(root)


def start(
    root: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    access_key: str = "",
    secret_key: str | None = None,
    kind: str = swift.NAME,
) -> Endpoint:
    """Starts the store, or finds it running; returns when it answers.

    Port 0 is a free one. Without `access_key` it is the program's usual one, in whose form it must be. Without
    `secret_key`, that of the last start is kept, or a new one made.
    """
    program = KINDS[kind]
    access_key = access_key or program.ACCESS_KEY
    if not re.fullmatch(program.ACCESS_KEY_FORM, access_key):
        raise ObjectStoreError(f"access key {access_key!r}: {kind} wants {program.ACCESS_KEY_WORDS}.")
    if sys.platform != "linux":
        raise ObjectStoreError("the test object store runs on Linux only. Use MinIO or another S3 server.")
    folder = Path(root).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    before = _state(folder)
    if _runs(before):
        return _endpoint(before)
    if before:
        _end(_processes(before))
    venv = program.install()
    secret = secret_key or before.get("secret_key") or secrets.token_urlsafe(24)
    *_, front = program.servers()
    for _ in range(PORT_TRIES):
        ports = _free_ports({name: (host, port) if name == front else ("127.0.0.1", 0) for name in program.servers()})
        commands = program.prepare(folder, venv, host, ports, access_key, secret)
        answers = [url for name in ports if (url := program.health(name, host, ports)) is not None]
        children: list[psutil.Process] = []
        try:
            children.extend(_spawn(folder, name, command) for name, command in commands.items())
            if _wait_until_healthy(answers, children):
                endpoint = Endpoint(f"http://{host}:{ports[front]}", access_key, secret)
                began = [(child.pid, child.create_time()) for child in children]
                _keep_state(folder, {**asdict(endpoint), "processes": began})
                return endpoint
        except BaseException:
            _end(children)
            raise
        _end(children)
    logs = "\n".join((folder / f"{name}.log").read_text()[-500:] for name in program.servers())
    raise ObjectStoreError(f"the object store at {folder} did not come up. Its logs end with:\n{logs}")


def stop(root: str | os.PathLike[str]) -> bool:
    """Ends the store's processes; False if none ran. Its data stays."""
    folder = Path(root).resolve()
    state = _state(folder)
    running = _processes(state)
    _end(running)
    if state:
        _keep_state(folder, {**state, "processes": []})
    return bool(running)


def status(root: str | os.PathLike[str]) -> Endpoint | None:
    """The running store, or None."""
    state = _state(Path(root).resolve())
    return _endpoint(state) if _runs(state) else None


def processes(root: str | os.PathLike[str]) -> list[psutil.Process]:
    """Those of a running store; each leads a group of its own."""
    return _processes(_state(Path(root).resolve()))


def _spawn(folder: Path, kind: str, command: list[str]) -> psutil.Process:
    """A server that outlives this process and leads a group of its own, so not a subprocess.Popen."""
    log = str(folder / f"{kind}.log")
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return psutil.Process(os.posix_spawn(command[0], command, os.environ, file_actions=streams, setsid=True))


def _free_ports(wanted: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """A port per server, free a moment ago, at these addresses; port 0 is any."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, (host, port) in wanted.items():
            taken = stack.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taken.bind((host, port))
            except OSError as error:
                raise ObjectStoreError(f"cannot listen on {host}:{port} ({error.strerror}).") from error
            ports[name] = taken.getsockname()[1]
        return ports


def _wait_until_healthy(answers: Sequence[str], children: Sequence[psutil.Process]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    waiting = list(answers)
    while waiting and time.monotonic() < deadline:
        if not all(map(_alive, children)):
            return False
        waiting = [url for url in waiting if not _healthy(url)]
        time.sleep(0.03)
    return not waiting


def _healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500  # it answers, and misses a signature
    except OSError:
        return False


def _state(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / _STATE).read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _keep_state(folder: Path, state: Mapping[str, Any]) -> None:
    draft = folder / (_STATE + ".new")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(state))
    draft.replace(folder / _STATE)


def _runs(state: Mapping[str, Any]) -> bool:
    """Whether all that a start began still lives."""
    return bool(state.get("processes")) and len(_processes(state)) == len(state["processes"])


def _endpoint(state: Mapping[str, Any]) -> Endpoint:
    return Endpoint(state["url"], state["access_key"], state["secret_key"], state["region"])


def _processes(state: Mapping[str, Any]) -> list[psutil.Process]:
    """Those of the recorded processes that live; a number that was given to another process since is not ours."""
    found = []
    for number, began in state.get("processes", ()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(number)
            if process.create_time() == began and _alive(process):
                found.append(process)
    return found


def _alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def _end(processes: Sequence[psutil.Process]) -> None:
    """Ends each process and those it began: every server leads a group of its own."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sent)
        processes = psutil.wait_procs(processes, timeout=STOP_SECONDS)[1]
        if not processes:
            return
    raise ObjectStoreError(f"still running: {', '.join(str(process.pid) for process in processes)}.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.objectstore", description="A real S3 server on loopback."
    )
    parser.add_argument("verb", choices=["start", "stop", "status"])
    parser.add_argument("--root", required=True, help="folder for data, configuration and logs")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--kind", choices=sorted(KINDS), default=swift.NAME, help="which program")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "stop":
            print(json.dumps({"running": False, "stopped": stop(options.root)}))
            return 0
        if options.verb == "start":
            found: Endpoint | None = start(options.root, host=options.host, port=options.port, kind=options.kind)
        else:
            found = status(options.root)
    except ObjectStoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({"running": found is not None, **(asdict(found) if found else {})}))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
