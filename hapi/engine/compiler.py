"""The background compiler of a process: one program at a time, in a process of its own, at the lowest priority."""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hapi.engine.agreement import Run, allowed, compare
from hapi.engine.library import Library
from hapi.engine.precision import TOLERANCE, Precision, rewritten
from hapi.engine.shelf import Compiled, Shelf, key_of
from hapi.errors import InputError
from hapi.machine import free_bytes, processors
from hapi.model import Program, save_archive
from hapi.units import format_bytes

log = logging.getLogger(__name__)

SECONDS_PER_NODE = 0.15
"""Compiling takes about so long before anything was compiled here: 175 nodes of resnet50 took 20 to 30 s."""
USUAL_GAIN = 1.25
"""How many times faster compiled code is than what it replaces, before any was measured here."""
LEAST_GAIN = 1.02
LONGEST_SECONDS = 1800.0
COMPILER_BYTES = 3 * 2**29
"""What the compiling process needs beside copies of the weights: PyTorch and a C++ compiler."""
WEIGHT_COPIES = 4
CHECK_BATCH = 1
"""Of the comparison when code is loaded: it agreed on more samples when it was made, and is the same file."""


@dataclass(frozen=True)
class Answer:
    """What became of a request: a runner of the program in its precision, or why there is none.

    `may_ask_again`: nothing was wrong, it just was not there. `is_made`: there is compiled code that agrees, which is
    not run only if it is no faster. `takes`: the program that says in which dtypes the runner takes its inputs.
    """

    run: Run | None
    why: str
    gain: float = 1.0
    may_ask_again: bool = False
    is_made: bool = False
    takes: Program | None = None


@dataclass(frozen=True)
class Request:
    """Look for a compiled program, and make it if `may_make`. `deliver` is called once, on the compiler's thread."""

    program: Program
    precision: Precision
    threads: int
    may_make: bool
    deliver: Callable[[Answer], Any]


Make = Callable[[dict[str, Any]], dict[str, Any]]
Load = Callable[[Path, torch.device], Run]


class Compiler:
    """Finds compiled programs on the shelf, and makes those that are not there. Thread-safe; `close` ends it."""

    def __init__(self, shelf: Shelf | Path | None = None, *, make: Make | None = None, load: Load = Library) -> None:
        """`shelf`, or the folder of one, which is opened at the first request: a bad one is an answer, not an error.

        `make` and `load` are for tests: what compiles a job, and what loads the result.
        """
        self._shelf = shelf
        self._make = make or self._run_worker
        self._load = load
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._known: list[Compiled] | None = None

    def submit(self, request: Request) -> None:
        """Puts the request at the end of the queue; after `close` it is answered with a refusal."""
        with self._lock:
            if not self._is_closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._loop, name="hapi-compiler", daemon=True)
                    self._thread.start()
                    atexit.register(self.close)
                self._requests.put(request)
                return
        request.deliver(Answer(None, "the process is ending"))

    def wait(self, program: Program, precision: Precision, threads: int) -> Answer:
        """Finds or makes the compiled program, in the foreground."""
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.submit(Request(program, precision, threads, True, answers.put))
        return answers.get()

    def take(self, program: Program, precision: Precision, threads: int) -> Answer:
        """What lies on the shelf, loaded and compared on the calling thread, without any of the compiler's own."""
        request = Request(program, precision, threads, False, lambda answer: None)
        return Answer(None, "the process is ending") if self._is_closed else self._answered(request)

    def lying(self, program: Program, precision: Precision, threads: int) -> Compiled | None:
        """What is known of a compiled program that lies on the shelf already; None if none does that would be used."""
        try:
            compiled = self._opened().find(key_of(program, precision, threads))
        except InputError as error:  # a bad folder costs the compiled code, here as in service
            log.warning("no compiled programs are used: %s", error)
            return None
        return compiled if compiled is not None and compiled.gain >= LEAST_GAIN else None

    def expected_seconds(self, program: Program) -> float:
        """How long compiling will probably take: by what it took before, in proportion to the nodes."""
        rates = [compiled.seconds / max(1, compiled.nodes) for compiled in self._known or ()]
        return (median(rates) if rates else SECONDS_PER_NODE) * len(program.nodes)

    def expected_gain(self) -> float:
        """How many times faster it will probably be."""
        gains = [compiled.gain for compiled in self._known or ()]
        return median(gains) if gains else USUAL_GAIN

    def close(self) -> None:
        """Ends a compilation that is under way, and the thread."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            process, thread = self._process, self._thread
            self._requests.put(None)
        if process is not None:
            process.kill()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=10)

    def _loop(self) -> None:
        while (request := self._requests.get()) is not None:
            answer = Answer(None, "the process is ending") if self._is_closed else self._answered(request)
            request.deliver(answer)
            del request, answer

    def _answered(self, request: Request) -> Answer:
        try:
            return self._answer(request)
        except Exception as error:  # compiling is an extra: whatever goes wrong, eager serves on
            log.warning("%s stays eager", request.program.title, exc_info=error)
            return Answer(None, f"compiling failed ({error})"[:300])

    def _opened(self) -> Shelf:
        with self._lock:
            if not isinstance(self._shelf, Shelf):
                self._shelf = Shelf(self._shelf)
            return self._shelf

    def _answer(self, request: Request) -> Answer:
        shelf = self._opened()
        if self._known is None:
            self._known = shelf.all()
        program = request.program
        key = key_of(program, request.precision, request.threads)
        compiled = shelf.find(key)
        if compiled is None:
            if (reason := unable(program)) is not None:
                return Answer(None, reason)
            if not request.may_make:
                return Answer(None, "not compiled yet", may_ask_again=True)
            made = self._compile(request, key)
            if isinstance(made, str):
                return Answer(None, made)
            compiled = made
        if compiled.gain < LEAST_GAIN:
            return Answer(None, f"compiled code is no faster ({compiled.gain:.2f} times)", compiled.gain, is_made=True)
        return self._adopt(request, key, compiled)

    def _adopt(self, request: Request, key: str, compiled: Compiled) -> Answer:
        """Loads it, and compares it once more: the file may be older than this process."""
        assert isinstance(self._shelf, Shelf)
        program, limit = request.program, TOLERANCE[request.precision]
        source = program if request.precision == "float32" else rewritten(program, request.precision)
        run = self._load(self._shelf.path(key), program.device)
        error = compare(program, run, source, CHECK_BATCH)
        if not error <= limit and not error <= (limit := allowed(program, source, request.precision, CHECK_BATCH)):
            self._shelf.drop(key)
            return Answer(None, _disagrees(error, limit))
        return Answer(run, f"compiled, {compiled.gain:.2f} times as fast", compiled.gain, is_made=True, takes=source)

    def _compile(self, request: Request, key: str) -> Compiled | str:
        """The facts of a program that now lies on the shelf, or why none does."""
        assert isinstance(self._shelf, Shelf)
        assert self._known is not None
        program = request.program
        log.info("compiling %s (%s, about %.0f s)", program.title, request.precision, self.expected_seconds(program))
        with self._shelf.making() as folder:
            archive = folder / "graph.hapi"
            save_archive(program.graph, archive)
            said = self._make(
                {
                    "archive": str(archive),
                    "inputs": program.input_names,
                    "outputs": program.output_names,
                    "device": str(program.device),
                    "precision": request.precision,
                    "threads": request.threads,
                    "target": str(self._shelf.path(key)),
                }
            )
        if "failure" in said:
            return f"compiling failed ({said['failure']})"
        limit, remark = said.pop("limit", TOLERANCE[request.precision]), said.pop("remark", "")
        if remark:
            log.warning("%s is compiled without kernels of ours: %s", program.title, remark)
        compiled = Compiled(**said)
        if not compiled.error <= limit:
            return _disagrees(compiled.error, limit)
        self._known.append(compiled)
        self._shelf.keep(key, compiled)
        log.info("compiled %s in %.0f s: %.2f times as fast", program.title, compiled.seconds, compiled.gain)
        return compiled

    def _run_worker(self, job: dict[str, Any]) -> dict[str, Any]:
        """Runs the job in a process of its own and waits; Python's lock is free meanwhile."""
        helpers = 1 if torch.device(job["device"]).type == "cpu" else processors()  # a GPU's kernels are many files
        threads = {"TORCHINDUCTOR_COMPILE_THREADS": str(helpers), "OMP_NUM_THREADS": str(job["threads"])}
        with self._lock:
            if self._is_closed:
                return {"failure": "the process is ending"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hapi.engine.worker"],  # -P: no code from the current directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **threads},
            )
            process = self._process
        try:
            answer, _ = process.communicate(json.dumps(job), timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"failure": f"it took longer than {LONGEST_SECONDS:.0f} s"}
        finally:
            self._process = None
        try:
            return dict(json.loads(answer))
        except ValueError:
            said = f"the compiling process ended with status {process.returncode}, its C++ compiler was {cxx()}"
            return {"failure": f"{said}; CXX names another"}


def unable(program: Program) -> str | None:
    """Why this machine cannot compile a program now; None if it can."""
    if not cxx():
        return "no C++ compiler on this machine (install g++)"
    needed = COMPILER_BYTES + WEIGHT_COPIES * program.weight_bytes
    if (free := free_bytes("cpu")) < needed:
        return f"compiling needs about {format_bytes(needed)} of memory, {format_bytes(free)} are free"
    return None


def cxx() -> str | None:
    """The C++ compiler that PyTorch's would find: CXX, g++ or clang++."""
    names = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    return next((path for name in names if (path := shutil.which(name))), None)


def _disagrees(error: float, limit: float) -> str:
    return f"compiled code differs from eager by {error:.1e} of the output's scale, over the limit of {limit:.0e}"
