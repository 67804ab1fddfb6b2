"""Freed memory is kept, in every thread, unless somebody else decided."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pyarrow
import pytest

ROUNDS, TENSORS = 10, 2
SIZE = 40 * 2**20  # glibc maps what is over 32 MiB anew each time, unless it is told otherwise
PAGES = TENSORS * SIZE // os.sysconf("SC_PAGE_SIZE")

PROBE = f"""
import sys, threading
from resource import RUSAGE_SELF, getrusage
from hapi.allocator import keep_freed_memory
told = keep_freed_memory() if "keep" in sys.argv else None
import torch
def batch():
    held = [torch.ones({SIZE}, dtype=torch.uint8) for _ in range({TENSORS})]
def work():
    for _ in range({ROUNDS}):
        batch()
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        batch()
    print(told, getrusage(RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def page_faults(*arguments: str, **environment: str) -> tuple[str, int]:
    command = [sys.executable, "-c", PROBE, *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**clean, **environment})
    told, faults = done.stdout.split()
    return told, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_is_reused_outside_of_the_main_thread() -> None:
    told, faults = page_faults("keep")
    assert told == "True"
    _, without = page_faults()
    assert without > ROUNDS * PAGES / 2, "without, most rounds take new pages"
    assert faults < without / 3


def test_the_environment_has_the_last_word() -> None:
    told, _ = page_faults("keep", MALLOC_ARENA_MAX="2")
    assert told == "False"


APART = f"""
from hapi.allocator import keep_freed_memory, map_large_apart
print(map_large_apart(True), keep_freed_memory())
import torch
def mapped():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
torch.ones({SIZE // 4}, dtype=torch.uint8)  # whatever torch takes for itself
for apart in (True, False):
    told, before = map_large_apart(apart), mapped()
    torch.ones({SIZE}, dtype=torch.uint8)
    print(told, mapped() - before >= {SIZE // 2})
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_of_its_own_goes_back_with_the_tensor() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", APART], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.splitlines() == [
        "False True",  # nothing is changed that was not set by us
        "True False",
        "True True",
    ]


ARROW = """
from hapi.allocator import keep_freed_memory
keep_freed_memory()
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.parametrize(("pool", "expected"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_arrow_takes_its_memory_from_there_unless_the_environment_names_another(
    pool: str | None, expected: str
) -> None:
    if pool is not None and pool not in pyarrow.supported_memory_backends():
        pytest.skip(f"this Arrow has no {pool}")
    ours = ("MALLOC_", "GLIBC_", "ARROW_DEFAULT_MEMORY_POOL")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    chosen = {} if pool is None else {"ARROW_DEFAULT_MEMORY_POOL": pool}
    command = [sys.executable, "-c", ARROW]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**clean, **chosen})
    assert done.stdout.strip() == expected
