"""A compiled program: a shared library that PyTorch's compiler made from a graph on this machine, and how to call it.

It is called through its C interface (`torch/csrc/inductor/aoti_runtime/interface.h`) because PyTorch's own binding
holds Python's lock for as long as a batch takes, during which no other thread of a server could run.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch

_GetPointer = ctypes.pythonapi.PyCapsule_GetPointer
_GetPointer.restype, _GetPointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_NewCapsule = ctypes.pythonapi.PyCapsule_New
_NewCapsule.restype, _NewCapsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class LibraryError(RuntimeError):
    """A compiled program could not be loaded or failed."""


class Library:
    """The library at `path`, loaded. Called with the program's inputs, on its device; gives the list of its outputs.

    It may be called from several threads; the calls follow each other. Its copy of the weights is freed with it.
    Loading runs code from the file: whoever loads it has made sure that nobody else could have written it (see
    `shelf`).
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        """LibraryError if it cannot be loaded."""
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise LibraryError(f"{path.name} cannot be loaded: {error}") from error
        self._device = device
        self._container = ctypes.c_void_p()
        self._call(
            "CreateWithDevice", ctypes.byref(self._container), ctypes.c_size_t(1), str(device).encode(),
            str(path.parent).encode(),
        )  # fmt: skip
        # At the end of the process it goes with everything else, while others may still be calling it.
        weakref.finalize(self, self._library.AOTInductorModelContainerDelete, self._container).atexit = False
        self._outputs = ctypes.c_size_t()
        self._call("GetNumOutputs", self._container, ctypes.byref(self._outputs))

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))  # the library takes them over
        given = (ctypes.c_void_p * len(handles))(*[_GetPointer(handle, None) for handle in handles])
        results = (ctypes.c_void_p * self._outputs.value)()
        stream = None
        if self._device.type == "cuda":
            stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        self._call("Run", self._container, given, ctypes.c_size_t(len(handles)), results, self._outputs, stream, None)
        return self._tensors(list(results))

    def _tensors(self, results: Sequence[int | None]) -> list[torch.Tensor]:
        return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(
            [_NewCapsule(pointer, None, None) for pointer in results]
        )

    def _call(self, name: str, *arguments: object) -> None:
        """Python's lock is released meanwhile."""
        if getattr(self._library, f"AOTInductorModelContainer{name}")(*arguments) != 0:
            raise LibraryError(f"the compiled program failed in {name}; the reason is on standard error")
