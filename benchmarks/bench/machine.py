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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from hapi.machine import cpu_name, processors

PACKAGES = ("hapi-split", "torch", "torchvision", "numpy", "pyarrow", "boto3", "pillow", "scipy", "transformers")
ROOT = Path(__file__).resolve().parents[2]


def describe() -> dict[str, Any]:
    """Processor, memory, kernel, accelerators, versions, revision, time and command, as JSON."""
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "cpus_usable": processors(),
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
