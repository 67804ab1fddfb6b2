"""Object stores from the Python package index, each in a virtual environment of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from hapi.errors import HapiError


class ObjectStoreError(HapiError):
    """The object store could not be installed, started or stopped."""

    kind = "object-store-failed"


def cached(name: str, variable: str) -> Path:
    """Where an installation is kept between runs: what the variable names, or a folder of the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return Path(os.environ.get(variable) or cache / "hapi" / f"{name}-{python}")


def install(requirement: str, venv: Path, remedy: str) -> None:
    """Installs a requirement like `swift==2.38.3` into a virtual environment of its own, once; parallel callers wait
    for one another. ObjectStoreError ends with the remedy."""
    stamp = venv / ".installed"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{venv}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == requirement:
            return
        shutil.rmtree(venv, ignore_errors=True)
        if uv := shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"):
            make = [uv, "venv", "--quiet", "--python", sys.executable, str(venv)]
            fill = [uv, "pip", "install", "--quiet", "--python", str(venv / "bin/python"), requirement]
        else:
            make = [sys.executable, "-m", "venv", str(venv)]
            pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            fill = [*pip, requirement]
        for command in (make, fill):
            run_step(command, requirement, remedy)
        stamp.write_text(requirement)


def run_step(command: list[str], requirement: str, remedy: str) -> None:
    """Runs one command of an installation; ObjectStoreError says what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise ObjectStoreError(
            f"cannot install {requirement} ({command[0]} ended with {done.returncode}): {said}. "
            f"It comes from the Python package index: check the network, or {remedy}."
        )
