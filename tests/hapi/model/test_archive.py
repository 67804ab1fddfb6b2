"""Archives: exact round trips, the same bytes everywhere, weights mapped and not copied."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from hapi.errors import ArchiveError, DigestMismatchError
from hapi.model import Graph, archive_bytes, archive_chunks, capture, load_archive, save_archive


class Mixed(nn.Module):
    """Weights of several dtypes and shapes, one of them empty, infinities among the arguments, a multi-output node."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shift = nn.Parameter(torch.randn(4, 1, 1).to(torch.bfloat16))
        self.register_buffer("index", torch.tensor([2, 0, 1, 3]))
        self.register_buffer("keep", torch.tensor([[True, False], [True, True]]))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu() + self.shift.float()
        left, right = x[:, self.index].chunk(2, 1)
        x = torch.cat([left.masked_fill(~self.keep.repeat(2, 2), float("-inf")).clamp(min=-5), right], 1)
        x = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
        return torch.cat([self.head(x.mean((2, 3))), self.empty[:, :2].sum(0).expand(x.shape[0], -1)], 1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Mixed().eval(), torch.randn(1, 3, 4, 4), name="mixed \u00e9")


def test_a_round_trip_is_exact(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "model.hapi"
    digest = save_archive(graph, path)
    loaded = load_archive(path, expected_digest=digest)
    x = torch.randn(3, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(loaded(x), graph(x))
        for cut in graph.cuts:
            prefix, _ = graph.split(cut)
            _, suffix = loaded.split(cut.name)
            assert torch.equal(suffix(*prefix(x)), graph(x))
    assert (loaded.name, loaded.inputs, loaded.output, loaded.cuts) == (
        graph.name,
        graph.inputs,
        graph.output,
        graph.cuts,
    )
    assert loaded.nodes == graph.nodes
    assert dict(loaded.specs) == dict(graph.specs)
    assert {name: weight.dtype for name, weight in loaded.weights.items()} == {
        name: weight.dtype for name, weight in graph.weights.items()
    }


def test_the_digest_is_that_of_the_bytes_and_of_a_rewritten_copy(graph: Graph, tmp_path: Path) -> None:
    digest = save_archive(graph, tmp_path / "first")
    data = (tmp_path / "first").read_bytes()
    assert digest == graph.digest == hashlib.sha256(data).hexdigest()
    assert len(data) == archive_bytes(graph)
    assert b"".join(archive_chunks(graph, chunk_bytes=100)) == data
    loaded = load_archive(tmp_path / "first")
    assert loaded.digest == digest
    assert save_archive(loaded, tmp_path / "second") == digest


WRITER = """
import sys, torch
from torch import nn
from hapi.model import capture, save_archive
torch.manual_seed(3)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
digest = save_archive(capture(model, torch.zeros(1, 3, 4, 4), name="m"), sys.argv[1])
"""


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    there = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "there")], env=environment, check=False)
    assert there.returncode == 0
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    save_archive(capture(model, torch.zeros(1, 3, 4, 4), name="m"), tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_weights_are_mapped_aligned_and_shared_by_all_programs(graph: Graph, tmp_path: Path) -> None:
    save_archive(graph, tmp_path / "model")
    loaded = load_archive(tmp_path / "model")
    starts = {name: weight.data_ptr() for name, weight in loaded.weights.items() if weight.numel()}
    assert all(start % loaded.weights[name].itemsize == 0 for name, start in starts.items())
    # One mapping: all weights lie within the span of the file.
    assert max(starts.values()) - min(starts.values()) < (tmp_path / "model").stat().st_size
    prefix, suffix = loaded.split(2)
    for part in (prefix, suffix):
        held = loaded.weights_on(loaded.device, part.weight_names)
        assert all(held[name].data_ptr() == loaded.weights[name].data_ptr() for name in held)


def test_the_weights_are_a_safetensors_section(graph: Graph, tmp_path: Path) -> None:
    save_archive(graph, tmp_path / "model")
    data = (tmp_path / "model").read_bytes()
    document_bytes = int.from_bytes(data[16:24], "little")
    weights = load_safetensors(data[32 + document_bytes :])
    assert weights.keys() == graph.weights.keys()
    assert all(torch.equal(weights[name], graph.weights[name]) for name in weights)
    assert json.loads(data[32 : 32 + document_bytes])["name"] == graph.name


def test_writing_to_a_loaded_graph_leaves_the_file_alone(graph: Graph, tmp_path: Path) -> None:
    digest = save_archive(graph, tmp_path / "model")
    loaded = load_archive(tmp_path / "model")
    loaded.weights["head.weight"].zero_()
    assert loaded.digest != digest
    assert load_archive(tmp_path / "model", expected_digest=digest).digest == digest


def test_any_changed_byte_is_noticed(graph: Graph, tmp_path: Path) -> None:
    digest = save_archive(graph, tmp_path / "model")
    data = bytearray((tmp_path / "model").read_bytes())
    for position in [*range(40, len(data), max(1, len(data) // 25)), len(data) - 1]:
        changed = bytearray(data)
        changed[position] ^= 0x10
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(DigestMismatchError, match="get it again"):
            load_archive(tmp_path / "changed", expected_digest=digest)


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.ones(2, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    graph = capture(Complex(), torch.zeros(1, 2))
    (tmp_path / "model").write_bytes(b"older")
    with pytest.raises(ArchiveError, match="complex64"):
        save_archive(graph, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_bytes() == b"older"


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="No such file"):
        load_archive(tmp_path / "nothing")
    with pytest.raises(ArchiveError, match="directory"):
        load_archive(tmp_path)
