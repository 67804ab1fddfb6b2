"""The kernel for convolutions, and where compiled programs have it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from hapi.engine import TOLERANCE, Precision
from hapi.engine.agreement import compare
from hapi.engine.compiler import cxx
from hapi.engine.kernels.convolution import WINOGRAD, FuseConvolutions, Side, pack, saving
from hapi.engine.kernels.processor import has_kernels
from hapi.engine.library import Library
from hapi.engine.precision import rewritten
from hapi.engine.worker import compile_to
from hapi.model import capture

needs_compiler = pytest.mark.skipif(cxx() is None, reason="no C++ compiler on this machine")
needs_kernel = pytest.mark.skipif(not has_kernels(torch.float32), reason="no kernels of ours for this processor")
needs_bf16_kernel = pytest.mark.skipif(
    not has_kernels(torch.bfloat16), reason="no bf16 kernels of ours for this processor"
)
CONVOLUTION = torch.ops.mkldnn._convolution_pointwise.default
TOLERATED = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3), (1, 1)), ((5, 5), (2, 0)), ((3, 7), (0, 3)), ((4, 6), (1, 2))]
)
def test_the_definition_is_a_convolution(kernel: tuple[int, int], padding: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 6, 9, 12, generator=generator).to(dtype)
    weight = torch.randn(70, 6, *kernel, generator=generator).to(dtype)
    bias = torch.randn(70, generator=generator)
    plain = functional.conv2d(image.double(), weight.double(), bias.double(), 1, padding)
    other = torch.randn(plain.shape, generator=generator).to(dtype)

    found = WINOGRAD(image, pack(weight), bias, other, 70, *kernel, *padding, True)

    expected = (plain + other).relu()
    assert found.dtype == dtype
    assert (found - expected).abs().max() < TOLERATED[dtype] * expected.abs().max()


@pytest.mark.parametrize(
    ("down", "across", "times"),
    [
        (Side(56, 3, 1), Side(56, 3, 1), 2.25),
        (Side(28, 5, 2), Side(28, 5, 2), 100 / 49),
        (Side(7, 3, 1), Side(7, 3, 1), 2.25 * 49 / 64),
        (Side(4, 3, 0), Side(5, 3, 0), 2.25 * 6 / 8),
    ],
)
def test_tiles_save_multiplications(down: Side, across: Side, times: float) -> None:
    assert saving(down, across) == pytest.approx(times)


class Convolves(nn.Module):
    """Odd sizes, panels and blocks that are not full, parts of kernels, sums and rectifiers, and one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(32, 80, 3, padding=1)
        self.second = nn.Conv2d(80, 80, (5, 3), padding=(2, 1), bias=False)
        self.third = nn.Conv2d(80, 48, 7, padding=(0, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.first(images).relu()
        found = (self.second(found) + found).relu()
        found = found + self.second(found)
        return self.third(found).sigmoid()


@needs_kernel
@needs_compiler
@pytest.mark.parametrize(("precision", "threads"), [("float32", 3), pytest.param("bf16", 1, marks=needs_bf16_kernel)])
def test_the_convolution_kernel_gives_what_eager_gives(
    precision: Precision, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    program = capture(Convolves(), torch.randn(2, 32, 25, 19), name="convolves").whole
    source = rewritten(program, precision)

    library = Library(compile_to(source, tmp_path / "program.so", has_ours=True), program.device)

    assert b"winograd_convolution" in (tmp_path / "program.so").read_bytes()
    for batch in (1, 3):
        assert compare(program, library, source, batch) < TOLERANCE[precision]


def images(channels: int = 32, side: int = 9, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(batch, channels, side, side, generator=generator)
    return found.contiguous(memory_format=torch.channels_last)


class Built:
    """A frozen graph as the compiler has it."""

    def __init__(self) -> None:
        self.root, self.graph, self._names = nn.Module(), fx.Graph(), itertools.count()

    def input(self, value: torch.Tensor) -> fx.Node:
        node = self.graph.placeholder(f"input_{next(self._names)}")
        node.meta["val"] = value
        return node

    def weight(self, *shape: int) -> fx.Node:
        name = f"weight_{next(self._names)}"
        generator = torch.Generator().manual_seed(0)
        self.root.register_buffer(name, torch.randn(shape, generator=generator))
        return self.graph.get_attr(name)

    def call(self, operation: Any, value: torch.Tensor, *args: Any) -> fx.Node:
        node = self.graph.call_function(operation, args)
        node.meta["val"] = value
        return node

    def convolution(
        self, image: fx.Node, weight: fx.Node, bias: fx.Node | None = None, *, stride: int = 1, groups: int = 1
    ) -> fx.Node:
        outs, side = getattr(self.root, str(weight.target)).shape[0], image.meta["val"].shape[-1]
        given = (image, weight, bias, [1, 1], [stride, stride], [1, 1], groups, "none", [], "")
        return self.call(CONVOLUTION, images(outs, -(-side // stride)), *given)

    def module(self, *outputs: fx.Node) -> fx.GraphModule:
        self.graph.output(outputs)
        return fx.GraphModule(self.root, self.graph)


def fused(module: fx.GraphModule, *inputs: torch.Tensor) -> list[str]:
    """Which operations there are after the pass, having made sure that it computes the same."""
    expected = module(*inputs)
    FuseConvolutions()(module.graph)
    module.graph.lint()
    module.recompile()
    for one, other in zip(module(*inputs), expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    return [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("PyTorch without oneDNN")
    monkeypatch.setattr("hapi.engine.kernels.convolution.has_kernels", lambda dtype: dtype == torch.float32)


OURS, THEIRS = WINOGRAD.__name__, CONVOLUTION.__name__
ADD, RELU = torch.ops.aten.add.Tensor, torch.ops.aten.relu.default


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("has_bias", [True, False])
def test_what_follows_a_convolution_is_done_with_it(has_bias: bool) -> None:
    built = Built()
    image = built.input(images())
    found = built.convolution(image, built.weight(32, 32, 3, 3), built.weight(32) if has_bias else None)
    found = built.call(ADD, images(), image, found)
    assert fused(built.module(built.call(RELU, images(), found)), images()) == [OURS]


@pytest.mark.usefixtures("kernels")
def test_what_others_read_stays_as_it_is() -> None:
    built = Built()
    image, weight = built.input(images()), built.weight(32, 32, 3, 3)
    read = built.convolution(image, weight)
    twice = built.convolution(built.call(RELU, images(), read), weight)
    shifted = built.call(ADD, images(), built.convolution(image, weight), built.weight(32, 1, 1))
    module = built.module(read, built.call(ADD, images(), twice, twice), shifted)
    names = fused(module, images())
    assert names.count(OURS) == 3
    assert THEIRS not in names
    assert names.count(RELU.__name__) == 1
    assert names.count(ADD.__name__) == 2
    assert len([name for name, _ in module.named_buffers() if name.endswith("_winograd")]) == 1


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ((32, 32, 1, 1), {}),  # nothing to save
        ((32, 32, 1, 3), {}),
        ((32, 16, 3, 3), {"groups": 2}),
        ((32, 32, 3, 3), {"stride": 2}),
        ((40, 32, 3, 3), {}),  # no whole vectors
        ((32, 16, 3, 3), {"channels": 16}),  # too few channels
        ((32, 32, 3, 3), {"side": 3}),  # most of the tiles lies outside
        ((32, 32, 3, 3), {"layout": torch.contiguous_format}),
    ],
)
def test_other_convolutions_are_left_to_pytorch(shape: tuple[int, ...], given: dict[str, Any]) -> None:
    value = images(given.pop("channels", 32), given.pop("side", 9))
    value = value.contiguous(memory_format=given.pop("layout", torch.channels_last))
    built = Built()
    found = built.convolution(built.input(value), built.weight(*shape), **given)
    assert fused(built.module(found), value) == [THEIRS]


def test_convolutions_are_left_to_pytorch_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hapi.engine.kernels.convolution.has_kernels", lambda dtype: False)
    built = Built()
    found = built.convolution(built.input(images()), built.weight(32, 32, 3, 3))
    assert fused(built.module(found), images()) == [THEIRS]
