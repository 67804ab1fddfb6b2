"""The machine a benchmark ran on, and what ran: numbers mean nothing without them."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from hapi.machine import cpu_name, processors

PACKAGES = ("hapi-split", "torch", "torchvision", "numpy", "pyarrow", "boto3", "pillow", "scipy", "transformers")
MATMUL_SIDE, MATMULS = 1024, 8
ROOT = Path(__file__).resolve().parents[2]


def describe() -> dict[str, Any]:
    """Processor and its speed, memory, kernel, accelerators, versions, revision, time and command, as JSON."""
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "cpus_usable": processors(),
        "matmul_gflops": round(matmul_gflops(), 1),
        "memory_bytes": int(psutil.virtual_memory().total),
        "accelerators": accelerators(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
        "revision": revision(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


def matmul_gflops() -> float:
    """Billions of float32 operations a second in products of matrices, all usable processors together, now.

    The best of a few, in some tenths of a second: names of processors do not tell how fast they are.
    """
    import numpy as np  # slow to import

    left = right = np.ones((MATMUL_SIDE, MATMUL_SIDE), np.float32)
    seconds = []
    for _ in range(MATMULS):
        begun = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - begun)
    return 2e-9 * MATMUL_SIDE**3 / min(seconds)


def processors_of(machine: Mapping[str, Any]) -> str:
    """'2 processors (AMD EPYC, 190 GFLOP/s)' of what `describe` told, here or elsewhere."""
    speed = f", {machine['matmul_gflops']:.0f} GFLOP/s" if "matmul_gflops" in machine else ""
    return f"{machine.get('cpus_usable', '?')} processors ({machine.get('cpu', '?')}{speed})"


def command() -> str:
    """The command line as it can be typed again."""
    name = Path(sys.argv[0]).name
    return shlex.join(["hapi" if name in ("cli.py", "hapi") else name, *sys.argv[1:]])


def accelerators() -> list[str]:
    """Names of the GPUs that the driver lists; asked of its own tool, as importing torch takes seconds."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    said = _said([tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    return said.splitlines() if said else []


def versions() -> dict[str, str]:
    """Of the packages that matter here, those that are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def revision() -> str | None:
    """The commit of the checkout, with `+` if files differ from it; None outside of one."""
    commit = _said(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    if not commit:
        return None
    return commit + ("+" if _said(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"]) else "")


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
