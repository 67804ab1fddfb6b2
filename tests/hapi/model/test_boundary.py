"""Properties of hapi.split: exactness over many models, training in place, and errors in words."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn

import hapi
from hapi.errors import CaptureError, InputError
from hapi.model.boundary.parts import Backbone, Head


def torchvision_model(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=7, **arguments)


def freeze_but(model: nn.Module, *trainable: str) -> nn.Module:
    model.requires_grad_(False)
    for name in trainable:
        model.get_submodule(name).requires_grad_(True)
    return model


def images(size: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


# (name, arguments, trainable modules, image size, shape of the features, modules called by the head)
TORCHVISION = [
    ("resnet18", {}, ["fc"], 64, (512,), ["fc"]),
    ("mobilenet_v2", {}, ["classifier"], 64, (1280,), ["classifier"]),
    ("vgg11", {}, ["classifier.6"], 64, (4096,), ["classifier.5", "classifier.6"]),
    ("densenet121", {}, ["classifier"], 64, (1024,), ["classifier"]),
    ("vit_b_16", {"image_size": 32}, ["heads"], 32, (768,), ["heads"]),
    ("swin_t", {}, ["head"], 64, (768,), ["head"]),
    ("convnext_tiny", {}, ["classifier.2"], 64, (768,), ["classifier.2"]),
    ("squeezenet1_1", {}, ["classifier.1"], 64, (512, 3, 3), ["classifier"]),
    ("efficientnet_b0", {}, ["classifier"], 64, (1280,), ["classifier"]),
]


@pytest.mark.parametrize(("name", "arguments", "trainable", "size", "shape", "calls"), TORCHVISION)
def test_head_of_backbone_is_the_model_of_torchvision(
    name: str, arguments: dict[str, Any], trainable: list[str], size: int, shape: tuple[int, ...], calls: list[str]
) -> None:
    model = freeze_but(torchvision_model(name, **arguments), *trainable).train()
    backbone, head = hapi.split(model, example=images(size, 2))

    x = images(size)
    features = backbone(x)
    assert features.shape == (3, *shape)
    assert not features.requires_grad
    assert called_by(head) == calls
    assert model.training, "split leaves the model's mode as it was"

    model.eval()
    assert torch.equal(head.eval()(features), model(x))
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in head.parameters()} == trained, "the head holds the model's own trainable parameters"


def called_by(head: Head) -> list[str]:
    return [step.target for step in head._eval_steps if step.kind == "call"]


HUGGING_FACE: list[tuple[Callable[[], nn.Module], int]] = [
    (
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=32,
                patch_size=8,
            )
        ),
        32,
    ),
    (
        lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1])
        ),
        64,
    ),
    (
        lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], drop_path_rate=0.1)
        ),
        64,
    ),
]


@pytest.mark.parametrize(("build", "size"), HUGGING_FACE, ids=["vit", "resnet", "convnext"])
def test_head_returns_what_a_hugging_face_model_returns(build: Callable[[], nn.Module], size: int) -> None:
    torch.manual_seed(0)
    model = freeze_but(build(), "classifier").eval()
    backbone, head = hapi.split(model, example=images(size, 2))

    x = images(size)
    expected, got = model(x), head(backbone(x))
    assert type(got) is type(expected)
    assert torch.equal(got.logits, expected.logits)
    assert all(name.startswith("classifier.") for name in head.state_dict())


def test_a_backbone_can_be_captured_and_named_by_the_modules_of_the_model() -> None:
    backbone, _ = hapi.split(freeze_but(torchvision_model("resnet18"), "fc"))
    graph = hapi.capture(backbone, images(64, 2))
    assert {"layer1", "layer2", "layer3", "layer4"} <= {cut.name for cut in graph.cuts}
    assert torch.equal(graph(images(64)), backbone(images(64)))


# -- the boundary named by the caller ------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["layer1", "layer3", "layer4.0", "layer4", "avgpool", "bn1"])
def test_the_backbone_ends_with_the_named_module(at: str) -> None:
    model = torchvision_model("resnet18").eval()
    seen: list[Tensor] = []
    hook = model.get_submodule(at).register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    backbone, head = hapi.split(model, at, example=images(64, 2))
    seen.clear()
    x = images(64)
    expected = model(x)
    hook.remove()

    features = backbone(x)
    assert torch.equal(features, seen[0])
    before = features.clone()
    assert torch.equal(head(features), expected)
    assert torch.equal(features, before), "the head leaves the caller's features alone"
    assert not features.requires_grad, "the backbone gives no gradients although nothing is frozen"


def test_a_boundary_inside_a_transformer() -> None:
    model = HUGGING_FACE[0][0]().eval()
    model.requires_grad_(False)
    model.get_submodule("vit.layers.1").requires_grad_(True)
    backbone, head = hapi.split(model)
    assert backbone(images(32)).shape == (3, 17, 32)
    assert {name.split(".")[2] for name, p in head.named_parameters() if p.requires_grad} == {"1"}
    assert torch.equal(head(backbone(images(32))).logits, model(images(32)).logits)


# -- training ------------------------------------------------------------------------------------------------


def train(module: Callable[[Tensor], Any], parameters: Any, inputs: list[Tensor], steps: int = 3) -> list[float]:
    """A few steps of SGD, with the random generator set before each; the losses."""
    optimiser = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = F.cross_entropy(module(inputs[step % len(inputs)]), torch.arange(len(inputs[0])) % 5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "trainable", "at", "size"),
    [
        ("resnet18", ["fc"], None, 64),
        ("resnet18", ["layer4", "fc"], None, 64),  # BatchNorm in the head
        ("resnet18", ["layer4", "fc"], "layer3", 64),
        ("mobilenet_v2", ["classifier"], None, 64),  # Dropout in the head
        ("alexnet", ["classifier.6"], None, 64),  # Dropout inside the frozen part: off, as everything there
    ],
)
def test_training_the_head_is_training_the_frozen_model(
    name: str, trainable: list[str], at: str | None, size: int
) -> None:
    model = freeze_but(torchvision_model(name), *trainable)
    plain = copy.deepcopy(model)
    backbone, head = hapi.split(model, at, example=images(size, 2))
    inputs = [images(size, 6), images(size, 6).flip(0)]

    head.train()
    losses = train(head, head.parameters(), [backbone(x) for x in inputs])

    plain.eval()
    for module_name, _ in head.named_modules():  # train mode where the head is, eval in the frozen part
        if module_name:
            plain.get_submodule(module_name).training = True
    assert losses == train(plain, plain.parameters(), inputs)
    assert losses[0] != losses[-1]
    for (key, mine), theirs in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), f"{key} differs: the model itself must have been trained, in place"


def test_running_statistics_move_in_the_head_and_stand_still_in_the_backbone() -> None:
    model = freeze_but(torchvision_model("resnet18"), "layer4", "fc")
    backbone, head = hapi.split(model)
    x = images(64)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    features = backbone(x)

    model.train()
    head.train()
    assert torch.equal(backbone(x), features), "model.train() does not reach the backbone"
    assert torch.equal(backbone.train()(x), features)
    head(features)
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {name for name in before if name.startswith("layer4.")}

    head.get_submodule("layer4").eval()  # "frozen BatchNorm" goes on working, module by module
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    head(features)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_parts_share_the_parameters_of_the_model() -> None:
    model = freeze_but(torchvision_model("resnet18"), "fc")
    backbone, head = hapi.split(model)
    x = images(64)
    assert head.get_submodule("fc") is model.fc
    assert head.state_dict().keys() == {"fc.weight", "fc.bias"}
    assert {id(p) for p in backbone.parameters()} < {id(p) for p in model.parameters()}
    model.load_state_dict(torchvision_model("resnet18").state_dict() | {"fc.bias": torch.ones(7)})
    model.double().eval()
    assert torch.equal(head.eval()(backbone(x.double())), model(x.double())), "conversions reach both parts"


def test_parts_copy_and_pickle() -> None:
    backbone, head = hapi.split(freeze_but(torchvision_model("resnet18"), "fc"))
    x = images(64)
    expected = head.eval()(backbone(x))
    for one, other in [
        (copy.deepcopy(backbone), copy.deepcopy(head)),
        (pickle.loads(pickle.dumps(backbone)), pickle.loads(pickle.dumps(head))),  # noqa: S301 - our own bytes
    ]:
        assert isinstance(one, Backbone)
        assert torch.equal(other(one(x)), expected)


def test_parts_follow_to_another_device() -> None:
    """A transformer's containers make masks and positions of their own, on the device that the export saw."""
    model = HUGGING_FACE[0][0]()
    backbone, head = hapi.split(model, "vit.layers.0")
    features = backbone.to("meta")(torch.empty(5, 3, 32, 32, device="meta"))
    assert (features.shape, features.device.type) == ((5, 17, 32), "meta")
    logits = head.to("meta")(features).logits
    assert (logits.shape, logits.device.type) == ((5, 2), "meta")


def test_a_head_compiles() -> None:
    _, head = hapi.split(freeze_but(torchvision_model("resnet18"), "layer4", "fc"), example=images(64, 2))
    features = torch.randn(3, 256, 4, 4)
    assert torch.equal(torch.compile(head.eval(), backend="eager")(features), head(features))


# -- awkward models ------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Convolution, BatchNorm, pooling, classifier; subclasses put something awkward before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 5)
        self.body.requires_grad_(False)

    def pooled(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.pooled(x))


class FunctionalDropout(Small):
    def forward(self, x: Tensor) -> Any:
        return self.fc(F.dropout(self.pooled(x), 0.5, self.training))


class ConditionalDropout(Small):
    def forward(self, x: Tensor) -> Any:
        x = self.pooled(x)
        if self.training:
            x = F.dropout(x, 0.5)
        return self.fc(x)


class DropoutEndsBody(Small):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
        self.body.requires_grad_(False)

    def pooled(self, x: Tensor) -> Tensor:
        return self.body(x)


class CountsRows(Small):
    """Reads the batch size before the boundary and uses it after."""

    def forward(self, x: Tensor) -> Any:
        rows = x.shape[0]
        x = self.body(x)
        return self.fc(x.mean((2, 3)).view(rows, 2, 4).reshape(rows, -1))


class Pair(Small):
    def forward(self, x: Tensor) -> Any:
        x = self.pooled(x)
        return {"logits": self.fc(x), "scores": (self.fc(x).softmax(1), None)}


class FrozenAfter(Small):
    """A frozen layer follows a trainable one: it stays in the head, frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 5).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.fc(self.pooled(x)))


@pytest.mark.parametrize("kind", [FunctionalDropout, ConditionalDropout, DropoutEndsBody])
def test_dropout_before_the_classifier_belongs_to_the_head(kind: type[Small]) -> None:
    model = kind()
    backbone, head = hapi.split(model)
    plain = copy.deepcopy(model)
    x = images(16, 4)
    assert torch.equal(head.eval()(backbone(x)), model.eval()(x))

    head.train()
    features = backbone(x)
    assert not torch.equal(head(features), head(features)), "dropout acts in train mode"
    losses = train(head, head.parameters(), [features])
    plain.train()
    plain.body.eval()
    for module in plain.body.modules():
        module.train(isinstance(module, nn.Dropout))
    assert losses == train(plain, plain.parameters(), [x])


@pytest.mark.parametrize("kind", [CountsRows, FrozenAfter])
def test_awkward_models_are_divided_exactly(kind: type[Small]) -> None:
    model = kind().eval()
    backbone, head = hapi.split(model)
    for batch in (1, 2, 5):
        assert torch.equal(head.eval()(backbone(images(16, batch))), model(images(16, batch)))
    assert [n for n, p in head.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_structures_come_back_as_they_were() -> None:
    model = Pair().eval()
    backbone, head = hapi.split(model)
    expected, got = model(images(16)), head.eval()(backbone(images(16)))
    assert torch.equal(got["logits"], expected["logits"])
    assert torch.equal(got["scores"][0], expected["scores"][0])
    assert got["scores"][1] is None


# -- errors --------------------------------------------------------------------------------------------------


class FollowsData(Small):
    def forward(self, x: Tensor) -> Any:
        x = self.pooled(x)
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


class Restless(Small):
    def forward(self, x: Tensor) -> Any:
        return self.fc(self.pooled(x) + torch.rand(8))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4).requires_grad_(False)
        self.fc = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Any:
        return self.fc(self.embed(ids).mean(1))


@pytest.mark.parametrize(
    ("build", "at", "kind", "words"),
    [
        (lambda: Small().requires_grad_(False), None, InputError, "Small: no parameter requires gradients"),
        (lambda: Small().requires_grad_(True), None, InputError, "Small: every parameter requires gradients"),
        (lambda: torchvision_model("resnet18"), "layer5", InputError, "no module 'layer5'. Did you mean layer4"),
        (lambda: torchvision_model("resnet18"), "fc", InputError, "no parameter comes after"),
        (lambda: torchvision_model("resnet18"), "layer3.1.conv1", CaptureError, "2 values cross it .*layer3.0"),
        (lambda: torchvision_model("resnet18"), "layer1.0.relu", CaptureError, "called 2 times"),
        (lambda: HUGGING_FACE[0][0](), "vit.layers", CaptureError, "list of modules: name one of vit.layers.0"),
        (lambda: freeze_but(Small(), "body.0"), "body", InputError, "body.0.weight.* would be in the frozen backbone"),
        (lambda: freeze_but(torchvision_model("resnet18"), "conv1"), None, CaptureError, "conv1.weight"),
        (FollowsData, None, CaptureError, "FollowsData.*could not be traced.*by hand"),
        (Restless, None, CaptureError, "Restless.*not model.x. on the example"),
        (Text, None, InputError, "Text.*Pass example="),
        (lambda: "resnet18", "layer4", InputError, "str is not a torch.nn.Module"),
    ],
)
def test_errors_name_model_reason_and_way_out(
    build: Callable[[], Any], at: str | None, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        hapi.split(build(), at)


def test_an_example_opens_models_of_other_inputs() -> None:
    model = Text().eval()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    backbone, head = hapi.split(model, example=ids)
    assert torch.equal(head.eval()(backbone(ids)), model(ids))
    with pytest.raises(InputError, match="example must be a tensor"):
        hapi.split(model, example="ids")  # type: ignore[arg-type]


def test_what_the_caller_has_set_for_tensors_does_not_matter() -> None:
    model = Small()
    x = images(16)
    expected = model.eval()(x)
    with torch.inference_mode():
        backbone, head = hapi.split(model, example=images(16, 2))
    assert torch.equal(head.eval()(backbone(x)), expected)
    with torch.device("meta"):  # as torch.set_default_device("cuda") sets another
        backbone, head = hapi.split(model)
    assert torch.equal(head.eval()(backbone(x)), expected)
