"""Capturing: what is left unchanged, what is understood, and what is refused in words."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from hapi.errors import CaptureError
from hapi.model import capture, split


def small_bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30
    )
    return transformers.BertModel(config)


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module.train()
    module[2].eval()  # as people freeze the statistics of one layer
    module[0].weight.requires_grad_(False)
    calls: list[tuple[int, ...]] = []
    module[3].register_forward_hook(lambda _module, _args, out: calls.append(tuple(out.shape)))
    modes = [part.training for part in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    gradients = [parameter.requires_grad for parameter in module.parameters()]
    hooks = [len(part._forward_hooks) for part in module.modules()]
    random = torch.get_rng_state()

    graph = capture(module, torch.randn(1, 4, generator=torch.Generator().manual_seed(0)))

    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == gradients
    assert [len(part._forward_hooks) for part in module.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(graph(x), module.eval()(x))  # without dropout, with the running statistics


def test_modes_are_restored_when_capturing_fails() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    module = nn.Sequential(nn.Dropout(), Fails()).train()
    with pytest.raises(CaptureError, match="Sequential cannot be captured as a graph: no"):
        capture(module, torch.randn(2, 3))
    assert all(part.training for part in module.modules())


def test_weights_are_shared_and_changes_are_seen() -> None:
    module = nn.Linear(3, 2)
    graph = capture(module, torch.randn(1, 3))
    digest = graph.digest
    assert graph.weights["weight"].data_ptr() == module.weight.data_ptr()
    with torch.no_grad():
        module.weight += 1
        x = torch.randn(2, 3)
        assert torch.equal(graph(x), module(x))
    assert graph.digest != digest


def test_tied_weights_are_held_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    graph = capture(Tied(), torch.randn(1, 4))
    assert len(graph.weights) == 3
    assert graph.weight_bytes == (16 + 4 + 4) * 4


def test_odd_module_names_become_portable_ones() -> None:
    module = nn.Sequential()
    module.add_module("/up one/lev\u00e9l", nn.Linear(3, 3))
    module.add_module("a b", nn.Linear(3, 2))
    graph = capture(module, torch.randn(1, 3))
    x = torch.randn(2, 3)
    assert torch.equal(graph(x), module(x))
    known = [*graph.weights, *(node.module for node in graph.nodes), *(cut.name for cut in graph.cuts)]
    assert not any(set(name) & set("/\\ \u00e9") or ".." in name for name in known)


@pytest.mark.parametrize("module", [nn.MultiheadAttention(8, 2, batch_first=True).eval()])
def test_attention_modules_keep_the_kernel_of_eager_mode(module: nn.Module) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = module.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    backbone = Attend().eval()
    graph = capture(backbone, torch.randn(1, 5, 8))
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        assert torch.equal(graph(x), backbone(x))


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.conv(x), 1).squeeze()


def test_a_squeeze_leaves_the_batch_of_a_single_sample() -> None:
    graph = capture(Squeezed(), torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    assert graph(x[:1]).shape == (1, 8)
    torch.testing.assert_close(torch.cat([graph(one[None]) for one in x]), graph(x))


def test_a_module_laid_out_channels_last_is_captured_with_its_norms() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    module.to(memory_format=torch.channels_last).eval()
    graph = capture(module, torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(graph(x), module(x))
    for cut in graph.cuts:
        prefix, suffix = graph.split(cut)
        assert torch.equal(suffix(*prefix(x)), graph(x)), cut.name


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 7, 4, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.conv(x).flatten(2).transpose(1, 2)).mean(1)


def test_tokens_that_are_laid_out_as_a_picture_is_are_divided_bit_for_bit() -> None:
    module = Tokens().eval()
    graph = capture(module, torch.randn(2, 3, 32, 32))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert {"encoder.layers.0", "encoder"} <= {cut.name for cut in graph.cuts}
    for cut in graph.cuts:
        prefix, suffix = graph.split(cut)
        assert torch.equal(suffix(*prefix(x)), graph(x)), cut.name


def test_threads_may_capture_at_once() -> None:
    modules = [Squeezed(), Tokens(), Squeezed(), Tokens()]
    with ThreadPoolExecutor(len(modules)) as pool:
        graphs = list(pool.map(lambda module: capture(module, torch.randn(2, 3, 32, 32)), modules))
    x = torch.randn(3, 3, 32, 32)
    for module, graph in zip(modules, graphs, strict=True):
        with torch.no_grad():
            assert torch.equal(graph(x), module.eval()(x))


def test_threads_may_divide_and_capture_at_once() -> None:
    modules = [Tokens() for _ in range(4)]
    example = torch.randn(2, 3, 32, 32)
    with ThreadPoolExecutor(2 * len(modules)) as pool:
        divisions = [pool.submit(split, module, "conv", example=example) for module in modules]
        captures = [pool.submit(capture, Tokens(), example) for _ in modules]
        halves = [task.result() for task in divisions]
        for task in captures:
            task.result()
    x = torch.randn(3, 3, 32, 32)  # computed afterwards: an export turns oneDNN off in every thread
    for module, (backbone, head) in zip(modules, halves, strict=True):
        assert torch.equal(head.eval()(backbone(x)), module.eval()(x))


def test_a_mapping_names_the_arguments_and_output_picks_one() -> None:
    bert = small_bert().eval()
    ids, mask = torch.randint(0, 30, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    example = {"input_ids": ids[:1], "attention_mask": mask[:1]}
    with torch.no_grad():
        expected = bert(input_ids=ids, attention_mask=mask)
    for output in ("pooler_output", "last_hidden_state", 0):
        graph = capture(bert, example, output=output)
        assert graph.input_names == ("input_ids", "attention_mask")
        with torch.no_grad():
            assert torch.equal(graph(ids, mask), expected[output])


@pytest.mark.parametrize("output", [None, "logits", 5])
def test_several_outputs_are_refused_with_their_names(output: Any) -> None:
    with pytest.raises(CaptureError, match="'last_hidden_state', 'pooler_output'"):
        capture(small_bert(), torch.zeros(1, 7, dtype=torch.long), output=output)


class WritesToItsInput(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        F.relu(x, inplace=True)
        x[:, 0] = 3
        return {"twice": x * 2, "sum": x.sum(1)}


@pytest.mark.parametrize("output", ["twice", "sum"])
def test_what_a_module_writes_to_its_input_is_none_of_its_outputs(output: str) -> None:
    example = torch.randn(2, 4)
    graph = capture(WritesToItsInput(), example, output=output)
    assert torch.equal(graph(example), WritesToItsInput()(example.clone())[output])
    kept = example.clone()
    assert torch.equal(graph(example), graph(kept))
    assert torch.equal(example, kept)
    assert (example[:, 0] != 3).all()


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class DataDependentShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].unsqueeze(0)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, -1).sum(1, keepdim=True)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Flattened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(3)


class Gram(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x.T


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (DataDependent(), "depends on the data"),
        (DataDependentShape(), "aten.nonzero|depends on the data|selects by a"),
        (FixedBatch(), "fixes the batch size"),
        (Random(), "not on the list of allowed operations"),
        (Flattened(), "its first dimension must be the batch"),
        (Constant(), "its first dimension must be the batch"),
        (Gram(), "its first dimension must be the batch"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_name_with_reason_and_way_out(module: nn.Module, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason) as caught:
        capture(nn.Sequential(module), torch.randn(4, 3), name="gizmo")
    message = str(caught.value)
    assert message.startswith("gizmo cannot be captured as a graph:")
    assert "pushdown='none'" in message
    assert "hapi.split" in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        ((), "batch as first dimension"),
        (torch.tensor(1.0), "batch as first dimension"),
        ((torch.randn(2, 3), torch.randn(3, 3)), "the same one"),
        (torch.randn(0, 3), "at least 1"),
    ],
)
def test_an_impossible_example_is_refused(example: Any, problem: str) -> None:
    with pytest.raises(CaptureError, match=problem):
        capture(nn.Identity(), example)


@pytest.mark.parametrize("wrong", [nn.Linear(7, 2), DataDependent()])
def test_what_export_logs_of_a_failure_is_left_to_the_error(wrong: nn.Module) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    names = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        with pytest.raises(CaptureError):
            capture(wrong, torch.randn(2, 3))
        assert not said
        logging.getLogger(names[0]).error("of another's doing")
        assert said == ["of another's doing"]
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)
