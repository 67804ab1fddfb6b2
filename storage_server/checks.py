"""What must be there before a server starts: a cache directory that can be written, and the device."""

from __future__ import annotations

from pathlib import Path

from hapi.errors import InputError
from hapi.files import write_whole


def check_folder(folder: Path) -> None:
    """Makes the cache directory; InputError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "writable", b"")
        (folder / "writable").unlink()
    except OSError as error:
        raise InputError(f"cache directory {folder}: {error.strerror}. Choose another with --cache-dir.") from error


def check_device(device: str) -> None:
    """InputError if this machine does not have the device."""
    if device == "cpu":
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise InputError(f"--device {device}: this machine has {count} CUDA devices. Use --device cpu or another one.")
