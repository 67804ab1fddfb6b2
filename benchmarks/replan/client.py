"""A client that trains a head until it is told to stop, and writes down when it had which batch.

`python -m benchmarks.replan.client --data URI --model M --server URL --progress FILE`: a line of JSON per batch in FILE
(see `phases.Batch`), and one JSON document on standard output. It stops when `FILE.stop` is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compute_client import DataLoader
from hapi.allocator import keep_freed_memory


def train(
    data: str, model: str, server: str, progress: Path, *, weights: str, pushdown: str, replan: bool,
    batch_size: int, seed: int, most_seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Epoch after epoch, nothing kept; answers the plan as it ended, with its history."""
    loader = DataLoader(
        data, backbone=model, weights=weights, server=server, pushdown=pushdown, replan=replan, batch_size=batch_size,
        shuffle=True, seed=seed, cache_bytes=0, device="cpu", epochs=100,
    )  # fmt: skip
    loader.warm_up()
    head = nn.Linear(loader.feature_shape[0], max(2, len(loader.classes)))
    steps = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
    stop, began = Path(f"{progress}.stop"), time.time()
    with progress.open("w", buffering=1) as lines:
        while not stop.exists() and time.time() - began < most_seconds:
            for features, labels in loader:
                steps.zero_grad()
                nn.functional.cross_entropy(head(features), labels).backward()  # type: ignore[no-untyped-call]
                steps.step()
                stats = loader.stats
                line = {
                    "at": time.time(),
                    "samples": stats.samples,
                    "requests": stats.requests - stats.retries,
                    "bytes": stats.bytes_received,
                    "changes": len(loader.plan.history),
                }
                print(json.dumps(line), file=lines)
                if stop.exists() or line["at"] - began >= most_seconds:
                    break
    document = {"plan": loader.plan.to_json(), "stats": loader.stats.to_json()}
    loader.close()
    return document


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description="Trains until told to stop; for hapi bench replan.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--progress", required=True, type=Path)
    parser.add_argument("--weights", default="none")
    parser.add_argument("--pushdown", default="auto")
    parser.add_argument("--no-replan", dest="replan", action="store_false")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-seconds", type=float, default=3600.0)
    print(json.dumps(train(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
