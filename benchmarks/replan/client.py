"""A client that trains a head until it is told to stop, and writes down when it had which batch.

`python -m benchmarks.replan.client --data URI --model M --server URL --progress FILE`: a line of JSON per batch in FILE
(see `phases.Batch`), and one JSON document on standard output. It stops when `FILE.stop` is there. With `--profile` it
trains nothing: the document is the profile of both tiers and the link, and what was measured here is remembered.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compute_client import DataLoader
from compute_client.planning import PROFILE_REPEATS
from compute_client.streams.endless import Endless
from hapi.allocator import keep_freed_memory
from hapi.data import describe_transform
from hapi.engine import Choice
from hapi.model import capture
from hapi.model.zoo import load_model
from hapi.wire.allowed import Allowed
from profiler.measurements import Measurements, default_folder
from profiler.remote import ServerClient
from profiler.tiers import Job, profile_with_server


def train(
    data: str, model: str, server: str, progress: Path, *, weights: str, pushdown: str, replan: bool, samples: int,
    batch_size: int, engine: Choice, in_flight: int, buffer_bytes: int, most_seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """One stream without an end, nothing kept; answers the plan as it ended, with its history."""
    loader = DataLoader(
        data, backbone=model, weights=weights, server=server, pushdown=pushdown, replan=replan, batch_size=batch_size,
        sampler=Endless(samples), cache_bytes=0, device="cpu", engine=engine, epochs=100,
        requests_in_flight=in_flight, buffer_bytes=buffer_bytes,
    )  # fmt: skip
    loader.warm_up()
    head = nn.Linear(loader.feature_shape[0], max(2, len(loader.classes)))
    steps = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
    stop, began = Path(f"{progress}.stop"), time.time()
    with progress.open("w", buffering=1) as lines, closing(iter(loader)) as batches:
        for features, labels in batches:
            steps.zero_grad()
            nn.functional.cross_entropy(head(features), labels).backward()  # type: ignore[no-untyped-call]
            steps.step()
            stats = loader.stats
            line = {
                "at": time.time(),
                "samples": stats.samples,
                "arrived": sum(stats.samples_by_cut.values()),
                "bytes": stats.bytes_received,
                "changes": len(loader.plan.history),
            }
            print(json.dumps(line), file=lines)
            if stop.exists() or line["at"] - began >= most_seconds:
                break
    document = {"plan": loader.plan.to_json(), "stats": loader.stats.to_json()}
    loader.close()
    return document


def profile(data: str, model: str, server: str, *, weights: str, batch_size: int, engine: Choice) -> dict[str, Any]:
    """What every cut costs, as a loader with these arguments measures it; the server gets the network."""
    loaded = load_model(model, weights)
    graph = capture(loaded.backbone, loaded.example, name=loaded.name)
    client = ServerClient(server)
    client.ensure_model(graph)
    dataset = client.register(data)
    job = Job(dataset.samples, batch_size, 100, len(dataset.classes), allowed=Allowed(("float32",), "auto"),
              repeats=PROFILE_REPEATS, engine=engine)  # fmt: skip
    kept = Measurements(default_folder())
    transform = describe_transform(loaded.transform)
    return profile_with_server(
        client, graph, dataset, transform, job, workers=torch.get_num_threads(), remembered=kept
    ).to_json()


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description="Trains until told to stop; for hapi bench replan.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--weights", default="none")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--progress", type=Path)
    parser.add_argument("--pushdown", default="auto")
    parser.add_argument("--no-replan", dest="replan", action="store_false")
    parser.add_argument("--samples", type=int, help="of the dataset")
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--buffer-bytes", type=int, default=2**28)
    parser.add_argument("--most-seconds", type=float, default=3600.0)
    told = parser.parse_args()
    job = {"data": told.data, "model": told.model, "server": told.server, "weights": told.weights,
           "batch_size": told.batch_size, "engine": told.engine}  # fmt: skip
    if told.profile:
        print(json.dumps(profile(**job)))
        return
    how = {"pushdown": told.pushdown, "replan": told.replan, "samples": told.samples, "in_flight": told.in_flight,
           "buffer_bytes": told.buffer_bytes, "most_seconds": told.most_seconds}  # fmt: skip
    print(json.dumps(train(progress=told.progress, **job, **how)))


if __name__ == "__main__":
    main()
