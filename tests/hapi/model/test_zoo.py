"""load_model: networks by name, weights from strict files, features without the classifier."""

from __future__ import annotations

import json
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import hapi
from hapi.data import describe_transform
from hapi.errors import InputError
from hapi.model import load_model


def vit_config() -> transformers.ViTConfig:
    return transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )


@pytest.mark.parametrize(
    ("name", "features", "classifier"),
    [
        ("resnet18", 512, "fc"),
        ("mobilenet_v2", 1280, "classifier.1"),
        ("alexnet", 4096, "classifier.6"),
        ("squeezenet1_1", 512, None),  # a convolution classifies feature maps, which are averaged
        ("shufflenet_v2_x0_5", 1024, "fc"),
        ("googlenet", 1024, "fc"),  # auxiliary classifiers run in train mode only
    ],
)
def test_torchvision_without_its_classifier(name: str, features: int, classifier: str | None) -> None:
    model = load_model(f"torchvision:{name}", "none")
    assert (model.name, model.feature_size) == (name, features)
    assert model.example.shape == (2, 3, 224, 224)
    got = model.backbone(model.example)
    assert got.shape == (2, features)
    assert not any(p.requires_grad for p in model.network.parameters())
    if classifier is None:
        assert model.head is None
        assert model.notes == ("features (512, 13, 13) are averaged over their positions",)
    else:
        assert model.head is not None
        assert {key.rpartition(".")[0] for key in model.head.state_dict()} == {classifier}
        assert torch.equal(model.head.eval()(got), model.network(model.example))


def test_random_weights_and_example_are_the_same_everywhere() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = load_model("torchvision:resnet18", "none"), load_model("torchvision:resnet18", None)
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is left alone"
    assert torch.equal(one.example, other.example)
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True))


def test_backbones_are_captured_under_the_names_of_the_network() -> None:
    model = load_model("torchvision:squeezenet1_1", "none")
    graph = hapi.capture(model.backbone, model.example)
    assert torch.equal(graph(model.example), model.backbone(model.example))
    assert "features.3" in {cut.name for cut in graph.cuts}


def test_the_transform_is_the_architectures_own() -> None:
    transform = load_model("torchvision:resnet18", "none").transform
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert repr(transform) == repr(preset)
    describe_transform(transform)


def test_the_preset_fits_the_input_that_a_network_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.get_model_weights("vit_h_14")
    assert weights.DEFAULT.transforms().crop_size == [518], "its best weights are for larger images than the builder's"
    network = make_small()
    network.image_size = 224
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: network)
    assert load_model("torchvision:vit_h_14", "none").transform.crop_size == [224]


# -- weights from files --------------------------------------------------------------------------------------


def stored(network: nn.Module, path: Path, **changes: torch.Tensor | None) -> Path:
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    for key, value in changes.items():
        name = key.replace("__", ".")
        state.pop(name, None)
        if value is not None:
            state[name] = value
    save_file(state, path)
    return path


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = torchvision.models.get_model("resnet18", weights=None).eval()
    path = stored(network, tmp_path / "weights.safetensors", bn1__num_batches_tracked=None)
    model = load_model("torchvision:resnet18", str(path))
    assert torch.equal(model.network(model.example), network(model.example))


def test_auxiliary_classifiers_may_be_left_out_of_a_file(tmp_path: Path) -> None:
    network = torchvision.models.get_model("googlenet", weights=None, aux_logits=False, init_weights=False)
    model = load_model("torchvision:googlenet", str(stored(network, tmp_path / "weights.safetensors")))
    assert torch.equal(model.network.conv1.conv.weight, network.conv1.conv.weight)
    assert model.network.transform_input, "as torchvision sets it for published weights"


def test_real_weights_load(shared_data: Path) -> None:
    model = load_model("torchvision:mobilenet_v2", str(shared_data / "weights" / "mobilenet_v2.safetensors"))
    photo = next((shared_data / "images" / "flowers5" / "daisy").glob("*.jpg"))
    features = model.backbone(model.transform(Image.open(photo).convert("RGB"))[None])
    assert model.head is not None
    assert model.head.eval()(features).argmax().item() == 985  # ImageNet's daisy


def pickled(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda n, p: p, "no such file"),
        (lambda n, p: stored(n, p, layer1__0__conv1__weight=None), "missing layer1.0.conv1.weight"),
        (lambda n, p: stored(n, p, extra__bias=torch.ones(1)), "unexpected extra.bias"),
        (lambda n, p: stored(n, p, fc__bias=torch.ones(5)), r"fc.bias is \(5,\), not \(1000,\)"),
        (pickled, "not a safetensors file"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    write: Callable[[nn.Module, Path], Path], words: str, tmp_path: Path
) -> None:
    network = torchvision.models.get_model("resnet18", weights=None)
    with pytest.raises(InputError, match=words):
        load_model("torchvision:resnet18", str(write(network, tmp_path / "weights.safetensors")))


# -- published weights ---------------------------------------------------------------------------------------


def test_published_weights_come_through_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    network = torchvision.models.get_model("resnet18", weights=None).eval()
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = load_model("torchvision:resnet18")
    assert torch.equal(model.network(model.example), network(model.example))


class Runs:
    """Unpickling this would run a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_a_published_file_cannot_execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save({"conv1.weight": Runs()}, tmp_path / "checkpoints" / url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="holds more than tensors"):
        load_model("torchvision:resnet18")
    assert "executed" not in capsys.readouterr().out


def test_no_network_says_what_to_pass_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(InputError, match=r"no route.*--weights FILE.safetensors .*or none"):
        load_model("torchvision:resnet18")
    assert capsys.readouterr().out == "", "standard output is kept for --json"


# -- Hugging Face --------------------------------------------------------------------------------------------


def test_a_folder_with_only_a_configuration(tmp_path: Path) -> None:
    vit_config().save_pretrained(tmp_path)
    spec = f"hf:{tmp_path}"
    model, again = load_model(spec, "none"), load_model(spec, "none")
    assert (model.name, model.feature_size) == (tmp_path.name, 32)
    assert model.example.shape == (2, 3, 32, 32)
    assert model.notes == ("no transform comes with it; images are prepared the usual ImageNet way at 32x32",)
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), again.network.parameters(), strict=True))
    assert model.head is not None
    logits = model.network(model.example).logits
    assert torch.equal(model.head.eval()(model.backbone(model.example)).logits, logits)
    with pytest.raises(InputError, match=r"weights could not be loaded.*none for random ones"):
        load_model(spec)


def test_a_folder_with_weights_and_a_processor(tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = transformers.ViTForImageClassification(vit_config()).eval()
    network.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}")
    assert torch.equal(model.network(model.example).logits, network(model.example).logits)
    assert model.notes == ()
    assert describe_transform(model.transform)(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_an_encoder_without_a_classifier_is_all_backbone(tmp_path: Path) -> None:
    config = vit_config()
    config.architectures = ["ViTModel"]
    config.save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}", "none")
    assert model.head is None
    assert model.feature_size == 32
    assert torch.equal(model.backbone(model.example), model.network(model.example).pooler_output)
    graph = hapi.capture(model.backbone, model.example)
    assert torch.equal(graph(model.example), model.backbone(model.example))


def test_weights_that_lack_a_part_are_refused(tmp_path: Path) -> None:
    network = transformers.ViTForImageClassification(vit_config())
    network.save_pretrained(tmp_path)
    stored(network, tmp_path / "model.safetensors", classifier__weight=None)
    with pytest.raises(InputError, match=r"its weights lack classifier.weight.*stay random"):
        load_model(f"hf:{tmp_path}")


def test_pickled_hugging_face_weights_are_refused(tmp_path: Path) -> None:
    vit_config().save_pretrained(tmp_path)
    torch.save(transformers.ViTForImageClassification(vit_config()).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="weights could not be loaded"):
        load_model(f"hf:{tmp_path}")


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'hapi-split\[hf\]'"):
        load_model("hf:anything")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("preprocessor_config.json", "{broken", "image processor could not be loaded"),
        ("preprocessor_config.json", '{"image_processor_type": "NoSuch"}', "image processor could not be loaded"),
        ("model.safetensors", "{broken", "weights could not be loaded"),
        ("config.json", '{"model_type": "timm_wrapper"}', "configuration could not be loaded.*timm library"),
    ],
)
def test_files_that_are_broken_are_refused(tmp_path: Path, file: str, text: str, words: str) -> None:
    transformers.ViTForImageClassification(vit_config()).save_pretrained(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=words):
        load_model(f"hf:{tmp_path}")


def test_weights_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    network = transformers.ViTForImageClassification(vit_config())
    network.save_pretrained(tmp_path)
    stored(network, tmp_path / "model.safetensors", classifier__bias=torch.zeros(5))
    with pytest.raises(InputError, match="weights could not be loaded"):
        load_model(f"hf:{tmp_path}")


def test_nobody_is_asked_whether_to_run_the_code_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    said = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "code.py").write_text("raise SystemExit('executed')")
    with pytest.raises(InputError, match="contains custom code"):
        load_model(f"hf:{tmp_path}", "none")


# -- factories -----------------------------------------------------------------------------------------------


def make_small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def make_with_transform() -> Any:
    return make_small(), torchvision.transforms.Compose(
        [torchvision.transforms.Resize((20, 24)), torchvision.transforms.ToTensor()]
    )


def make_text() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))


def make_nothing() -> int:
    return 3


def test_a_function_of_the_users_own() -> None:
    model = load_model(f"{__name__}:make_small", "none")
    assert (model.name, model.feature_size) == ("make_small", 8)
    assert model.notes == ("no transform comes with it; images are prepared the usual ImageNet way at 224x224",)
    assert load_model(f"{__name__}:make_with_transform").example.shape == (2, 3, 20, 24)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet18", "say torchvision:NAME"),
        (":resnet18", "say torchvision:NAME"),
        ("torchvision:rasnet18", "no such image classifier. Did you mean resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no such image classifier"),
        ("no.such.module:f", "No module named 'no'"),
        (f"{__name__}:missing", "missing"),
        (f"{__name__}:__name__", "not a function"),
        (f"{__name__}:make_nothing", "returned int"),
        (f"{__name__}:make_text", "does not accept its own transform"),
    ],
)
def test_errors_name_the_model_and_what_to_say(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_model(spec, "none")
    assert spec.partition(":")[2] in str(caught.value) or spec in str(caught.value)


def test_configuration_files_are_read_strictly(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(InputError, match="configuration could not be loaded"):
        load_model(f"hf:{tmp_path}", "none")
