"""A training as a process: started, waited for until it is in the middle, and judged by how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from benchmarks.testbed.processes import SAID_CHARACTERS, ProgramFailedError, end_group

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Ended:
    """How a training ended: its exit status, its document (empty without one), and its last words if it failed."""

    status: int
    document: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""

    @property
    def losses(self) -> list[float]:
        return list(self.document.get("losses", []))

    @property
    def seconds(self) -> float | None:
        """Of all epochs, without start-up."""
        return sum(self.document["epoch_seconds"]) if self.losses else None


class Training:
    """Ends with its context, whatever state it is in."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], done: Callable[[], float] | None = None
    ) -> None:
        """`done` tells how much of it is done, 0 to 1, for a program that does not print that itself."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the context
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._said, text=True,
            env=dict(environment), start_new_session=True,
        )  # fmt: skip
        self._done = done
        self._samples = 0
        self._last: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, samples: int, whole: int, seconds: float) -> None:
        """Waits until so many of the `whole` samples are trained; ProgramFailedError if it ends before."""
        deadline = time.monotonic() + seconds
        while (self._samples if self._done is None else self._done() * whole) < samples:
            if self._process.poll() is not None:
                self._reader.join()
                raise ProgramFailedError(f"the training ended before anything happened to it: {self._words()}")
            if time.monotonic() > deadline:
                raise ProgramFailedError(f"the training was not half done within {seconds:.0f} s: {self._words()}")
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """As a power failure would."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, seconds: float) -> Ended:
        """Waits for its end; ProgramFailedError if it goes on for longer."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ProgramFailedError(f"the training hung: it went on for more than {seconds:.0f} s") from None
        self._reader.join()
        return Ended(status, self._last if "losses" in self._last else {}, "" if status == 0 else self._words())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_group(self._process)
        self._reader.join()
        self._said.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    told = json.loads(line)
                except ValueError:  # a program that was killed in the middle of one
                    continue
                if "samples" in told and len(told) == 1:
                    self._samples = told["samples"]
                else:
                    self._last = told

    def _words(self) -> str:
        if "error" in self._last:
            return f"{self._last['error']['kind']}: {self._last['error']['message']}"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][-SAID_CHARACTERS:] if lines else "(no words)"
