"""Archives written to do harm, or broken: each is refused with an ArchiveError, before memory is spent on it."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hapi.errors import ArchiveError
from hapi.model import ArchiveLimits, capture, load_archive, save_archive
from hapi.model.archive import _HEADER, MAGIC, VERSION
from hapi.model.checks import ShapeLimits

Document = dict[str, Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).flatten(1))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("archive") / "good"
    save_archive(capture(Net().eval(), torch.zeros(1, 3, 4, 4), name="good"), path)
    return path.read_bytes()


def parts(archive: bytes) -> tuple[Document, bytes]:
    size = _HEADER.unpack(archive[: _HEADER.size])[3]
    return json.loads(archive[_HEADER.size : _HEADER.size + size]), archive[_HEADER.size + size :]


def join(document: bytes | Document, weights: bytes, version: int = VERSION) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-(_HEADER.size + len(text)) % 64)
    return _HEADER.pack(MAGIC, version, 0, len(text), len(weights)) + text + weights


def refused(data: bytes, folder: Path, problem: str = "archive", limits: ArchiveLimits | None = None) -> None:
    """Loading fails with ArchiveError and no great amount of memory is allocated on the way."""
    path = folder / "hostile"
    path.write_bytes(data)
    before = psutil.Process().memory_info().rss
    with pytest.raises(ArchiveError, match=problem):
        load_archive(path, limits=limits)
    assert psutil.Process().memory_info().rss - before < 200e6


def test_the_helpers_rebuild_a_good_archive(good: bytes, tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(join(*parts(good)))
    assert load_archive(tmp_path / "same").name == "good"


# -- the file ------------------------------------------------------------------------------------------------


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def zip_bomb(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("data.pkl", b"\0" * 50_000_000)
    return path.read_bytes()


def test_other_kinds_of_files_are_refused(good: bytes, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    for data in (
        b"",
        b"\x89HAPI",
        pickle.dumps(Explosive()),
        (tmp_path / "model.pt").read_bytes(),
        zip_bomb(tmp_path / "bomb.zip"),
        b"{}",
        good[1:],
    ):
        refused(data, tmp_path, "not a HAPI archive")


def test_another_version_is_refused(good: bytes, tmp_path: Path) -> None:
    refused(join(*parts(good), version=2), tmp_path, "version 2")


def test_any_truncation_is_refused(good: bytes, tmp_path: Path) -> None:
    for length in range(1, len(good), len(good) // 40):
        refused(good[:length], tmp_path, "truncated|not a HAPI archive")
    refused(good + b"\0", tmp_path, "something was added")


@pytest.mark.parametrize(("document_bytes", "weight_bytes"), [(2**63, 8), (2**62, 2**62), (10, 2**63)])
def test_sizes_in_the_header_are_not_believed(
    good: bytes, tmp_path: Path, document_bytes: int, weight_bytes: int
) -> None:
    header = _HEADER.pack(MAGIC, VERSION, 0, document_bytes, weight_bytes)
    refused(header + good[_HEADER.size :], tmp_path, "over the limit|header says")


def test_limits_are_kept(good: bytes, tmp_path: Path) -> None:
    for limits in (
        ArchiveLimits(file_bytes=100),
        ArchiveLimits(document_bytes=100),
        ArchiveLimits(weight_header_bytes=10),
        ArchiveLimits(nodes=2),
        ArchiveLimits(weights=2),
        ArchiveLimits(live_bytes_per_sample=100),
        ArchiveLimits(shapes=ShapeLimits(bytes_per_sample=50)),
        ArchiveLimits(shapes=ShapeLimits(dimensions=2)),
    ):
        refused(good, tmp_path, limits=limits)


# -- the document ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'{"name": "x"',
        b"\xff\xfe{}",
        b'{"name": NaN}',
        b'{"name": "a", "name": "b"}',
        b"[" * 1_000_000 + b"]" * 1_000_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b'{"name": ' + b"9" * 100_000 + b"}",
    ],
    ids=lambda text: text[:12].decode("latin1"),
)
def test_malformed_json_is_refused(good: bytes, tmp_path: Path, text: bytes) -> None:
    refused(join(text, parts(good)[1]), tmp_path, "JSON|must be")


def node(document: Document, op: str) -> dict[str, Any]:
    return next(entry for entry in document["nodes"] if entry["op"] == op)


def insert(document: Document, *entries: dict[str, Any], read: str = "") -> None:
    """Puts nodes first, and makes the output depend on the last of them (or on `read`)."""
    document["nodes"][:0] = entries
    used = {"ref": read or entries[-1]["name"]}
    document["nodes"] += [
        {"name": "all", "op": "aten.sum.default", "args": [used]},
        {"name": "total", "op": "aten.add.Tensor", "args": [{"ref": document["output"]}, {"ref": "all"}]},
    ]
    document["output"] = "total"


def test_what_insert_adds_is_read(good: bytes, tmp_path: Path) -> None:
    document, weights = parts(good)
    insert(document, {"name": "harmless", "op": "aten.zeros.default", "args": [[3]]})
    (tmp_path / "harmless").write_bytes(join(document, weights))
    graph = load_archive(tmp_path / "harmless")
    assert "harmless" in [entry.name for entry in graph.nodes]


Change = Callable[[Document], Any]

CHANGES: dict[str, tuple[Change, str]] = {
    "no name": (lambda d: d.pop("name"), "keys"),
    "unknown key": (lambda d: d.update(code="import os"), "keys"),
    "control characters in the name": (lambda d: d.update(name="x\n\x1b[2J"), "printable"),
    "inputs are no list": (lambda d: d.update(inputs={}), "list"),
    "input without dtype": (lambda d: d["inputs"][0].pop("dtype"), "keys"),
    "input of unknown dtype": (lambda d: d["inputs"][0].update(dtype="object"), "dtype"),
    "input of negative size": (lambda d: d["inputs"][0].update(shape=[3, -4, 4]), "sizes"),
    "input of a size that is text": (lambda d: d["inputs"][0].update(shape=["4"]), "sizes"),
    "input of a size that is true": (lambda d: d["inputs"][0].update(shape=[True, 4, 4]), "sizes"),
    "another input shape than the weights take": (lambda d: d["inputs"][0].update(shape=[5, 4, 4]), "cannot run"),
    "gigantic input": (lambda d: d["inputs"][0].update(shape=[3, 10**12, 4]), "sizes|limit|cannot run|over"),
    "input beyond counting": (lambda d: d["inputs"][0].update(shape=[2**40, 2**40, 4]), "inputs of such shapes"),
    "empty input beyond counting": (lambda d: d["inputs"][0].update(shape=[0, 2**40, 2**40]), "inputs of such shapes"),
    "large input": (lambda d: d["inputs"][0].update(shape=[3, 10**6, 10**6]), "limit|cannot run|over"),
    "output that is not there": (lambda d: d.update(output="nothing"), "output"),
    "output that is a list": (lambda d: d.update(output=["relu_0"]), "output"),
    "order of nothing": (lambda d: d["orders"].update(nothing=[0, 1]), "orders"),
    "order that is no permutation": (lambda d: d["orders"].update(relu_0=[0, 0, 1, 2]), "order"),
    "order of another length": (lambda d: d["orders"].update(relu_0=[1, 0]), "order"),
    "too many nodes": (lambda d: d.update(nodes=d["nodes"] * 10_000), "at most|taken"),
    "a name given twice": (lambda d: d["nodes"].append(d["nodes"][0]), "taken"),
    "a path as a name": (lambda d: d["nodes"][0].update(name="../../etc/passwd"), "not a name"),
    "a path as a module": (lambda d: d["nodes"][0].update(module="/etc/passwd"), "not a name"),
    "a module with dots to climb": (lambda d: d["nodes"][0].update(module="a..b"), "not a name"),
    "a node that reads itself": (lambda d: d["nodes"][0]["args"].__setitem__(0, {"ref": "conv2d_0"}), "before it"),
    "a node that reads a later one": (lambda d: d["nodes"][0]["args"].__setitem__(0, {"ref": "relu_0"}), "before it"),
    "a weight that is not there": (lambda d: d["nodes"][0]["args"].__setitem__(1, {"weight": "w"}), "before it"),
    "an argument with code": (lambda d: d["nodes"][0]["args"].insert(3, {"eval": "1+1"}), "not an argument"),
    "an argument nested deeply": (lambda d: d["nodes"][0]["args"].insert(3, [[[[[[1]]]]]]), "not an argument"),
    "text for a tensor": (lambda d: d["nodes"][0]["args"].__setitem__(0, "x"), "must be Tensor"),
    "a tensor for a number": (lambda d: d["nodes"][0]["args"].insert(3, {"ref": "x"}), "must be"),
    "a number beyond 64 bits": (lambda d: d["nodes"][0]["args"].insert(3, [2**70, 1]), "must be"),
    "too many arguments": (lambda d: d["nodes"][0].update(args=[None] * 20), "at most"),
    "an unknown keyword": (lambda d: d["nodes"][0].update(kwargs={"out": {"ref": "x"}}), "no argument"),
    "a device": (lambda d: d["nodes"][0].update(kwargs={"device": "cuda:7"}), "no argument"),
    "results that are not there": (lambda d: d["nodes"][0].update(results=3), "before it|results"),
    "a billion results": (lambda d: d["nodes"][0].update(results=10**9), "results"),
    "training mode, which writes to the weights": (
        lambda d: node(d, "aten.batch_norm.default")["args"].__setitem__(5, True),
        "training",
    ),
    "a kernel of no size": (lambda d: d["nodes"][0]["args"].insert(3, [0, 0]), "cannot run"),
    "nodes that nothing reads": (
        lambda d: d["nodes"].append({"name": "idle", "op": "aten.relu.default", "args": [{"ref": "x"}]}),
        "does not depend",
    ),
}


@pytest.mark.parametrize("change", CHANGES, ids=list(CHANGES))
def test_a_document_that_says_something_wrong_is_refused(good: bytes, tmp_path: Path, change: str) -> None:
    document, weights = parts(good)
    act, problem = CHANGES[change]
    act(document)
    refused(join(document, weights), tmp_path, problem)


@pytest.mark.parametrize(
    "op",
    [
        "aten.relu_.default", "aten.add_.Tensor", "aten.add.out", "aten.rand.default", "aten.bernoulli.default",
        "aten.dropout.default", "aten.from_file.default", "aten.resize_.default", "aten.set_.source_Storage",
        "aten.as_strided.default", "aten.nonzero.default", "aten.masked_select.default", "aten.empty.memory_format",
        "aten.conv2d", "aten.conv2d.default.__globals__", "aten", "", "conv2d", "os.system", "builtins.eval.default",
        "prim.device.default", "inductor.accumulate_grad_.default", "torchvision.nms.default", "aten.__class__.default",
        "aten.to.device", "aten.record_stream.default", "aten._foobar.default", "aten.pin_memory.default",
    ],
)  # fmt: skip
def test_operations_off_the_list_are_refused(good: bytes, tmp_path: Path, op: str) -> None:
    document, weights = parts(good)
    document["nodes"][2].update(op=op)
    refused(join(document, weights), tmp_path, "not on the list")


HUGE = 10**11

GROWTHS: dict[str, dict[str, Any]] = {
    "zeros": {"op": "aten.zeros.default", "args": [[HUGE]]},
    "full": {"op": "aten.full.default", "args": [[HUGE, HUGE], 1]},
    "arange": {"op": "aten.arange.default", "args": [HUGE]},
    "arange by tiny steps": {"op": "aten.arange.start_step", "args": [0.0, 1.0, 1e-15]},
    "expand": {"op": "aten.expand.default", "args": [{"ref": "x"}, [HUGE, {"size": [1, 0]}, 3, 4, 4]]},
    "repeat": {"op": "aten.repeat.default", "args": [{"ref": "x"}, [1, HUGE, 1, 1]]},
    "tile": {"op": "aten.tile.default", "args": [{"ref": "x"}, [HUGE]]},
    "pad": {"op": "aten.pad.default", "args": [{"ref": "x"}, [HUGE, HUGE]]},
    "upsample": {"op": "aten.upsample_nearest2d.vec", "args": [{"ref": "x"}, [HUGE, 4], None]},
    "upsample by a factor": {"op": "aten.upsample_nearest2d.vec", "args": [{"ref": "x"}, None, [1e6, 1e6]]},
    "outer product": {"op": "aten.einsum.default", "args": ["a,b->ab", [{"ref": "big"}, {"ref": "big"}]]},
    "new_full": {"op": "aten.new_full.default", "args": [{"ref": "x"}, [HUGE], 1.0]},
    "many dimensions": {"op": "aten.reshape.default", "args": [{"ref": "x"}, [-1, *[1] * 15]]},
    "size that explodes with the batch": {"op": "aten.zeros.default", "args": [[{"size": [HUGE, 0]}]]},
    "negative size": {"op": "aten.zeros.default", "args": [[-5]]},
    "unfold": {"op": "aten.unfold.default", "args": [{"ref": "x"}, 3, HUGE, 1]},
    "cat of many": {"op": "aten.cat.default", "args": [[{"ref": "big"}] * 8]},
}


@pytest.mark.parametrize("growth", GROWTHS)
def test_operations_that_would_make_something_enormous_are_refused(good: bytes, tmp_path: Path, growth: str) -> None:
    document, weights = parts(good)
    big = {"name": "big", "op": "aten.zeros.default", "args": [[2**29]]}
    insert(document, big, {"name": "evil", **GROWTHS[growth]})
    refused(join(document, weights), tmp_path, r"\(evil, in .*(cannot run|over the limit)")


@pytest.mark.parametrize(
    "entry",
    [
        {"op": "aten.unbind.int", "args": [{"ref": "line"}, 0]},
        {"op": "aten.split.Tensor", "args": [{"ref": "line"}, 1]},
        {"op": "aten.chunk.default", "args": [{"ref": "line"}, 2**28]},
        {"op": "aten.split.Tensor", "args": [{"ref": "line"}, 0]},
        {"op": "aten.split.Tensor", "args": [{"ref": "line"}, 1, 7]},
        {"op": "aten.split_with_sizes.default", "args": [{"ref": "line"}, [1, 2]]},
    ],
)
def test_a_billion_views_are_refused_unmade(good: bytes, tmp_path: Path, entry: dict[str, Any]) -> None:
    document, weights = parts(good)
    line = {"name": "line", "op": "aten.zeros.default", "args": [[2**28]]}
    insert(document, line, {"name": "evil", "results": 2, **entry}, read="evil.0")
    refused(join(document, weights), tmp_path, r"\(evil, in .*(gives|asks|dimension)")


def test_a_mask_that_selects_is_refused(good: bytes, tmp_path: Path) -> None:
    document, weights = parts(good)
    mask = {"name": "mask", "op": "aten.gt.Scalar", "args": [{"ref": "x"}, 0]}
    insert(document, mask, {"name": "picked", "op": "aten.index.Tensor", "args": [{"ref": "x"}, [{"ref": "mask"}]]})
    refused(join(document, weights), tmp_path, "picked.*mask")


WIDTH = 4

FUSED_CHANGES: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "other width": lambda args, _: args.__setitem__(3, 2 * WIDTH),
    "no heads": lambda args, _: args.__setitem__(4, 0),
    "heads that do not divide": lambda args, _: args.__setitem__(4, 3),
    "batch-sized width": lambda args, _: args.__setitem__(3, {"size": [1, 0]}),
    "short projection": lambda args, _: args.__setitem__(7, args[8]),
    "swapped biases": lambda args, _: args.__setitem__(6, args[8]),
    "mask that is no mask": lambda args, _: args.__setitem__(9, args[0]),
    "mask of an unknown type": lambda args, kwargs: (args.__setitem__(9, args[0]), kwargs.update(mask_type=7)),
}


@pytest.mark.parametrize("change", FUSED_CHANGES)
def test_fused_attention_gets_only_shapes_that_fit(tmp_path: Path, change: str) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True).requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    save_archive(capture(Attend().eval(), torch.zeros(1, 3, WIDTH)), tmp_path / "attend")
    document, weights = parts((tmp_path / "attend").read_bytes())
    fused = node(document, "aten._native_multi_head_attention.default")
    assert len(fused["args"]) >= 10
    FUSED_CHANGES[change](fused["args"], fused.setdefault("kwargs", {}))
    refused(join(document, weights), tmp_path, "native_multi_head_attention")


# -- the weights -------------------------------------------------------------------------------------------------


def section(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + data


def header_of(weights: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + size]), weights[8 + size :]


WEIGHT_CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "larger shape than bytes": lambda h: h["head.weight"].update(shape=[2000, 16]),
    "gigantic shape": lambda h: h["head.weight"].update(shape=[2**30, 2**30]),
    "negative shape": lambda h: h["head.weight"].update(shape=[-2, -16]),
    "other dtype": lambda h: h["head.weight"].update(dtype="F64"),
    "unknown dtype": lambda h: h["head.weight"].update(dtype="PICKLE"),
    "overlapping tensors": lambda h: h["head.weight"].update(data_offsets=h["stem.0.weight"]["data_offsets"]),
    "beyond the end": lambda h: h["head.weight"].update(data_offsets=[2**39, 2**39 + 128]),
    "backwards": lambda h: h["head.weight"].update(data_offsets=[128, 0]),
    "missing tensor": lambda h: h.pop("head.weight"),
    "path as a name": lambda h: h.update({"../../evil": h.pop("head.weight")}),
    "metadata": lambda h: h.update(__metadata__={"format": "pt"}),
    "unread tensor": lambda h: h.update({"other": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "empty and beyond counting": lambda h: h.update(
        other={"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}
    ),
    "no offsets": lambda h: h["head.weight"].pop("data_offsets"),
    "transposed": lambda h: h["head.weight"].update(shape=[16, 2]),
}


@pytest.mark.parametrize("change", WEIGHT_CHANGES)
def test_weights_that_lie_about_themselves_are_refused(good: bytes, tmp_path: Path, change: str) -> None:
    document, weights = parts(good)
    header, data = header_of(weights)
    WEIGHT_CHANGES[change](header)
    refused(join(document, section(header, data)), tmp_path)


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"1234567",
        (2**62).to_bytes(8, "little"),
        (-1).to_bytes(8, "little", signed=True),
        section(b"[]", b""),
        section(b"{}", b""),
        section(b"\x80\x04pickle", b""),
    ],
)
def test_broken_weight_sections_are_refused(good: bytes, tmp_path: Path, weights: bytes) -> None:
    refused(join(parts(good)[0], weights), tmp_path)


def test_weights_cut_short_or_too_long_are_refused(good: bytes, tmp_path: Path) -> None:
    document, weights = parts(good)
    refused(join(document, weights[:-4]), tmp_path, "weights")
    refused(join(document, weights + b"\0" * 64), tmp_path, "weights")


# -- anything ----------------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_a_few_changed_bytes_never_do_more_than_be_refused(good: bytes, tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "fuzzed").write_bytes(changed)
    try:
        graph = load_archive(tmp_path / "fuzzed")
    except ArchiveError:
        return
    with torch.no_grad():  # what is accepted can be run
        graph(torch.zeros(2, *graph.inputs[0].shape, dtype=graph.inputs[0].dtype))
