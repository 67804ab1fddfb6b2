"""Networks for the tests of graphs: real architectures, small enough, with the class of their blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torchvision
import transformers
from torch import Tensor, nn

from hapi.model import Graph, capture

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """How to build a network, what it takes, and the class name of the blocks between which a cut must be offered."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    block: str = ""
    output: str | None = None
    names: tuple[str, ...] = ()


def images(size: int) -> Callable[[int], Inputs]:
    def make(batch: int) -> Inputs:
        return (torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)),)

    return make


def tokens(batch: int) -> Inputs:
    """Ids of 16 tokens and a mask in which the samples end at different places."""
    ids = torch.randint(0, 100, (batch, 16), generator=torch.Generator().manual_seed(batch))
    lengths = 16 - 3 * torch.arange(batch).unsqueeze(1)
    return ids, (torch.arange(16) < lengths.clamp(min=2)).long()


def vision(name: str, block: str = "", size: int = 64, **arguments: Any) -> Network:
    return Network(lambda: torchvision.models.get_model(name, weights=None, **arguments), images(size), block)


def _small(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return {**sizes, **more}


def face(model: str, block: str, inputs: Callable[[int], Inputs], output: str, **config: Any) -> Network:
    """A Hugging Face network from a configuration class and its arguments."""

    def build() -> nn.Module:
        settings = getattr(transformers, model.removesuffix("Model") + "Config")(**config)
        return getattr(transformers, model)(settings)

    return Network(build, inputs, block, output, ("input_ids", "attention_mask") if inputs is tokens else ())


def maxvit() -> nn.Module:
    """maxvit_t's architecture for 64 x 64 images; its own constructor insists on 224."""
    return torchvision.models.MaxVit(
        input_size=(64, 64), stem_channels=16, partition_size=2, block_channels=[16, 32], block_layers=[2, 2],
        head_dim=8, stochastic_depth_prob=0.1,
    )  # fmt: skip


_PATCHES = {"image_size": 32, "patch_size": 8}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}

NETWORKS: dict[str, Network] = {
    "alexnet": vision("alexnet", "ReLU"),
    "vgg11": vision("vgg11", "ReLU", size=32, init_weights=False),
    "resnet18": vision("resnet18", "BasicBlock"),
    "resnet50": vision("resnet50", "Bottleneck"),
    "densenet121": vision("densenet121", "_DenseBlock"),
    "googlenet": vision("googlenet", "Inception", init_weights=False, aux_logits=False, transform_input=True),
    "inception_v3": vision("inception_v3", "Inception[A-E]", 96, init_weights=False, transform_input=True),
    "mobilenet_v2": vision("mobilenet_v2", "InvertedResidual"),
    "mobilenet_v3_small": vision("mobilenet_v3_small", "InvertedResidual"),
    "efficientnet_b0": vision("efficientnet_b0", "MBConv"),
    "shufflenet_v2_x1_0": vision("shufflenet_v2_x1_0", "InvertedResidual"),
    "squeezenet1_1": vision("squeezenet1_1", "Fire"),
    "convnext_tiny": vision("convnext_tiny", "CNBlock"),
    "swin_t": vision("swin_t", "SwinTransformerBlock"),
    "vit_b_16": vision("vit_b_16", "EncoderBlock", image_size=64),
    "regnet_y_400mf": vision("regnet_y_400mf", "ResBottleneckBlock"),
    "maxvit_t": Network(maxvit, images(64), "MaxVitLayer"),
    "hf-vit": face("ViTModel", "ViTLayer", images(32), "last_hidden_state", **_small(**_PATCHES)),
    "hf-dinov2": face(
        "Dinov2Model", "Dinov2Layer", images(32), "pooler_output",
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, **_PATCHES,
    ),
    "hf-swin": face(
        "SwinModel", "SwinLayer", images(32), "pooler_output",
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
    ),
    "hf-convnext": face("ConvNextModel", "ConvNextLayer", images(64), "pooler_output", **_STAGES),
    "hf-resnet": face("ResNetModel", "ResNetBasicLayer", images(64), "pooler_output",
                      embedding_size=8, layer_type="basic", **_STAGES),
    "hf-clip": face("CLIPVisionModel", "CLIPEncoderLayer", images(32), "pooler_output", **_small(**_PATCHES)),
    "hf-siglip": face("SiglipVisionModel", "SiglipEncoderLayer", images(32), "pooler_output", **_small(**_PATCHES)),
    "hf-bert": face("BertModel", "BertLayer", tokens, "last_hidden_state", **_small(vocab_size=100)),
    "hf-distilbert": face("DistilBertModel", "TransformerBlock", tokens, "last_hidden_state",
                          dim=32, n_layers=3, n_heads=2, hidden_dim=64, vocab_size=100),
    "hf-roberta": face("RobertaModel", "RobertaLayer", tokens, "last_hidden_state", **_small(vocab_size=100)),
}  # fmt: skip


@lru_cache(maxsize=1)
def build(name: str) -> nn.Module:
    """The network with random weights, frozen and in eval mode, as backbones are."""
    torch.manual_seed(0)
    network = NETWORKS[name].build().requires_grad_(False).eval()
    with torch.no_grad():
        # Some heads start as zeros and some branches as almost nothing, which would hide every mistake.
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor += 0.02 * torch.rand_like(tensor)
    return network


@lru_cache(maxsize=1)
def captured(name: str) -> Graph:
    """The network's graph, from an example of batch one."""
    network = NETWORKS[name]
    example = network.inputs(1)
    named = dict(zip(network.names, example, strict=True)) if network.names else example
    return capture(build(name), named, name=name, output=network.output)


def eager(name: str, inputs: Inputs) -> Tensor:
    """What the network itself gives."""
    network = NETWORKS[name]
    with torch.no_grad():
        result = build(name)(**dict(zip(network.names, inputs, strict=True))) if network.names else build(name)(*inputs)
    return result[network.output] if network.output else result
