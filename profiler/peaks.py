"""What a piece of work takes of a device's memory at its peak, as the one who kills for it counts: kernel or driver.

On a CPU that is memory of the process that is in fact there (resident), holes between tensors included: an allocator
that keeps what tensors free (hapi.allocator) takes up to 2.6 times the tensors alive at the peak, because a hole is
only good for what fits into it. On CUDA it is what the caching allocator counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from hapi.allocator import release_free_memory


class PeakMeter(Protocol):
    """`start`, the work, `stop`: on one thread. Other threads' work in between is counted, too."""

    def start(self) -> None: ...

    def stop(self) -> int | None:
        """Bytes at the peak above what was there at the start; None if this system does not tell."""
        ...


class ResidentMeter:
    """The process's resident memory, pages of files apart. Starting gives kept memory back: not for every batch."""

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._before: dict[str, int] | None = None

    def start(self) -> None:
        release_free_memory()
        try:
            (self._proc / "clear_refs").write_text("5")  # the high-water mark starts anew, see proc(5)
            self._before = self._status()
        except OSError:
            self._before = None

    def stop(self) -> int | None:
        if self._before is None:
            return None
        after = self._status()
        files = max(0, after["RssFile"] - self._before["RssFile"])
        return max(0, after["VmHWM"] - self._before["VmRSS"] - files)

    def _status(self) -> dict[str, int]:
        said = (line.partition(":") for line in (self._proc / "status").read_text().splitlines())
        wanted = {name: value for name, _, value in said if name in ("VmHWM", "VmRSS", "RssFile")}
        if len(wanted) < 3:
            raise OSError("the kernel does not say what is resident")
        return {name: int(value.split()[0]) * 1024 for name, value in wanted.items()}


class CudaMeter:
    """Bytes that torch's caching allocator gave out."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = 0

    def start(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def stop(self) -> int | None:
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device)) - self._before


def peak_meter(device: str) -> PeakMeter:
    """The meter of a device."""
    return ResidentMeter() if device == "cpu" else CudaMeter(device)
