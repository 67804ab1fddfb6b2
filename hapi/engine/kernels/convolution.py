"""Convolutions of compiled programs by Winograd's minimal filtering, see `convolution.h`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.nn import functional

from hapi.engine.kernels.processor import has_kernels
from hapi.engine.passes import constant

VERSION = "1"
TILE, STEP, PART, PANEL, LANES = 4, 2, 3, 64, 16
LEAST_CHANNELS = 32
"""Of image and result: with fewer, what tiles cost beside the products is more than these save. With 32 of both the
kernel was 1.3 to 1.5 times as fast in float32, and 0.97 to 1.15 times in bfloat16."""
LEAST_SAVING = 1.4
"""How many times fewer multiplications make up for what tiles cost, see `saving`: with 64 channels or more, in batches
of 16, the kernel was 0.7 to 0.9 times as many times faster."""

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
    missing = [PART * side.parts - side.kernel for side in (across, down)]
    full = functional.pad(weight.double(), (0, missing[0], 0, missing[1], 0, 0, 0, panels * PANEL - outs))
    cut = full.reshape(-1, channels, down.parts, PART, across.parts, PART)
    # o: channel of the result, c: of the image, p and q: part, a and b: pixel of the part, i and j: place
    spread = torch.einsum("ia,ocpaqb,jb->ijpqco", _KERNEL, cut, _KERNEL)
    rows = []
    for i in range(TILE):
        for j in range(TILE):
            matrix = spread[i, j, : down.having(i), : across.having(j)].reshape(-1, panels, PANEL).transpose(0, 1)
            if weight.dtype == torch.bfloat16:
                matrix = matrix.reshape(panels, -1, 2, PANEL).transpose(2, 3)
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
    *geometry: int,
) -> torch.Tensor:
    """The definition, in float64."""
    down, across = _sides(image, *geometry[:4])
    tiles = [-(-side.result // STEP) for side in (down, across)]
    last = [STEP * count + PART * side.parts - 1 for count, side in zip(tiles, (down, across), strict=True)]
    padded = functional.pad(
        image.double(),
        (across.padding, last[1] - across.image - across.padding, down.padding, last[0] - down.image - down.padding),
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
    return (found.relu() if geometry[4] else found).to(image.dtype).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("hapi::winograd_convolution")  # type: ignore[untyped-decorator]
def _fake(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    other: torch.Tensor | None,
    outs: int,
    *geometry: int,
) -> torch.Tensor:
    down, across = _sides(image, *geometry[:4])
    return image.new_empty((image.shape[0], down.result, across.result, outs)).permute(0, 3, 1, 2)


def _sides(image: torch.Tensor, height: int, width: int, padding_height: int, padding_width: int) -> tuple[Side, Side]:
    return Side(image.shape[2], height, padding_height), Side(image.shape[3], width, padding_width)


WINOGRAD = torch.ops.hapi.winograd_convolution.default
"""(B, C, H, W) and what `pack` gives to (B, O, H', W'), channels last all of them; the bias (O,) is float32."""


class FuseConvolutions(CustomGraphPass):
    """A pass of PyTorch's compiler over a frozen graph for the CPU, in place: convolutions by the kernel where it pays.

    With what follows them, if nothing else reads it: the addition of another value, and a rectifier.
    """

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            is_convolution = node.target is torch.ops.mkldnn._convolution_pointwise.default
            if is_convolution and (sides := _fits(node)) is not None:
                _replace(node, *sides)

    def uuid(self) -> Any:
        return f"hapi-fuse-convolutions-{VERSION}"


def _fits(node: fx.Node) -> tuple[Side, Side] | None:
    """The two dimensions, if there is a kernel for these types and shapes, and it saves enough."""
    given: list[Any] = [*node.args]
    image, holder, bias, padding, stride, dilation, groups, name = given[:8]
    weight, value = constant(holder), image.meta["val"]
    is_plain = groups == 1 and name == "none" and all(step == 1 for step in (*stride, *dilation))
    if weight is None or weight.is_mkldnn or not is_plain or (bias is not None and constant(bias) is None):
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


def _replace(node: fx.Node, down: Side, across: Side) -> None:
    graph, root = node.graph, node.graph.owning_module
    image, holder, bias, *_ = node.args
    weight, shift = constant(holder), constant(bias)
    assert root is not None
    assert isinstance(holder, fx.Node)
    assert weight is not None
    replaced, other = [node], None
    if (sum_ := _only_reader(node, torch.ops.aten.add.Tensor)) is not None and not sum_.kwargs:
        added = sum_.args[1] if sum_.args[0] is node else sum_.args[0]
        if _is_like(added, node):
            replaced, other = [sum_, node], added
    if (rectified := _only_reader(replaced[0], torch.ops.aten.relu.default)) is not None:
        replaced.insert(0, rectified)
    packed, name = f"{str(holder.target).replace('.', '_')}_winograd", f"{node.name}_bias"
    if not hasattr(root, packed):  # one weight may be used several times
        root.register_buffer(packed, pack(weight))
    root.register_buffer(name, torch.zeros(weight.shape[0]) if shift is None else shift.float())
    geometry = (weight.shape[0], down.kernel, across.kernel, down.padding, across.padding)
    with graph.inserting_before(replaced[0]):
        constants = [graph.get_attr(key) for key in (packed, name)]
        found = graph.call_function(WINOGRAD, (image, *constants, other, *geometry, rectified is not None))
    for held in constants:
        tensor = getattr(root, str(held.target))
        held.meta["val"] = node.meta["val"].new_empty(tensor.shape, dtype=tensor.dtype)
    found.meta.update(replaced[0].meta)
    replaced[0].replace_all_uses_with(found)
    for each in (*replaced, holder, bias):
        if isinstance(each, fx.Node) and not each.users:
            graph.erase_node(each)


def _only_reader(node: fx.Node, operation: Any) -> fx.Node | None:
    """The node that alone reads this one, and once, if it is of this operation."""
    reader, *others = node.users or (None,)
    if reader is None or others or reader.target is not operation:
        return None
    return reader if sum(argument is node for argument in reader.args) == 1 else None


def _is_like(added: Any, node: fx.Node) -> bool:
    """Whether it is a value of the same shape, type and layout."""
    if not isinstance(added, fx.Node) or not isinstance(value := added.meta.get("val"), torch.Tensor):
        return False
    like = node.meta["val"]
    return value.shape == like.shape and value.dtype == like.dtype and value.stride() == like.stride()
