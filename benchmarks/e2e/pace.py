"""Plain's seconds per photograph, roughly: `python -m benchmarks.e2e.pace MODEL WEIGHTS`.

One JSON object on standard output. It decodes some synthetic photographs and runs the network over them, eagerly.
"""

from __future__ import annotations

import io
import json
import sys
import time

import torch
from PIL import Image

from benchmarks.baselines.networks import Extractor, load_network
from hapi.allocator import keep_freed_memory
from hapi.data.synth import synth_image

BATCH, REPEATS = 8, 3


def seconds_per_sample(model: str, weights: str) -> float:
    """Of the fastest of some batches: the first ones touch their memory for the first time."""
    network, transform = load_network(model, weights)
    extract = Extractor(network, torch.device("cpu"))
    pictures = [synth_image(index, 1, 0)[1] for index in range(2)]
    fastest = float("inf")
    for _ in range(REPEATS):
        begun = time.perf_counter()
        images = [transform(Image.open(io.BytesIO(pictures[index % 2])).convert("RGB")) for index in range(BATCH)]
        extract(torch.stack(images))
        fastest = min(fastest, time.perf_counter() - begun)
    return fastest / BATCH


def main() -> None:
    keep_freed_memory()
    print(json.dumps({"seconds_per_sample": seconds_per_sample(*sys.argv[1:3])}))


if __name__ == "__main__":
    main()
