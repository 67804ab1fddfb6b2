"""What this process may use: processors, and the memory that its control groups, its machine or a device leave free."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import psutil

UNLIMITED = 2**60
"""Control groups of version 1 write 'no limit' as a number near 2^63."""


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_name(boot: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """The same for all processes on this machine until it starts anew, in whatever container or namespace; no other
    machine has it. Empty where the system does not tell; it says nothing of the machine itself."""
    try:
        return hashlib.sha256(boot.read_bytes().strip()).hexdigest()[:32]
    except OSError:
        return ""


def cpu_name(source: Path = Path("/proc/cpuinfo")) -> str:
    """'AMD EPYC (family 25, model 17, stepping 1)', or what the platform calls its architecture.

    Virtual machines call different generations by one name, of which one is twice as fast as the other: what tells
    them apart belongs to it.
    """
    try:
        first = source.read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = told.get("model name") or platform.processor() or platform.machine()
    kinds = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    which = ", ".join(f"{word} {told[key]}" for word, key in kinds.items() if told.get(key))
    return f"{name} ({which})" if which else name


def free_bytes(device: str) -> int:
    """Bytes that may still be taken on `device`: free memory, for `cpu` within all control groups as well.

    File cache counts as free, mapped files included: who maps files and wants to find them in memory subtracts them.
    What the C library keeps (hapi.allocator.kept_bytes) counts as taken; what torch keeps on a GPU as free, and what it
    was told to leave there (torch.cuda.set_per_process_memory_fraction) as not ours.
    """
    if device == "cpu":
        available = int(psutil.virtual_memory().available)
        within = cgroup_free_bytes()
        return available if within is None else min(available, within)
    import torch

    index = torch.device(device).index
    place = torch.cuda.current_device() if index is None else index
    free, total = torch.cuda.mem_get_info(place)
    reserved = torch.cuda.memory_reserved(place)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(place)) - reserved
    return max(0, min(free, allowed)) + reserved - torch.cuda.memory_allocated(place)


def cgroup_free_bytes(proc: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Least of (limit - usage) over this process's memory control group and every group above it; None if unlimited.

    Reads versions 2 and 1 (memory.max and memory.limit_in_bytes). File cache counts as
    free, for the kernel gives it up before it kills. Inside a container the group's own path is often not visible: its
    mount is.
    """
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return None
    free: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for base in (mount, mount / "unified"):
                free += _walk(base, path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            free += _walk(mount / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    return max(0, min(free)) if free else None


def _walk(base: Path, path: str, limit_file: str, usage_file: str, prefix: str) -> list[int]:
    """limit - usage of each group from `path` up to the mount that has a limit."""
    below = path.strip("/")
    groups = [base / below, *(base / below).parents] if below else [base]
    found = []
    for group in groups:
        limit = _number(group / limit_file)
        if limit is not None and limit < UNLIMITED:
            usage = (_number(group / usage_file) or 0) - _cache(group / "memory.stat", prefix)
            found.append(limit - max(0, usage))
        if group == base:
            break
    return found


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cache(file: Path, prefix: str) -> int:
    """Pages of files, active or not; shared memory is on neither list. `total_` in version 1: with groups below."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    said = dict(line.split(" ", 1) for line in lines if " " in line)
    numbers = (said.get(f"{prefix}{name}_file", "0") for name in ("active", "inactive"))
    return sum(int(number) for number in numbers if number.isdigit())
