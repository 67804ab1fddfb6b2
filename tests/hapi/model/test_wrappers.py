"""Modules that others wrapped: captured, divided and loaded as what is inside, and left as they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import hapi
from hapi.errors import CaptureError, InputError
from hapi.model import load_model


def never(*_: Any) -> Any:
    raise AssertionError("what is looked through is not compiled")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image_size = 20
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Dropout(0.5))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def two_processes() -> Iterator[None]:
    """This process believes that it is one of two."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    distributed.destroy_process_group()


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend=never)


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend=never)
    return module


def top(wrap: Callable[[nn.Module], Any], network: Network) -> Any:
    return wrap(network)


def inside(wrap: Callable[[nn.Module], Any], network: Network) -> Any:
    network.stem[0] = wrap(network.stem[0])
    network.body = wrap(network.body)
    return network


def everywhere(wrap: Callable[[nn.Module], Any], network: Network) -> Any:
    return nn.DataParallel(wrap(inside(wrap, network)))


WRAPS = pytest.mark.parametrize(
    "wrap", [compiled, compiled_in_place, nn.DataParallel, nn.parallel.DistributedDataParallel]
)
PLACES = pytest.mark.parametrize("place", [top, inside, everywhere])


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def modules_of(model: nn.Module) -> list[tuple[str, int, Any, bool]]:
    return [(n, id(m), m.__dict__.get("_compiled_call_impl"), m.training) for n, m in model.named_modules()]


@WRAPS
@PLACES
@pytest.mark.usefixtures("two_processes")
def test_the_graph_is_that_of_what_is_inside(wrap: Callable[[nn.Module], Any], place: Callable[..., Any]) -> None:
    network = Network()
    model = place(wrap, network).train()
    before = modules_of(model)
    graph, plain = hapi.capture(model, images()), hapi.capture(Network(), images())
    assert modules_of(model) == before
    assert (graph.name, graph.digest) == (plain.name, plain.digest)
    assert [cut.name for cut in graph.cuts] == [cut.name for cut in plain.cuts]
    assert graph.weights["fc.weight"].data_ptr() == network.fc.weight.data_ptr()


@WRAPS
@PLACES
@pytest.mark.usefixtures("two_processes")
@pytest.mark.filterwarnings("ignore:split of Network. nothing averages")
def test_the_head_trains_what_is_inside(wrap: Callable[[nn.Module], Any], place: Callable[..., Any]) -> None:
    network, x = Network(), images()
    expected = Network().eval()(x)
    model = place(wrap, network)
    network.requires_grad_(False)
    network.fc.requires_grad_(True)
    before = modules_of(model)
    backbone, head = hapi.split(model)  # an input of the size that the network says
    assert modules_of(model) == before
    assert torch.equal(head.eval()(backbone(x)), expected)
    assert [name for name, _ in head.named_parameters()] == ["fc.weight", "fc.bias"]
    assert head.get_parameter("fc.weight") is network.fc.weight
    assert not any("_orig_mod" in name or ".module" in name for name, _ in backbone.named_modules())
    at, _ = hapi.split(model, "body")
    assert torch.equal(at(x), backbone(x)), "the dropout that ends the body is left to the head"


@pytest.mark.usefixtures("two_processes")
def test_who_averages_gradients_is_told_to_wrap_the_head_again() -> None:
    network = Network()
    network.stem.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"nothing averages the head's gradients.*DistributedDataParallel\(head\)"):
        hapi.split(nn.parallel.DistributedDataParallel(network))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hapi.split(nn.DataParallel(network))


@pytest.mark.usefixtures("two_processes")
def test_parameters_divided_among_processes_are_refused() -> None:
    network = Network()
    mesh = init_device_mesh("cpu", (2,))
    network.fc.weight = nn.Parameter(distribute_tensor(network.fc.weight.detach(), mesh, [Shard(0)]))
    model = compiled(network)
    before = modules_of(model)
    for refused in (lambda: hapi.capture(model, images()), lambda: hapi.split(model, "body")):
        with pytest.raises(CaptureError, match=r"Network: its parameters, in 'fc', are divided.*before that"):
            refused()
    assert modules_of(model) == before


def test_what_is_no_module_cannot_be_captured() -> None:
    with pytest.raises(InputError, match=r"capture: function is not a torch\.nn\.Module"):
        hapi.capture(never, images())  # type: ignore[arg-type]


def make_wrapped() -> Any:
    return compiled(inside(compiled, Network()))


def test_a_factory_may_wrap_what_it_makes() -> None:
    model = load_model(f"{__name__}:make_wrapped")
    assert isinstance(model.network, Network)
    assert model.example.shape == (2, 3, 20, 20)
    assert torch.equal(model.backbone(images()), hapi.split(Network(), "body")[0](images()).mean((2, 3)))


class CallsCompiled(Network):
    def __init__(self) -> None:
        super().__init__()
        self.twice = torch.compile(lambda x: 2 * x, backend=never)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.twice(x))


def test_compiled_functions_are_followed_as_they_were_written() -> None:
    model, x = CallsCompiled(), images()
    model.stem.requires_grad_(False)
    model.body.requires_grad_(False)
    backbone, head = hapi.split(model)
    expected = Network().eval()(2 * x)
    assert torch.equal(head.eval()(backbone(x)), expected)
    assert torch.equal(hapi.capture(model, x)(x), expected)


@pytest.mark.parametrize("make", [torch.jit.script, lambda part: torch.jit.trace(part, torch.zeros(2, 4, 18, 18))])
def test_torchscript_is_refused_by_its_name(make: Callable[[nn.Module], Any]) -> None:
    network = Network().requires_grad_(False)
    network.fc.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript will go
        network.body[0] = make(network.body[0])
    with pytest.raises(CaptureError, match=r"Network.*'body.0' is TorchScript.*the module that it was made from"):
        hapi.capture(network, images())
