"""Decoding and transforming samples here, on threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from compute_client.replanning.activity import Activity
from compute_client.source import Stage
from compute_client.stats import LoaderStats
from hapi.cancel import Cancel, CancelledWork
from hapi.data import TransformSpec, decode_image, load_sample
from hapi.data.decoding import Load
from hapi.data.images import Window
from hapi.errors import HapiError, SampleError, StoreError

Transform = TransformSpec | Callable[[Any], torch.Tensor]
"""A portable transform, or any function from an RGB PIL image to a tensor."""


class Decoder:
    """Turns stored bytes into the backbone's input tensors, (C, H, W) each, on `threads` threads of its own."""

    def __init__(
        self,
        transform: Transform,
        *,
        seed: int,
        threads: int,
        stats: LoaderStats,
        activity: Activity | None = None,
        load: Load = load_sample,
    ) -> None:
        """`activity` learns when this works; `load` decodes and transforms, if the transform is a portable one."""
        self._activity = activity or Activity()
        self._transform, self._seed, self._stats = transform, seed, stats
        self._load = load
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hapi-decode")

    def submit(
        self, read: Callable[[], bytes], index: int, epoch: int, cancel: Cancel, *, window: Window | None = None
    ) -> Future[torch.Tensor]:
        """Queues one sample: `read` gives its bytes, on the thread that decodes them; see `load_sample`."""
        return self._pool.submit(self._one, read, index, epoch, cancel, window)

    def collect(
        self, labels: np.ndarray, futures: Mapping[int, Future[torch.Tensor]], failed: Mapping[int, str]
    ) -> Stage:
        """Waits for the samples of a span, by row, and joins them. Errors of a sample are kept, others raised."""
        tensors: dict[int, torch.Tensor] = {}
        errors = dict(failed)
        for row, future in sorted(futures.items()):
            try:
                tensors[row] = future.result()
            except SampleError as error:
                errors[row] = str(error)
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        usual = max(shapes, key=shapes.count, default=())
        for row in [row for row, tensor in tensors.items() if tuple(tensor.shape) != usual]:
            errors[row] = (
                f"the transform made it {tuple(tensors.pop(row).shape)}, but others {usual}. "
                "Let the transform end with a crop or resize to one size."
            )
        rows = np.array(sorted(tensors), np.int64)
        stacked = (torch.stack([tensors[row] for row in rows]),) if tensors else ()
        return Stage(labels, rows, stacked, errors)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _one(
        self, read: Callable[[], bytes], index: int, epoch: int, cancel: Cancel, window: Window | None
    ) -> torch.Tensor:
        cancel.check()
        try:
            data = read()
        except StoreError as error:
            if type(error).exit_code == 2 or type(error) is StoreError:  # this object; not the whole store
                raise SampleError(str(error), index) from error
            raise
        started = time.perf_counter()
        try:
            with self._activity.working():
                return self._tensor(data, index, epoch, window)
        except (CancelledWork, MemoryError):
            raise
        except HapiError as error:
            raise SampleError(str(error), index) from error
        except Exception as error:
            raise SampleError(f"the transform failed with {type(error).__name__}: {error}.", index) from error
        finally:
            self._stats.add(decode_seconds=time.perf_counter() - started)

    def _tensor(self, data: bytes, index: int, epoch: int, window: Window | None) -> torch.Tensor:
        if isinstance(self._transform, TransformSpec):
            return self._load(data, self._transform, seed=self._seed, epoch=epoch, index=index, window=window)
        value = self._transform(decode_image(data, window=window))
        if not isinstance(value, torch.Tensor):
            raise SampleError(
                f"the transform gave a {type(value).__name__}, not a tensor. End it with ToTensor() or v2.ToDtype(...)."
            )
        return value
