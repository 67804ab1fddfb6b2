"""What others put around a module: torch.compile, DataParallel and DistributedDataParallel.

They change how a network runs, not what it computes. Whoever traces or copies a network looks through them, wherever in
it they are: what is inside is meant, with its own parameters.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hapi.errors import CaptureError

_changing = threading.RLock()
"""Held while wrappers are off: for another thread that looked at the same module, they would come back meanwhile."""
_COMPILED_CALL = "_compiled_call_impl"
"""Where `module.compile()` puts what is run in place of the module's own code."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of wrappers, however many; the module itself where there is none.

    What hangs on a wrapper itself, its hooks for one, is not part of what is inside.
    """
    while True:
        if isinstance(module, DataParallel | DistributedDataParallel):
            module = module.module
        elif isinstance(module, _known("torch._dynamo.eval_frame", "OptimizedModule")):
            module = module._orig_mod
        else:
            return module


@contextmanager
def bare(module: nn.Module) -> Iterator[nn.Module]:
    """The module inside of wrappers, with none left around any of its own while the block runs.

    Afterwards it is as it was. Raises CaptureError for a module whose parameters are divided among processes.
    """
    with ExitStack() as restoring:
        restoring.enter_context(_changing)
        module = unwrapped(module)
        is_changed = False
        for owner in list(module.modules()):
            for name, child in owner._modules.items():
                if child is not None and (inner := unwrapped(child)) is not child:
                    restoring.callback(owner._modules.__setitem__, name, child)
                    owner._modules[name] = inner
                    is_changed = True
            if (compiled := owner.__dict__.get(_COMPILED_CALL)) is not None:
                restoring.callback(owner.__dict__.__setitem__, _COMPILED_CALL, compiled)
                owner.__dict__[_COMPILED_CALL] = None
                is_changed = True
        _check_whole(module)
        if not is_changed:
            restoring.close()
        yield module


def is_averaging(module: nn.Module) -> bool:
    """Whether DistributedDataParallel averages the gradients of several processes somewhere in it."""
    return any(isinstance(part, DistributedDataParallel) and part.process_group.size() > 1 for part in module.modules())


def scripted(module: nn.Module) -> str | None:
    """Why no trace can follow a module, if it or a part of it is TorchScript; None if that is not so."""
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            what = f"its module {name!r} is TorchScript" if name else "it is TorchScript"
            return f"{what}, which cannot be followed; take the module that it was made from instead"
    return None


def _check_whole(module: nn.Module) -> None:
    sharded = _known("torch.distributed.fsdp", "FullyShardedDataParallel")
    divided = _known("torch.distributed.tensor", "DTensor")
    for name, part in module.named_modules():
        if isinstance(part, sharded) or any(isinstance(own, divided) for own in part.parameters(recurse=False)):
            where = f", in {name!r}," if name else ""
            raise CaptureError(
                f"{type(module).__name__}: its parameters{where} are divided among processes (FSDP, fully_shard or "
                "tensor parallelism), so that none has the whole network. Pass the network as it is before that; what "
                "is trained can be divided afterwards."
            )


def _known(module: str, name: str) -> Any:
    """A class of a part of PyTorch that costs time to import; where nobody did, nothing is an instance of it."""
    return getattr(sys.modules.get(module), name, ())
