"""Where the published system froze its networks: what its static rule cuts at.

Its freeze indices count the flattened layers of each network (run_exp.py of its repository): alexnet 17, resnet18 11,
resnet50 21, vgg11 25, vgg19 36, densenet121 20. Here they are the modules whose output is what its logs show on the
wire: 15.6 kB per image for alexnet and vgg11, 98 kB for resnet18, 8 kB for resnet50, 392 kB for vgg19.
"""

from __future__ import annotations

FREEZE_CUTS = {
    "torchvision:alexnet": "classifier.2",
    "torchvision:resnet18": "layer4",
    "torchvision:vgg11": "classifier.1",
    "torchvision:vgg19": "features.35",
}
"""Of the networks that were frozen before their end; the others' freeze layer is the end of the backbone."""


def freeze_cut(model: str) -> str:
    """The cut of the static rule: the published freeze layer, or the end of the backbone."""
    return FREEZE_CUTS.get(model, "output")
