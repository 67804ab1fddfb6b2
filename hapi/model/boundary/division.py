"""`hapi.split`: a partly frozen model becomes a frozen backbone and a head that trains in place.

One mechanism for all models: the call graph (callgraph.py, tracing.py) says which of the model's own modules and
operators ran, in which order, on what. The boundary is a place in that order which exactly one tensor crosses
(places.py); what comes before runs as the Backbone, what comes after as the Head, both with the model's own modules and
parameters (parts.py). Rewriting the model operator by operator would lose its modules, and with them train mode, hooks
and `.to(device)`; tracing Python symbolically fails on Hugging Face models. Only the containers around the boundary are
looked into.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hapi.errors import CaptureError, InputError
from hapi.model.boundary.parts import Backbone, Head
from hapi.model.boundary.places import Boundary, at_freezing, at_module, some
from hapi.model.boundary.steps import Step, head_steps, prefix_steps, whole_steps
from hapi.model.boundary.tracing import trace
from hapi.model.boundary.wiring import Wiring
from hapi.model.capture import exporting
from hapi.model.guess import guess_example
from hapi.model.wrappers import bare, is_averaging


def split(
    model: nn.Module, at: str | None = None, *, example: Tensor | tuple[Tensor, ...] | None = None
) -> tuple[Backbone, Head]:
    """Divides `model` into (backbone, head) with `head(backbone(x))` equal to `model(x)`.

    Without `at` the boundary is read from `requires_grad`: the backbone is everything up to the first trainable
    parameter in the order of the forward pass, with the parameterless operators that follow it (pooling, flatten), as
    long as one tensor crosses. Random operators just before the trainable part (a Dropout before the classifier)
    belong to the head. Frozen parameters after the first trainable one stay in the head, frozen. With `at`, the name of
    a submodule such as "layer4", the backbone ends with that module's output, whatever is frozen.

    The backbone takes the model's input and gives one tensor, samples first. It always computes as in eval mode
    (BatchNorm with its running statistics, no dropout) and without gradients, also after `model.train()`: frozen means
    that features do not change. Parameters and buffers are shared with the model, so that training the head trains the
    model. The head follows `train()` and `eval()`, returns what the model returns, and names its parameters as the
    model does.

    `example` is an input of the model (tensors with the batch first); needed only when it cannot be told from the model
    (an image classifier's can). The model is run on it, in eval mode, and is left as it was.

    What torch.compile, DataParallel or DistributedDataParallel put around the model, or around a part of it, is looked
    through: names are those of the model inside. The head is for the caller to wrap again, which a warning says where
    the gradients of several processes would no longer be averaged.

    Raises InputError (nothing frozen, nothing trainable, unknown `at`) or CaptureError (the model cannot be traced, or
    several tensors cross the boundary).
    """
    parts = divide(model, at, example)
    if is_averaging(model):
        warnings.warn(
            f"split of {parts[1].model_name}: nothing averages the head's gradients over the processes, as the model's "
            "DistributedDataParallel would. Wrap it again: head = torch.nn.parallel.DistributedDataParallel(head)",
            stacklevel=2,
        )
    return parts


def divide(
    model: nn.Module,
    at: str | None = None,
    example: Tensor | tuple[Tensor, ...] | None = None,
    *,
    follow_training: bool = True,
) -> tuple[Backbone, Head]:
    """`split`, also for feature extraction alone: without `follow_training` the containers' own code is followed in
    eval mode only, so that auxiliary classifiers, which some networks call in train mode, do not move the boundary."""
    if not isinstance(model, nn.Module):
        raise InputError(f"split: {type(model).__name__} is not a torch.nn.Module. Pass the model itself.")
    with bare(model) as model, exporting:
        if at is None:
            _check_freezing(model)
        else:
            _check_name(model, at)
        inputs = _as_inputs(example) if example is not None else guess_example(model)
        found = at_module(model, at, inputs) if at is not None else at_freezing(model, inputs, follow_training)
        backbone, head = _parts(model, found)
        _check_exact(model, backbone, head, inputs)
        return backbone, head


def whole(model: nn.Module, *, example: Tensor | tuple[Tensor, ...] | None = None) -> Backbone:
    """All of `model` as a backbone; it gives what the model gives, frozen and in eval mode. Raises CaptureError."""
    with bare(model) as model, exporting:
        inputs = _as_inputs(example) if example is not None else guess_example(model)
        wiring = Wiring(model, trace(model, inputs, expand=frozenset({""}), training=lambda name: False))
        steps = whole_steps(wiring)
        return Backbone(model, *_used(model, wiring.state, steps), steps)


def _parts(model: nn.Module, found: Boundary) -> tuple[Backbone, Head]:
    before = prefix_steps(found.evaluating, found.position)
    after = head_steps(found.evaluating, found.position)
    after_training = head_steps(found.training, found.training_position)
    state = found.training.state | found.evaluating.state

    in_head = _used(model, state, after, after_training)
    return Backbone(model, *_used(model, state, before), before), Head(model, *in_head, after, after_training)


def _used(model: nn.Module, state: Mapping[str, Any], *parts: Sequence[Step]) -> tuple[list[str], dict[str, Any]]:
    """The modules that steps call, in the model's order, and the parameters and constants that they read."""
    steps = [step for part in parts for step in part]
    calls = {step.target for step in steps if step.kind == "call"}
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name in calls]
    return names, {step.target: state[step.target] for step in steps if step.kind == "state"}


def _check_exact(model: nn.Module, backbone: Backbone, head: Head, inputs: tuple[Tensor, ...]) -> None:
    """Runs both on the example and compares; notes whether the head works in place on the features."""
    modes = {module: module.training for module in (*model.modules(), *head.modules())}
    try:
        model.eval()
        head.eval()
        # The caller may be in inference mode, which counts no versions; compiled functions have other last bits.
        with torch.inference_mode(False), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            larger = tuple(torch.cat([tensor, tensor[:1]]) for tensor in inputs)  # not the batch size that was traced
            expected = _tensors_of(model(*larger))
            features = backbone(*larger)
            version = features._version
            got = _tensors_of(head(features))
            head.writes_to_input = features._version != version
    finally:
        for module, mode in modes.items():
            module.training = mode
    if len(expected) != len(got) or not all(map(_same, expected, got)):
        raise CaptureError(
            f"split of {type(model).__name__}: head(backbone(x)) is not model(x) on the example. The forward pass "
            "depends on something that is not in its tensors (random numbers in eval mode, the values of the data, "
            "state kept between calls). Make it deterministic in eval mode, or divide it by hand."
        )


def _tensors_of(result: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.is_floating_point() and one.shape == other.shape:
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return torch.equal(one, other)


def _check_freezing(model: nn.Module) -> None:
    name = type(model).__name__
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise InputError(
            f"split of {name}: no parameter requires gradients, so there is no head to train. Unfreeze the part to "
            "train (model.fc.requires_grad_(True)), replace the classifier by a new one, or name the boundary with at=."
        )
    if len(trainable) == sum(1 for _ in model.parameters()):
        raise InputError(
            f"split of {name}: every parameter requires gradients, so there is no frozen backbone. Freeze it "
            "(model.requires_grad_(False), then unfreeze the part to train), or name the boundary with at=."
        )


def _check_name(model: nn.Module, at: str) -> None:
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if at not in names:
        close = difflib.get_close_matches(at, names, n=5, cutoff=0.5)
        top = [name for name, _ in model.named_children()]
        hint = f"Did you mean {some(close)}?" if close else f"Its modules are {some(top)}."
        raise InputError(f"split of {type(model).__name__}: there is no module {at!r}. {hint}")


def _as_inputs(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or not all(isinstance(item, Tensor) and item.ndim >= 1 and len(item) for item in inputs):
        raise InputError("split: example must be a tensor, or a tuple of tensors, with the samples first.")
    return tuple(torch.cat([item, item]) if len(item) == 1 else item for item in inputs)
