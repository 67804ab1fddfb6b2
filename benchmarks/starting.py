"""A job's start in a process of its own, phase by phase: `python -m benchmarks.starting URL DATA MODEL` prints JSON."""

from __future__ import annotations

import json
import sys
import time


def main(server: str, data: str, model: str) -> dict[str, float | str]:
    """Seconds of each phase until the first batch is there; `seconds` of all, `plan` what was decided."""
    began = last = time.perf_counter()
    phases: dict[str, float | str] = {}

    def done(phase: str) -> None:
        nonlocal last
        now = time.perf_counter()
        phases[f"{phase}_seconds"], last = now - last, now

    import compute_client
    from hapi.data import describe_transform
    from hapi.model import capture, load_model
    from profiler.remote import ServerClient

    _ = compute_client.DataLoader
    done("import")
    network = load_model(model, "none")
    done("load")
    graph = capture(network.backbone, network.example, name=network.name)
    done("capture")
    with ServerClient(server) as client:
        client.register(data)
        done("connect")
        client.ensure_model(graph)
        done("upload")
        loader = compute_client.DataLoader(
            data, backbone=graph, transform=describe_transform(network.transform), server=server, batch_size=32
        )
        plan = loader.plan
        done("plan")
        next(iter(loader))
        done("first_batch")
        loader.close()
    phases["plan"] = ", ".join(f"{share.share:.0%} {share.name}" for share in plan.cuts)
    return {"seconds": last - began, **phases}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
