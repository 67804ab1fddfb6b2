"""A process that answers: one JSON line for each JSON line that it is told."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from benchmarks.testbed.processes import SAID_CHARACTERS, ProgramFailedError, end_group

START_SECONDS = 120.0


class Dialogue:
    """The other side of a process's standard input and output."""

    def __init__(self, process: subprocess.Popen[str], said: IO[bytes]) -> None:
        self._process, self._said = process, said
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, command: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Tells a command (None: nothing) and waits for the answer.

        ProgramFailedError with its words if it ended, was silent for so many seconds, or answered with an error.
        """
        if command is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # reading tells why
                self._process.stdin.write(json.dumps(command) + "\n")
                self._process.stdin.flush()
        what = (command or {}).get("do", "start")
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise ProgramFailedError(f"{what}: no answer within {seconds:.0f} s. {self._words()}") from None
        if not line:
            raise ProgramFailedError(f"{what}: the process ended. {self._words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ProgramFailedError(f"{what}: {answer['error']['message']}")
        return dict(answer)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _words(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-SAID_CHARACTERS:]


@contextlib.contextmanager
def dialogue(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Dialogue]:
    """The process, once it has said its first line; it ends with the context, and everything in its group with it."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
        try:
            talk = Dialogue(process, said)
            talk.ask(None, START_SECONDS)
            yield talk
        finally:
            end_group(process)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
