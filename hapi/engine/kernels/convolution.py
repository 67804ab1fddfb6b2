"""Convolutions of compiled programs by Winograd's minimal filtering, see `convolution.h`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.nn import functional

from hapi.engine.kernels.processor import has_kernels

VERSION = "1"
TILE, STEP, PART, PANEL, LANES = 4, 2, 3, 64, 16
LEAST_CHANNELS = 32
"""Of image and result: with fewer, what tiles cost beside the products is more than these save."""
LEAST_SAVING = 1.4
"""How many times fewer multiplications make up for what tiles cost: measured, the kernel is 0.75 to 0.9 times as many
times faster, see `saving`."""

_SPREAD = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float64)
_KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
_GATHER = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float64)
"""B, G and A of F(2, 3) in Lavin and Gray 2015, arXiv:1509.09308, section 4.1."""

torch.library.define(
    "hapi::winograd_convolution",
    "(Tensor image, Tensor weight, Tensor bias, Tensor? other, int outs, int kernel_height, int kernel_width, "
    "int padding_height, int padding_width, bool rectified) -> Tensor",
    tags=(torch.Tag.needs_exact_strides,),
)


class Side(NamedTuple):
    """One dimension of the image and of the kernel."""

    image: int
    kernel: int
    padding: int

    @property
    def result(self) -> int:
        """Length of what comes out, in pixels."""
        return self.image + 2 * self.padding - self.kernel + 1

    @property
    def parts(self) -> int:
        """Parts of the kernel, the last of which may be shorter than the others."""
        return -(-self.kernel // PART)

    @property
    def products(self) -> int:
        """Multiplications for one tile: each part has `TILE` places, a shorter one lacks the last."""
        return TILE * self.parts - (self.kernel % PART != 0)

    def having(self, place: int) -> int:
        """Of the parts, how many have this place."""
        return self.parts if place + 1 < TILE else self.kernel // PART


def saving(down: Side, across: Side) -> float:
    """How many times fewer multiplications than those of the definition: 2.25 for 3x3 over images of even sides."""
    plain = down.kernel * across.kernel * down.result * across.result
    return plain / (down.products * across.products * -(-down.result // STEP) * -(-across.result // STEP))


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The weight (O, C, H, W) as the kernel reads it, in its dtype: a row for each panel of channels of the result.

    In a row, for each place of a tile, a matrix (D, PANEL): D are the channels of each part of the kernel that has the
    place. In bfloat16 each two rows of a matrix are interleaved. Computed in float64.
    """
    outs, channels, *kernel = weight.shape
    down, across = (Side(0, length, 0) for length in kernel)
    panels = -(-outs // PANEL)
    missing = (0, PART * across.parts - across.kernel, 0, PART * down.parts - down.kernel, 0, 0, 0, panels * PANEL - outs)
    cut = functional.pad(weight.double(), missing).reshape(-1, channels, down.parts, PART, across.parts, PART)
    # o: channel of the result, c: of the image, p and q: part, a and b: pixel of the part, i and j: place
    spread = torch.einsum("ia,ocpaqb,jb->ijpqco", _KERNEL, cut, _KERNEL)
    rows = []
    for i in range(TILE):
        for j in range(TILE):
            matrix = spread[i, j, : down.having(i), : across.having(j)].reshape(-1, panels, PANEL).transpose(0, 1)
            if weight.dtype == torch.bfloat16:
                matrix = matrix.unflatten(1, (-1, 2)).transpose(2, 3)
            rows.append(matrix.reshape(panels, -1))
    return torch.cat(rows, 1).to(weight.dtype)


def unpack(packed: torch.Tensor, outs: int, channels: int, down: Side, across: Side) -> torch.Tensor:
    """Of `pack`: in float64, at each place (i, j) and part (p, q) a matrix: (i, j, p, q, C, O)."""
    full = packed.new_zeros((TILE, TILE, down.parts, across.parts, channels, outs), dtype=torch.float64)
    start = 0
    for i in range(TILE):
        for j in range(TILE):
            parts = (down.having(i), across.having(j))
            depth = parts[0] * parts[1] * channels
            matrix = packed[:, start : start + depth * PANEL].double()
            start += depth * PANEL
            if packed.dtype == torch.bfloat16:
                matrix = matrix.reshape(-1, depth // 2, PANEL, 2).transpose(2, 3)
            matrix = matrix.reshape(-1, depth, PANEL).transpose(0, 1).reshape(*parts, channels, -1)
            full[i, j, : parts[0], : parts[1]] = matrix[..., :outs]
    return full


@torch.library.impl("hapi::winograd_convolution", "cpu")
def _eager(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    other: torch.Tensor | None,
    outs: int,
    kernel_height: int,
    kernel_width: int,
    padding_height: int,
    padding_width: int,
    rectified: bool,
) -> torch.Tensor:
    """The definition, in float64."""
    down, across = Side(image.shape[2], kernel_height, padding_height), Side(image.shape[3], kernel_width, padding_width)
    tiles = [-(-side.result // STEP) for side in (down, across)]
    last = [STEP * count + PART * side.parts - 1 for count, side in zip(tiles, (down, across), strict=True)]
    padded = functional.pad(
        image.double(),
        (padding_width, last[1] - across.image - padding_width, padding_height, last[0] - down.image - padding_height),
    )
    matrices = unpack(weight, outs, image.shape[1], down, across)
    products = padded.new_zeros((image.shape[0], outs, *tiles, TILE, TILE))
    for p in range(down.parts):
        for q in range(across.parts):
            cut = padded[:, :, PART * p :, PART * q :].unfold(2, TILE, STEP).unfold(3, TILE, STEP)
            cut = cut[:, :, : tiles[0], : tiles[1]]
            spread = torch.einsum("ia,nctuab,jb->nctuij", _SPREAD, cut, _SPREAD)
            products += torch.einsum("nctuij,ijco->notuij", spread, matrices[:, :, p, q])
    found = torch.einsum("ai,notuij,bj->notaub", _GATHER, products, _GATHER)
    found = found.flatten(4, 5).flatten(2, 3)[:, :, : down.result, : across.result] + bias.reshape(-1, 1, 1)
    if other is not None:
        found = found + other
    return (found.relu() if rectified else found).to(image.dtype).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("hapi::winograd_convolution")  # type: ignore[untyped-decorator]
def _fake(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    other: torch.Tensor | None,
    outs: int,
    kernel_height: int,
    kernel_width: int,
    padding_height: int,
    padding_width: int,
    rectified: bool,
) -> torch.Tensor:
    height = Side(image.shape[2], kernel_height, padding_height).result
    width = Side(image.shape[3], kernel_width, padding_width).result
    return image.new_empty((image.shape[0], height, width, outs)).permute(0, 3, 1, 2)


WINOGRAD = torch.ops.hapi.winograd_convolution.default
"""(B, C, H, W) and what `pack` gives to (B, O, H', W'), channels last all of them; the bias (O,) is float32."""


class FuseConvolutions(CustomGraphPass):
    """A pass of PyTorch's compiler over a frozen graph for the CPU, in place: convolutions by the kernel where it pays.

    With what follows them, if nothing else reads it: the addition of another value, and a rectifier.
    """

    def __call__(self, graph: fx.Graph) -> None:
        packed: dict[str, str] = {}
        for node in list(graph.nodes):
            if node.target is not torch.ops.mkldnn._convolution_pointwise.default:
                continue
            if (sides := _fits(node)) is not None:
                _replace(node, *sides, packed)

    def uuid(self) -> Any:
        return f"hapi-fuse-convolutions-{VERSION}"


def attribute(node: object) -> torch.Tensor | None:
    """The tensor that a node of a frozen graph names, if it does."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found if isinstance(found, torch.Tensor) else None


def _fits(node: fx.Node) -> tuple[Side, Side] | None:
    """The two dimensions, if there is a kernel for these types and shapes, and it saves enough."""
    given: list[Any] = [*node.args]
    image, holder, bias, padding, stride, dilation, groups, name = given[:8]
    weight, value = attribute(holder), image.meta["val"]
    is_plain = groups == 1 and name == "none" and all(step == 1 for step in (*stride, *dilation))
    if weight is None or weight.is_mkldnn or not is_plain or (bias is not None and attribute(bias) is None):
        return None
    if value.dim() != 4 or value.dtype != weight.dtype or not has_kernels(value.dtype) or not _is_last(value):
        return None
    outs, channels, *kernel = weight.shape
    if any(count < LEAST_CHANNELS or count % LANES for count in (outs, channels)):
        return None
    lengths = [*value.shape[2:]]
    if not all(isinstance(length, int) for length in lengths) or min(kernel) < PART:
        return None
    padding = [*padding] if len(padding) == 2 else [*padding] * 2
    down, across = (Side(*side) for side in zip(lengths, kernel, padding, strict=True))
    is_any = down.result > 0 and across.result > 0
    return (down, across) if is_any and saving(down, across) >= LEAST_SAVING else None


def _is_last(value: torch.Tensor) -> bool:
    """Whether the channels of an image lie beside each other, and nothing between pixels."""
    channels, height, width = value.shape[1:]
    return value.stride()[1:] == (1, width * channels, channels) and value.stride()[0] == height * width * channels


def _replace(node: fx.Node, down: Side, across: Side, packed: dict[str, str]) -> None:
    graph, root = node.graph, node.graph.owning_module
    assert root is not None
    image, holder, bias = node.args[:3]
    weight, shift = attribute(holder), attribute(bias)
    assert isinstance(holder, fx.Node)
    assert weight is not None
    outs = weight.shape[0]
    last, other = node, None
    if (sum_ := _only_reader(node, torch.ops.aten.add.Tensor)) is not None:
        added = sum_.args[1] if sum_.args[0] is node else sum_.args[0]
        if _is_like(added, node) and not sum_.kwargs:
            last, other = sum_, added
    is_rectified = (rectified := _only_reader(last, torch.ops.aten.relu.default)) is not None
    last = rectified or last
    name = packed.setdefault(str(holder.target), f"{str(holder.target).replace('.', '_')}_winograd")
    if not hasattr(root, name):
        root.register_buffer(name, pack(weight))
    bias_name = f"{node.name}_bias"
    root.register_buffer(bias_name, torch.zeros(outs) if shift is None else shift.float())
    with graph.inserting_before(last):
        constants = [graph.get_attr(key) for key in (name, bias_name)]
        for constant in constants:
            constant.meta["val"] = _fake_like(node, attribute(constant))
        replacement = graph.call_function(
            WINOGRAD,
            (image, *constants, other, outs, down.kernel, across.kernel, down.padding, across.padding, is_rectified),
        )
    replacement.meta.update(last.meta)
    last.replace_all_uses_with(replacement)
    for replaced in dict.fromkeys((last, *((sum_,) if other is not None else ()), node)):
        graph.erase_node(replaced)
    for constant in (holder, bias):
        if isinstance(constant, fx.Node) and not constant.users:
            graph.erase_node(constant)


def _only_reader(node: fx.Node, operation: Any) -> fx.Node | None:
    """The node that alone reads this one, and once, if it is of this operation."""
    readers = [*node.users]
    if len(readers) != 1 or readers[0].target is not operation or readers[0].all_input_nodes.count(node) != 1:
        return None
    reads: Sequence[Any] = readers[0].args
    return readers[0] if sum(argument is node for argument in reads) == 1 else None


def _is_like(added: Any, node: fx.Node) -> bool:
    """Whether it is a value of the same shape, type and layout."""
    if not isinstance(added, fx.Node) or not isinstance(value := added.meta.get("val"), torch.Tensor):
        return False
    like = node.meta["val"]
    return value.shape == like.shape and value.dtype == like.dtype and value.stride() == like.stride()


def _fake_like(node: fx.Node, constant: torch.Tensor | None) -> torch.Tensor:
    assert constant is not None
    return node.meta["val"].new_empty(constant.shape, dtype=constant.dtype)
