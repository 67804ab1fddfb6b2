"""Where the published system froze its networks: what its static rule cuts at.

Its freeze indices (run_exp.py of its repository) are alexnet 17, resnet18 11, resnet50 21, vgg11 25, vgg19 36,
densenet121 20, ViT 17. They count the layers of each network as a list, from 1, where these are its layers:

- alexnet and vgg: each module of `features` and `classifier` is one, and so is `avgpool`; flattening is none. 17 of
  alexnet is the ReLU after the first Linear layer (13 + 1 + 3), 25 of vgg11 the Dropout after it (21 + 1 + 3), which in
  eval mode gives what the ReLU before it gave; 36 of vgg19 is the last ReLU of its features.
- a residual network has 4 layers before its blocks, and each block is one: 11 of resnet18 is `layer4.0` (4 + 7), 21 of
  resnet50 what follows its 16 blocks, the average: the end of the backbone.
- densenet121 has 4 before its blocks, each dense block is one, and each transition 4 (norm, relu, conv, pool):
  20 is `denseblock4` (4 + 3 * (1 + 4) + 1).
- a ViT block is one. What its other layers are is not known: 17 is taken for the norm after the 12 blocks (timm has 4
  before them, two of which do nothing), with all tokens.

The bytes that its logs show agree: per image 16 KiB for alexnet and vgg11, 98 for resnet18, 8 for resnet50, 392 for
vgg19, 196 for densenet121 (98 one layer earlier). So do the splits with the least output, which the logs name as well:
28 for vgg19, 19 for densenet121, 23 for vgg11, 11 for resnet18, 16 for alexnet; each is the first of its size. ViT's is
2, so that what leaves 17 is no smaller: it comes before one token is chosen.
"""

from __future__ import annotations

FREEZE_CUTS = {
    "torchvision:alexnet": "classifier.2",
    "torchvision:resnet18": "layer4.0",
    "torchvision:vgg11": "classifier.1",
    "torchvision:vgg19": "features.35",
    "torchvision:densenet121": "features.denseblock4",
    "torchvision:vit_b_16": "encoder",
}
"""Of the networks that were frozen before their end; the others' freeze layer is the end of the backbone."""


def freeze_cut(model: str) -> str:
    """The cut of the static rule: the published freeze layer, or the end of the backbone."""
    return FREEZE_CUTS.get(model, "output")
