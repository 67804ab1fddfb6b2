"""Results as the scenarios write them, small: enough for every figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MACHINE = {"cpu": "Test", "cpus_usable": 2, "memory_bytes": 2**30, "command": "hapi bench test", "revision": "abc"}


def e2e() -> list[dict[str, Any]]:
    made = []
    for rho, plain, mix in ((0.25, 10.0, 5.0), (1.0, 16.0, 4.0), (4.0, 40.0, 5.0)):
        common = {"scenario": "e2e", "model": "alexnet", "rho": rho, "bandwidth_bits_per_s": 1e8 / rho, "epochs": 1}
        common |= {"samples": 100, "precision": "float32"}
        made.append({**common, "system": "plain", "seconds": plain, "bytes": 11_000_000})
        made.append({**common, "system": "mix", "seconds": mix, "bytes": 1_638_400})
    return made


def memory() -> list[dict[str, Any]]:
    common = {"scenario": "memory", "model": "alexnet", "samples": 96}
    return [
        {**common, "system": "ours", "survived": "yes", "images_per_s": 11.0, "seconds": 8.7},
        {**common, "system": "fixed-8", "survived": "yes", "images_per_s": 10.0, "seconds": 9.6},
        {**common, "system": "fixed-16", "survived": "killed by the kernel"},
        {**common, "system": "whole", "survived": "killed by the kernel"},
    ]


def tenants() -> list[dict[str, Any]]:
    common = {"scenario": "tenants", "part": "mixed", "seconds": 20.0}
    return [
        {**common, "system": "ours", "tenants": 4, "failures": 0, "makespan_to_alone": 1.02},
        {**common, "system": "ours", "tenants": 12, "failures": 0, "makespan_to_alone": 1.03},
        {**common, "system": "whole", "tenants": 12, "failures": 7, "makespan_to_alone": 0.4},
    ]


def sweep() -> list[dict[str, Any]]:
    made = []
    for rate, seconds in ((1e8, (3.0, 1.0, 2.0)), (1e9, (1.0, 2.0, 4.0))):
        common = {"scenario": "sweep", "model": "alexnet", "bandwidth_bits_per_s": rate}
        for cut, value in zip(("input", "features.5", "output"), seconds, strict=True):
            made.append({**common, "system": f"cut:{cut}", "seconds": value})
        made.append({**common, "system": "mix", "seconds": min(seconds) * 0.97})
        made.append({**common, "system": "paper", "seconds": 2.0})
    return [*made, {"scenario": "sweep", "system": "mix", "model": "every case", "within_5_of_best": 1.0}]


def keep(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    document = {"scenario": name, "machine": MACHINE, "remarks": [], "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(document))


def keep_all(folder: Path) -> None:
    for name, rows in (("e2e", e2e()), ("memory", memory()), ("tenants", tenants()), ("sweep", sweep())):
        keep(folder, name, rows)
