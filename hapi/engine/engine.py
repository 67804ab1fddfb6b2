"""The engine: runs a program eagerly at once, and compiled as soon as that is ready, agrees and pays."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from hapi.engine.agreement import Run, given, outputs
from hapi.engine.compiler import Answer, Compiler, Request
from hapi.engine.precision import Precision, check_precision, rewritten
from hapi.errors import InputError
from hapi.model import Program
from hapi.model.indices import READERS
from hapi.model.liveness import constants

Choice = Literal["auto", "eager", "compiled"]
LOOK_SECONDS = 1.0
"""Work after which it is worth looking whether a compiled program lies on disk, where naming it means reading all of
its weights."""
CHOICES: tuple[Choice, ...] = ("auto", "eager", "compiled")


@dataclass(frozen=True)
class _Way:
    """One way to run the program: what it is called, what it runs, and what that takes."""

    kind: str
    run: Run
    takes: Program


class Engine:
    """A program, run the fastest way that is ready. Called like the program, with tensors on its device.

    * `eager`: the program as it is, bit for bit what PyTorch's eager mode gives.
    * `auto`: the folded program (channels last, norms folded) from the first call on, exact to float32 rounding. When
      the time that compiled code would have saved so far reaches what compiling is expected to take, it is compiled in
      the background (so at worst twice the time is spent that the better of the two would have taken). What lies
      compiled on disk is used from the first call on, or after a second of work if the graph's digest is not known yet.
    * `compiled`: compiled from the first call on, in the background, and as `auto` until it is ready.

    Compiled code is taken only if it agrees with the eager program, see `TOLERANCE`. With precision `bf16` everything
    runs in bfloat16, and inputs and outputs keep the program's dtypes, so nothing changes for whoever carries them.
    May be called from several threads. It never blocks on a compiler, but the first call loads and compares what lies
    on disk; `prepare` does that beforehand.
    """

    def __init__(
        self,
        program: Program,
        *,
        choice: Choice = "auto",
        precision: Precision = "float32",
        compiler: Compiler | None = None,
    ) -> None:
        """InputError for an unknown choice, or a precision that the device does not have."""
        if choice not in CHOICES:
            raise InputError(f"engine {choice!r} is not known. Choose one of {', '.join(CHOICES)}.")
        check_precision(precision, program.device)
        self.program, self.choice, self.precision = program, choice, precision
        self._compiler = compiler or shared_compiler()
        self._lock, self._preparing = threading.Lock(), threading.Lock()
        self._begin()

    def _begin(self) -> None:
        """At first, and again after somebody wrote to the weights, of which folded and compiled ones are copies."""
        self._versions = self.program.graph.weight_versions
        self._spent_seconds = 0.0
        self._is_asked = self._has_looked = self._is_settled = False
        self._way: _Way | None = None
        self._why = "as asked" if self.choice == "eager" else "not compiled yet"
        program = self.program
        if self.choice == "eager" or not program.nodes:
            self._is_settled = True
        elif reads_by_data(program) and program.device.type != "cpu":
            # Compiled code does not look at indices; on a GPU a wrong one would end the process's use of the device.
            self._settle(Answer(None, "it reads by indices from the data, which are checked eagerly"))

    def prepare(self) -> None:
        """What the first call would do before it computes anything: see the class."""
        with self._preparing:
            if self._way is None:
                self._look()
            if self._way is None:
                self._way = self._first_way()

    def _look(self) -> None:
        """Takes compiled code that lies on disk, if that costs little, or was asked for."""
        if self._is_settled or not (self.choice == "compiled" or self.program.graph.is_named):
            return
        self._has_looked, versions = True, self._versions
        self._settle(self._compiler.take(self.program, self.precision, torch.get_num_threads()), versions)

    def _first_way(self) -> _Way:
        is_asked_exact = self.choice == "eager" or self.program.device.type != "cpu"  # a GPU would hold weights twice
        if self.precision == "float32" and (is_asked_exact or not self.program.nodes):
            return _Way("eager", _tuples(self.program), self.program)
        program = rewritten(self.program, self.precision)
        return _Way("eager", _tuples(program), program)

    @property
    def kind(self) -> str:
        """`eager` or `compiled`: what the next call runs, as far as that is known before the first."""
        way = self._way
        return "eager" if way is None else way.kind

    @property
    def why(self) -> str:
        """Why that, for people: `compiled, 1.30 times as fast`, `no C++ compiler on this machine (install g++)`."""
        return self._why

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """What the program gives for these tensors (B, ...), in its dtypes, in the usual layout in memory."""
        if self._versions != self.program.graph.weight_versions:
            self._begin()
        while (way := self._way) is None:
            self.prepare()
        started = time.perf_counter()
        if way.takes is self.program and way.kind == "eager":
            results = list(way.run(*tensors))
        else:
            self.program.check(tensors)
            results = [
                result.to(spec.dtype).contiguous()
                for result, spec in zip(way.run(*given(tensors, way.takes)), self.program.outputs, strict=True)
            ]
        if not self._is_settled:
            if self.program.device.type == "cuda":  # which is only told so far what to do
                torch.cuda.synchronize(self.program.device)
            self._consider(time.perf_counter() - started)
        return results[0] if self.program.is_single else tuple(results)

    def _consider(self, seconds: float) -> None:
        """Asks for the compiled program: whether it is there, at first; to have it made, once that pays."""
        with self._lock:
            self._spent_seconds += seconds
            may_look = not self._has_looked and self._spent_seconds >= LOOK_SECONDS
            may_make = self.choice == "compiled" or self._pays()
            if self._is_asked or self._is_settled or not (may_look or may_make):
                return
            self._is_asked = self._has_looked = True
        settle = partial(self._settle, versions=self._versions)
        self._compiler.submit(Request(self.program, self.precision, torch.get_num_threads(), may_make, settle))

    def _pays(self) -> bool:
        saved = self._spent_seconds * (1 - 1 / max(1.0, self._compiler.expected_gain()))
        return saved >= self._compiler.expected_seconds(self.program)

    def _settle(self, answer: Answer, versions: tuple[int, ...] | None = None) -> None:
        """The compiler's answer, on its thread; not for weights that have changed since."""
        with self._lock:
            if versions not in (None, self._versions):
                return
            self._is_asked, self._why = False, answer.why
            self._is_settled = not answer.may_ask_again
            if answer.run is not None:
                self._way = _Way("compiled", answer.run, answer.takes or self.program)

    def __repr__(self) -> str:
        return f"<Engine of {self.program.title}: {self.precision}, {self.kind} ({self._why})>"


def _tuples(program: Program) -> Run:
    """The program as something that always gives a tuple."""
    return lambda *tensors: outputs(program(*tensors))


def reads_by_data(program: Program) -> bool:
    """Whether some operation reads by indices that are not the same in every call."""
    fixed = constants(program.nodes)
    return any(node.op in READERS and node.name not in fixed for node in program.nodes)


_shared: list[Compiler] = []
_shared_lock = threading.Lock()


def shared_compiler() -> Compiler:
    """The one compiler of this process, for engines that were not given another."""
    with _shared_lock:
        if not _shared:
            _shared.append(Compiler())
        return _shared[0]
