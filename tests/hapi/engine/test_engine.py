"""The engine: the same features however it runs, and compiled code only where it is right, ready and worth it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from hapi.engine import TOLERANCE, Compiler, Engine, Shelf, has_bf16
from hapi.engine import compiler as compiling
from hapi.engine.agreement import Run, distance, outputs, probe
from hapi.engine.compiler import Answer, Request, unable
from hapi.engine.folding import folded
from hapi.engine.library import Library
from hapi.engine.module import as_module
from hapi.engine.precision import Precision, in_bf16, rewritten
from hapi.engine.shelf import Compiled
from hapi.errors import InputError
from hapi.model import Graph, Program, capture

needs_compiler = pytest.mark.skipif(compiling.cxx() is None, reason="no C++ compiler on this machine")
needs_bf16 = pytest.mark.skipif(not has_bf16("cpu"), reason="this processor does not compute in bfloat16")


def small() -> Graph:
    """Convolution, norm, branch, pooling and a linear layer: two seconds to compile."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 4, 3, stride=2), nn.BatchNorm2d(4), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
    )
    for part in network:
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return capture(network.eval(), torch.zeros(2, 3, 12, 12), name="small")


@cache
def captured(name: str) -> Graph:
    """A torchvision network with random weights, for small pictures."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, **({"image_size": 64} if name == "vit_b_16" else {}))
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if not tensor.any():  # a head of zeros would hide every mistake
                tensor += (0.02 * torch.rand(tensor.shape)).to(tensor.dtype)
    return capture(network.eval(), torch.zeros(2, 3, 64, 64), name=name)


class FakeMaker:
    """Stands where the compiling process does: writes an empty library and says what it is told to."""

    def __init__(self, **facts: Any) -> None:
        self.jobs: list[dict[str, Any]] = []
        self._facts = {"seconds": 1.0, "nodes": 10, "gain": 2.0, "error": 0.0, **facts}

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        assert Path(job["archive"]).is_file()
        self.jobs.append(job)
        if "failure" in self._facts:
            return {"failure": self._facts["failure"]}
        Path(job["target"]).write_bytes(b"library")
        return dict(self._facts)


class Inline(Compiler):
    """Answers before `submit` returns."""

    def submit(self, request: Request) -> None:
        request.deliver(self._answer(request))


def loads(program: Program, error: float = 0.0) -> Any:
    """A loader of 'compiled code' that computes what the program does, off by `error` of the output's scale."""

    def load(path: Path, device: torch.device) -> Run:
        assert path.is_file()

        def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
            found = outputs(program(*tensors))
            return [tensor * (1 + error) for tensor in found]

        return run

    return load


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "cxx", lambda: "/usr/bin/g++")
    monkeypatch.setattr(compiling, "free_bytes", lambda device: 2**40)
    monkeypatch.setattr("hapi.engine.engine.LOOK_SECONDS", 0.0)


def _never(*arguments: Any) -> Any:
    raise AssertionError("not to be called")


def parts(graph: Graph) -> Iterator[Program]:
    """The whole, and both sides of a cut in the middle."""
    yield graph.whole
    yield from graph.split(graph.cuts[len(graph.cuts) // 2])


def difference(program: Program, found: Any) -> float:
    with torch.inference_mode():
        return distance(outputs(program(*probe(program))), outputs(found))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "vit_b_16"])
def test_what_a_program_is_rewritten_to_computes_the_same(name: str) -> None:
    for program in parts(captured(name)):
        inputs = probe(program)
        with torch.inference_mode():
            assert difference(program, rewritten(program, "float32")(*inputs)) < TOLERANCE["float32"]
            assert difference(program, as_module(program)(*inputs)) < TOLERANCE["float32"]


@needs_bf16
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_bf16_stays_close_and_keeps_the_dtypes_of_the_cut(name: str) -> None:
    for program in parts(captured(name)):
        engine = Engine(program, choice="eager", precision="bf16")
        with torch.inference_mode():
            results = outputs(engine(*probe(program)))
        assert [result.dtype for result in results] == [spec.dtype for spec in program.outputs]
        assert difference(program, results) < 3 * TOLERANCE["bf16"]
        assert difference(program, results) > 0


class Block(nn.Module):
    """Adds to its value twice, as a layer of a transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.norms, self.products = nn.ModuleList(nn.LayerNorm(8) for _ in range(2)), nn.ModuleList()
        self.products.extend(nn.Linear(8, 8) for _ in range(2))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        for norm, product in zip(self.norms, self.products, strict=True):
            value = value + product(norm(value)).relu()
        return value


class Layers(nn.Module):
    """Patches, a token before them, blocks, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 2, stride=2), nn.Parameter(torch.randn(1, 1, 8))
        self.positions, self.blocks = nn.Parameter(torch.randn(1, 5, 8)), nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        value = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1) + self.positions
        return self.norm(self.blocks(value))


def test_what_the_layers_of_a_transformer_add_to_stays_in_float32() -> None:
    torch.manual_seed(0)
    graph = capture(Layers().eval(), torch.zeros(2, 3, 4, 4))
    rounded = in_bf16(graph)
    wide = {node.op for node in rounded.nodes if rounded.specs[node.name].dtype == torch.float32}
    narrow = {node.op for node in rounded.nodes if rounded.specs[node.name].dtype == torch.bfloat16}
    assert wide >= {"aten.conv2d.default", "aten.cat.default", "aten.add.Tensor", "aten.layer_norm.default"}
    assert narrow == {"aten.linear.default", "aten.relu.default", "aten._to_copy.default"}, "the products"
    assert rounded.inputs == graph.inputs, "pictures are not rounded"
    program = graph.whole
    with torch.inference_mode():
        found = Engine(program, choice="eager", precision="bf16")(*probe(program))
    assert 0 < difference(program, found) < TOLERANCE["bf16"]


def test_sums_are_rounded_where_no_layer_norm_reads_them() -> None:
    graph = in_bf16(captured("resnet18"))
    assert {graph.specs[node.name].dtype for node in graph.nodes} == {torch.bfloat16}


def test_a_sum_of_rounded_values_is_made_wide() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.relu()
            return self.norm(self.one(x) + self.other(x))

    torch.manual_seed(0)
    graph = capture(Twice(), torch.zeros(2, 4))
    rounded = in_bf16(graph)
    (total,) = (node for node in rounded.nodes if node.op == "aten.add.Tensor")
    assert rounded.specs[total.name].dtype == torch.float32
    assert rounded.inputs[0].dtype == torch.bfloat16
    assert rounded(torch.randn(3, 4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("is_first", [False, True])
def test_a_sum_of_a_rounded_value_and_a_single_number_is_made_wide(is_first: bool) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.shift, self.norm = nn.Linear(4, 4), nn.Parameter(torch.tensor(0.3)), nn.LayerNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.one(x).relu()
            return self.norm(self.shift + x if is_first else x + self.shift)

    graph = in_bf16(capture(Shifted(), torch.zeros(2, 4)))
    (total,) = (node for node in graph.nodes if node.op == "aten.add.Tensor")
    assert graph.specs[total.name].dtype == torch.float32
    assert graph(torch.randn(3, 4).bfloat16()).dtype == torch.float32


def test_norms_are_folded_except_across_a_cut() -> None:
    graph = captured("resnet18")
    names = [node.op for node in folded(graph).nodes]
    assert "aten.batch_norm.default" not in names
    assert [cut.values for cut in folded(graph).cuts] == [cut.values for cut in graph.cuts]


def test_masks_written_with_the_lowest_float32_stay_finite_in_bf16() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lowest = torch.finfo(torch.float32).min
            return torch.softmax(x.masked_fill(x > -100, lowest), -1)

    graph = in_bf16(capture(Masked(), torch.zeros(2, 4)))
    assert graph(torch.zeros(2, 4, dtype=torch.bfloat16)).isfinite().all()


def test_eager_is_the_program_itself_bit_for_bit() -> None:
    program = small().whole
    engine = Engine(program, choice="eager")
    inputs = probe(program)
    assert torch.equal(engine(*inputs), program(*inputs))
    assert (engine.kind, engine.why) == ("eager", "as asked")


def test_compiled_code_is_swapped_in_when_it_agrees(shelf: Shelf) -> None:
    program, make = small().whole, FakeMaker()
    engine = Engine(program, choice="compiled", compiler=Inline(shelf, make=make, load=loads(program)))
    assert engine.kind == "eager"
    first = engine(*probe(program))
    assert engine.kind == "compiled"
    assert "2.00 times" in engine.why
    assert distance([first], [engine(*probe(program))]) < TOLERANCE["float32"]
    assert len(make.jobs) == 1


@pytest.mark.parametrize(
    ("maker", "error"), [(FakeMaker(), 1e-4), (FakeMaker(error=1e-4), 0.0), (FakeMaker(), float("nan"))]
)
def test_compiled_code_that_disagrees_is_refused(shelf: Shelf, maker: FakeMaker, error: float) -> None:
    program = small().whole
    compiler = Inline(shelf, make=maker, load=loads(program, error))
    engine = Engine(program, choice="compiled", compiler=compiler)
    for _ in range(3):
        assert difference(program, engine(*probe(program))) < TOLERANCE["float32"]
    assert engine.kind == "eager"
    assert "differs from eager" in engine.why
    assert len(maker.jobs) == 1
    assert not list(shelf.folder.glob("*.json"))


def test_a_compiler_that_fails_leaves_eager_and_its_reason(shelf: Shelf) -> None:
    program, make = small().whole, FakeMaker(failure="InductorError: no such thing")
    engine = Engine(program, choice="compiled", compiler=Inline(shelf, make=make))
    engine(*probe(program))
    engine(*probe(program))
    assert (engine.kind, len(make.jobs)) == ("eager", 1)
    assert "no such thing" in engine.why


def test_what_is_compiled_without_kernels_of_ours_is_told(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    program, make = small().whole, FakeMaker(remark="with them it cannot be compiled (no such instruction)")
    engine = Engine(program, choice="compiled", compiler=Inline(shelf, make=make, load=loads(program)))
    engine(*probe(program))
    assert engine.kind == "compiled"
    assert "without kernels of ours: with them it cannot be compiled" in caplog.text


def test_code_that_is_no_faster_is_not_used(shelf: Shelf) -> None:
    program = small().whole
    engine = Engine(program, choice="compiled", compiler=Inline(shelf, make=FakeMaker(gain=0.9)))
    engine(*probe(program))
    assert engine.kind == "eager"
    assert "no faster" in engine.why


def test_without_a_compiler_it_stays_eager_and_says_so(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "cxx", lambda: None)
    program, make = small().whole, FakeMaker()
    engine = Engine(program, choice="compiled", compiler=Inline(shelf, make=make))
    engine(*probe(program))
    assert (engine.kind, make.jobs) == ("eager", [])
    assert "g++" in engine.why


def test_without_memory_for_a_compiler_it_stays_eager(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "free_bytes", lambda device: 2**30)
    assert "memory" in str(unable(small().whole))


def test_auto_compiles_when_what_it_would_have_saved_pays_for_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    program, make = small().whole, FakeMaker()
    compiler = Inline(shelf, make=make, load=loads(program))
    engine = Engine(program, compiler=compiler)
    seconds = iter(range(0, 10_000, 1))
    monkeypatch.setattr("hapi.engine.engine.time.perf_counter", lambda: float(next(seconds)))  # each call takes 1 s
    needed = compiler.expected_seconds(program) / (1 - 1 / compiler.expected_gain())
    assert needed > 3
    calls = 0
    while engine.kind == "eager":
        engine(*probe(program))
        calls += 1
        assert calls <= needed + 1
    assert calls >= needed
    assert len(make.jobs) == 1


def test_what_lies_compiled_is_found_after_a_restart(shelf: Shelf) -> None:
    program = small().whole
    Engine(program, choice="compiled", compiler=Inline(shelf, make=FakeMaker(), load=loads(program)))(*probe(program))
    again, make = small().whole, FakeMaker()
    engine = Engine(again, compiler=Inline(Shelf(shelf.folder), make=make, load=loads(again)))
    engine(*probe(again))
    assert (engine.kind, make.jobs) == ("compiled", [])
    other = Engine(again, compiler=Inline(shelf, make=make, load=loads(again)), choice="auto")
    with torch.inference_mode():
        other(*probe(again))
    assert other.kind == "compiled"


def test_what_lies_compiled_is_taken_before_the_first_call_where_naming_it_is_free(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = small()
    program = graph.whole
    maker = Inline(shelf, make=FakeMaker(), load=loads(program))
    Engine(program, choice="compiled", compiler=maker)(*probe(program))
    monkeypatch.setattr("hapi.engine.engine.LOOK_SECONDS", 1e9)
    monkeypatch.setattr("hapi.engine.engine.rewritten", _never)  # no folded copy of the weights is needed
    threads = threading.active_count()
    engine = Engine(program, compiler=Compiler(Shelf(shelf.folder), make=FakeMaker(), load=loads(program)))
    assert (graph.is_named, engine.kind) == (True, "eager")
    engine.prepare()
    assert (engine.kind, engine.why) == ("compiled", "compiled, 2.00 times as fast")
    engine(*probe(program))
    assert threading.active_count() == threads


def test_a_graph_without_a_known_digest_is_not_read_for_its_name(shelf: Shelf) -> None:
    program = small().whole
    engine = Engine(program, compiler=Compiler(shelf, make=FakeMaker()))
    engine.prepare()
    assert not program.graph.is_named
    assert engine.kind == "eager"


def test_what_lies_compiled_and_disagrees_is_not_taken(shelf: Shelf) -> None:
    program = small().whole
    Engine(program, choice="compiled", compiler=Inline(shelf, make=FakeMaker(), load=loads(program)))(*probe(program))
    engine = Engine(program, compiler=Compiler(shelf, make=FakeMaker(), load=loads(program, error=1e-3)))
    engine.prepare()
    assert engine.kind == "eager"
    assert "differs from eager" in engine.why
    assert difference(program, engine(*probe(program))) < TOLERANCE["float32"]


def test_a_damaged_or_foreign_file_is_not_loaded(shelf: Shelf) -> None:
    path = shelf.path("key")
    path.write_bytes(b"library")
    shelf.keep("key", Compiled(1.0, 10, 2.0, 0.0))
    assert shelf.find("key") is not None
    path.write_bytes(b"another library")
    assert shelf.find("key") is None
    assert shelf.find("absent") is None


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InputError, match="chmod 700"):
        Shelf(folder)
    folder.chmod(0o700)
    assert os.stat(Shelf(folder).folder).st_mode & 0o077 == 0


def test_an_open_folder_leaves_eager(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    compiler = Compiler(tmp_path / "open", make=FakeMaker())
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    compiler.submit(Request(small().whole, "float32", 1, True, answers.put))
    answer = answers.get(timeout=60)
    compiler.close()
    assert answer.run is None
    assert "chmod 700" in answer.why


def test_the_weights_may_change_under_an_engine() -> None:
    program = small().whole
    engine = Engine(program)
    before = engine(*probe(program))
    with torch.no_grad():
        for weight in program.graph.weights.values():
            if weight.is_floating_point():
                weight.mul_(1.5)
    assert not torch.allclose(before, engine(*probe(program)))  # type: ignore[arg-type]
    assert difference(program, engine(*probe(program))) < TOLERANCE["float32"]


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", max_bytes=20)
    for number, key in enumerate(("a", "b", "c")):
        shelf.path(key).write_bytes(b"x" * 9)
        os.utime(shelf.path(key), (number, number))
        shelf.keep(key, Compiled(1.0, 10, 2.0, 0.0))
        os.utime(shelf.path(key), (number, number))
    assert [shelf.find(key) is not None for key in ("a", "b", "c")] == [False, True, True]


def test_unknown_choices_are_refused() -> None:
    program = small().whole
    with pytest.raises(InputError, match="auto, eager, compiled"):
        Engine(program, choice="fast")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="float32, bf16"):
        Engine(program, precision="float8")  # type: ignore[arg-type]


def test_wrong_tensors_are_refused_as_the_program_does() -> None:
    engine = Engine(small().whole)
    with pytest.raises(InputError, match="must be"):
        engine(torch.zeros(2, 3, 9, 9))


@needs_compiler
def test_the_real_compiler_agrees_at_every_batch_size(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))  # as /tmp, where anybody may lay a file for others to find
    precision: Precision = "float32"
    graph = small()
    program, _ = graph.split(graph.cuts[-2])
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    compiler = Compiler(shelf)
    compiler._known = []
    try:
        compiler.submit(Request(program, precision, 1, True, answers.put))
        answer = answers.get(timeout=280)
    finally:
        compiler.close()
    assert not [path for path in shared.rglob("*") if path.is_file()]
    found = [shelf.find(path.stem) for path in shelf.folder.glob("*.so")]
    assert len(found) == 1, answer
    assert found[0] is not None
    if answer.run is None:  # so small a network need not get faster; what was made is loaded all the same
        assert "no faster" in answer.why
        path = next(shelf.folder.glob("*.so"))
        path.with_suffix(".json").write_text(
            path.with_suffix(".json").read_text().replace(f'"gain": {found[0].gain}', '"gain": 2.0')
        )
    engine = Engine(program, precision=precision, compiler=Inline(Shelf(shelf.folder), make=FakeMaker()))
    torch.set_num_threads(1)
    with torch.inference_mode():
        engine(*probe(program))
        assert engine.kind == "compiled", engine.why
        for batch in (1, 2, 3, 16, 33):
            inputs = probe(program, batch)
            results = outputs(engine(*inputs))
            assert distance(outputs(program(*inputs)), results) < TOLERANCE[precision]
            assert all(result.is_contiguous() for result in results)


def test_a_closed_compiler_refuses(shelf: Shelf) -> None:
    compiler = Compiler(shelf)
    compiler.close()
    answers: list[Answer] = []
    compiler.submit(Request(small().whole, "float32", 1, True, answers.append))
    assert answers[0].run is None


def test_what_is_left_of_a_compilation_that_was_killed_is_removed(shelf: Shelf) -> None:
    with shelf.making() as folder:
        (folder / "graph.hapi").write_bytes(b"weights")
        killed = shelf.folder / ".making-killed"
        killed.mkdir()
        (killed / "held").touch()
        Shelf(shelf.folder)
        assert [path.name for path in shelf.folder.iterdir()] == [folder.name], "what another process holds is left"
    assert not list(shelf.folder.iterdir())


@needs_compiler
def test_a_compilation_that_is_ended_leaves_nothing(shelf: Shelf) -> None:
    compiler = Compiler(shelf)
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    compiler.submit(Request(small().whole, "float32", 1, True, answers.put))
    while not list(shelf.folder.glob("*/*/")) and answers.empty():  # the compiling process has not begun
        threading.Event().wait(0.01)
    compiler.close()
    assert answers.get(timeout=60).run is None
    while list(shelf.folder.iterdir()):  # a C++ compiler may write for a moment more
        Shelf(shelf.folder)


def test_a_library_that_nobody_uses_any_more_frees_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Recorded:
        def __init__(self, path: str) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: calls.append(name.removeprefix("AOTInductorModelContainer")) or 0

    monkeypatch.setattr("ctypes.CDLL", Recorded)
    library = Library(Path("program.so"), torch.device("cpu"))
    assert calls == ["CreateWithDevice", "GetNumOutputs"]
    del library
    assert calls[2:] == ["Delete"]
