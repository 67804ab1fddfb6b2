"""Tenants in a process of their own, so that they can be killed: `python -m benchmarks.tenants.leaving`.

It says "ready", reads one JSON line (url, jobs), and runs the jobs until it is killed or they are done.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any

from benchmarks.tenants.clients import IN_FLIGHT, PATIENCE, SPAN, Address, spans_of
from benchmarks.tenants.jobs import TenantJob
from hapi.errors import HapiError


class Leaving:
    """Seen from the benchmark: `start` them, and `kill` them without a word to the server."""

    def __init__(self, process: subprocess.Popen[str], stdin: IO[str]) -> None:
        self._process, self._stdin = process, stdin

    def start(self, address: Address, jobs: Sequence[TenantJob]) -> None:
        """All at once."""
        told = [
            {
                "token": address.tokens[job.tenant],
                "dataset": address.dataset,
                "model": job.task.network.graph.digest,
                "transform": job.task.network.transform.to_json(),
                "cut": job.task.cut,
                "indices": job.indices,
            }
            for job in jobs
        ]
        self._stdin.write(json.dumps({"url": address.url, "jobs": told}) + "\n")
        self._stdin.flush()

    def kill(self) -> None:
        """SIGKILL; RuntimeError if nobody was left to be killed."""
        if self._process.poll() is not None:
            raise RuntimeError("the tenants that were to vanish had ended before")
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def leaving() -> Iterator[Leaving]:
    """The process, ready to be told what to do."""
    command = [sys.executable, "-m", "benchmarks.tenants.leaving"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the process of the tenants that vanish did not start")
            yield Leaving(process, process.stdin)
        finally:
            process.kill()


def run(url: str, told: dict[str, Any]) -> None:
    """One tenant's job."""
    from compute_client.remote import RemoteJob, RemoteSource
    from compute_client.restoring import Restorer
    from compute_client.stats import LoaderStats
    from compute_client.window import Window
    from hapi.cancel import Cancel
    from profiler.remote import ServerClient

    source = RemoteSource(
        ServerClient(url, told["token"]),
        RemoteJob(told["dataset"], told["model"], told["transform"], seed=0),
        retry=PATIENCE,
        restorer=Restorer(lambda error: None),
        decoder=None,
        stats=LoaderStats(),
        window=Window(IN_FLIGHT),
    )
    spans, lock = spans_of(told["cut"], told["indices"], SPAN), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                span = next(spans, None)
            if span is None:
                return
            try:
                source.fetch(span, Cancel())
            except HapiError as error:
                print(f"{error.kind}: {error}", file=sys.stderr)
                return

    for _ in range(IN_FLIGHT):
        threading.Thread(target=work).start()


def main() -> None:
    """Runs what the one line says; stays until killed, as a training that goes on would."""
    import compute_client.remote  # noqa: F401  # seconds that are not the tenants'

    print("ready", flush=True)
    document = json.loads(sys.stdin.readline())
    for told in document["jobs"]:
        run(document["url"], told)
    sys.stdin.read()


if __name__ == "__main__":
    main()
