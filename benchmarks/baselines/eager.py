"""A network as a plain PyTorch script runs it: eagerly, in a process that leaves the C library's allocator as it is.

The commands of HAPI keep freed memory (`hapi.allocator`), which makes eager networks faster too. Run as a program, with
the name of the network, the batch, the repeats and the threads; prints the seconds of the fastest repeat.
"""

from __future__ import annotations

import subprocess
import sys

from hapi.errors import HapiError


class PlainRunError(HapiError):
    """The process ended without a time."""

    kind = "plain-run"


def seconds_of(model: str, batch: int, repeats: int, threads: int) -> float:
    """Of one batch in a process of its own; PlainRunError says what it said last."""
    words = [model, str(batch), str(repeats), str(threads)]
    run = subprocess.run([sys.executable, "-m", __name__, *words], capture_output=True, text=True, check=False)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["nothing"])[-1]
        raise PlainRunError(f"{model} in a process of its own: it ended with {run.returncode} and said: {last}")
    return float(run.stdout)


def main(model: str, batch: str, repeats: str, threads: str) -> None:
    import torch

    from benchmarks.scenarios.engine import best_of, load

    torch.set_num_threads(int(threads))
    network, images = load(model, int(batch))
    print(best_of(int(repeats), network, images)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
