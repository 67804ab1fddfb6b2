"""Running a program: memory given back in time, weights shared, inputs checked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hapi.errors import InputError
from hapi.model import Graph, Node, Program, capture


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 32)
        self.back = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x).relu()
        return x + self.back(y.view(x.shape[0], 2, 16).flatten(1))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(nn.Sequential(Residual(), Residual(), nn.Linear(8, 3)), torch.randn(1, 8), name="tiny")


def test_live_bytes_are_exact() -> None:
    graph = capture(Residual(), torch.randn(1, 8))
    sample = 4
    # x 8; +wide 32; +relu 32 (then wide goes); two views of relu: nothing; +back 8 (then relu goes); +sum 8
    expected = {"linear_0": 40, "relu_0": 72, "reshape_0": 40, "flatten_0": 40, "linear_1": 48, "add_0": 24}
    timeline = dict(zip((node.name for node in graph.whole.nodes), graph.whole.live_bytes(5), strict=True))
    assert timeline == {name: 5 * sample * floats for name, floats in expected.items()}
    assert graph.whole.peak_bytes(5) == 5 * sample * 72


class Storages(TorchDispatchMode):
    """Sums the storages, other than the weights', that are alive among everything operations returned."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage()._cdata for weight in graph.weights.values()}
        self.alive: list[torch.multiprocessing.reductions.StorageWeakRef] = []
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                reference = torch.multiprocessing.reductions.StorageWeakRef(tensor.untyped_storage())
                self.sizes[reference.cdata] = tensor.untyped_storage().nbytes()
                self.alive.append(reference)
        return result

    def bytes(self) -> int:
        alive = {reference.cdata for reference in self.alive if not reference.expired()}
        return sum(self.sizes[cdata] for cdata in alive - self.weights)


def test_live_bytes_are_what_a_run_holds(graph: Graph) -> None:
    program, batch = graph.whole, 7
    x = torch.randn(batch, 8)
    held = []

    with torch.no_grad(), Storages(graph) as storages:

        @contextmanager
        def observe(_: Node) -> Iterator[None]:
            yield
            held.append(storages.bytes() + x.nbytes)

        program.run(x, observe=observe)
    assert tuple(held) == program.live_bytes(batch)


def test_a_carried_view_counts_as_its_own_memory() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.linear(x)[:, :4])

    graph = capture(Head(), torch.randn(1, 8))
    _, suffix = graph.split("slice")
    assert suffix.inputs[0].bytes == 16
    assert suffix.live_bytes(3) == (3 * (16 + 8),)


def test_observe_sees_each_node_once_in_order(graph: Graph) -> None:
    seen: list[str] = []

    @contextmanager
    def observe(node: Node) -> Iterator[None]:
        seen.append(node.name)
        yield

    prefix, suffix = graph.split("0")
    x = torch.randn(2, 8)
    carried = prefix.run(x, observe=observe)
    suffix.run(*carried, observe=observe)
    assert seen == [node.name for node in graph.nodes]


def test_parts_share_weights_and_know_their_size(graph: Graph) -> None:
    prefix, suffix = graph.split("1")
    assert set(prefix.weight_names).isdisjoint(suffix.weight_names)
    assert prefix.weight_bytes + suffix.weight_bytes == graph.weight_bytes
    again, _ = graph.split("0")
    device = torch.device("cpu")
    first, second = (graph.weights_on(device, part.weight_names) for part in (prefix, again))
    assert all(first[name] is second[name] for name in second)


def test_to_moves_a_program_and_shares_the_copy(graph: Graph) -> None:
    prefix, _ = graph.split("1")
    moved = prefix.to("meta")
    assert moved.device.type == "meta"
    assert moved(torch.empty(5, 8, device="meta"))[0].shape == (5, 8)
    assert graph.weights_on(moved.device, ["0.wide.weight"])["0.wide.weight"].device.type == "meta"
    assert prefix.to("cpu") is prefix
    assert prefix.to("meta").to("meta").device == moved.device


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ((), "takes 1 tensors"),
        ((torch.randn(2, 8), torch.randn(2, 8)), "takes 1 tensors"),
        ((torch.randn(2, 9),), "must be"),
        ((torch.randn(8),), "must be"),
        ((torch.tensor(1.0),), "must be"),
        ((torch.randn(0, 8),), "at least 1"),
        ((torch.randn(2, 8).double(),), "float64"),
        ((torch.empty(2, 8, device="meta"),), "is on meta"),
    ],
)
def test_wrong_tensors_are_refused(graph: Graph, tensors: tuple[Tensor, ...], problem: str) -> None:
    prefix, _ = graph.split("1")
    with pytest.raises(InputError, match=problem) as caught:
        prefix(*tensors)
    assert "prefix of tiny to 1" in str(caught.value)


def test_threads_may_share_a_program(graph: Graph) -> None:
    inputs = [torch.randn(3, 8) for _ in range(8)]
    with torch.no_grad():
        expected = [graph(x) for x in inputs]
    results: dict[int, Tensor] = {}

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                results[index] = graph(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[index], expected[index]) for index in range(8))


def test_gradients_flow_when_the_caller_wants_them(graph: Graph) -> None:
    x = torch.randn(2, 8, requires_grad=True)
    graph(x).sum().backward()
    assert x.grad is not None
    assert not any(weight.requires_grad for weight in graph.weights.values())


def test_a_program_of_any_values(graph: Graph) -> None:
    names = ["linear_0", "add_0"]
    both = Program(graph, "two values", graph.input_names, names)
    first, second = both(torch.randn(4, 8))
    assert (first.shape, second.shape) == ((4, 32), (4, 8))
    assert [spec.shape for spec in both.outputs] == [(32,), (8,)]
