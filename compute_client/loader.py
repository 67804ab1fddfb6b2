"""The data loader: PyTorch's arguments, finished backbone features."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn
from torch.utils.data import Sampler

from compute_client.backbone import Backbone
from compute_client.batches import Batch, collate
from compute_client.cache import DEFAULT_DISK_BYTES, CacheOptions
from compute_client.dataset import Dataset, resolve
from compute_client.execution import Execution
from compute_client.fallback import Where, readable
from compute_client.iterator import EpochRun, LoaderIterator
from compute_client.limits import Limits
from compute_client.order import EpochOrder, World
from compute_client.planning import AUTO, Workload
from compute_client.position import Position
from compute_client.stats import LoaderStats
from hapi.backoff import BUSY_SECONDS, QUICK
from hapi.data import Manifest
from hapi.engine import Choice, Precision
from hapi.errors import InputError
from hapi.machine import processors
from hapi.model import Graph
from hapi.plan import Link, Plan
from hapi.wire import Allowed
from hapi.wire.protocol import CodecName, CompressionName
from profiler.remote import ServerClient

DEFAULT_BUFFER_BYTES = 256 * 2**20
MAX_DEFAULT_THREADS = 8


class DataLoader:
    """Yields `(features, labels)` batches: features is `backbone(transform(image))`, whatever was computed where.

    The arguments of `torch.utils.data.DataLoader` keep their meaning, and batches come in its order: with
    `shuffle=True`, that of its consecutive passes with `generator=torch.Generator().manual_seed(seed)`, or with the
    `generator` that is given. `len()` is exact. Features are float tensors (n, *shape), labels int64 (n,), both on
    `device`; the label of a sample without one is -1. They are ordinary tensors without gradient history.

    Some 4096 samples, at least two batches, are drawn ahead of need, as PyTorch does for its workers: where a pass is
    left early, a `generator` or sampler of yours has drawn more than with `num_workers=0`.

    Args:
        data: path, `file://` or `s3://` address of a folder per class or of a list (CSV, JSONL, Parquet); a Manifest;
            or a torchvision ImageFolder. With a server, the address is read by the server.
        backbone: the frozen part: a module (run in eval mode, without gradients; it is not changed), a `hapi.Graph`, or
            a name such as `torchvision:resnet18` (without its classifier). What torch.compile, DataParallel or
            DistributedDataParallel put around a module, or a part of it, is looked through. Weights that are written to
            between epochs count from the next one on, on both tiers.
        transform: from RGB PIL image to the backbone's input. Default: that of the ImageFolder or of the named model.
        server: address of a storage server, or None to run everything in this process.
        pushdown: what the server computes. `auto` (measure, then the best mix of cuts), `none`, `all`, a policy (`mix`,
            `single`, `paper`, `paper-v1`), the name of a cut, or a Plan that profiler.plan() made. With `none`, any
            module and any callable transform do.
        token: for the server; default the environment's HAPI_TOKEN.
        num_workers: threads of this process that decode, when decoding happens here; 0 is one per processor, at most 8.
            Beside a GPU more than four have a process each do it, on Linux, if the transform is a portable one. Those
            are not PyTorch's: `persistent_workers`, `prefetch_factor` and `in_order` are accepted and have nothing to
            do; `worker_init_fn` and `multiprocessing_context` are refused.
        collate_fn: gets the list of (feature, label) of a batch, label as an int.
        pin_memory: copy what is yielded into page-locked memory, where it is not on a device already.
        timeout: seconds to wait for a batch, then BatchTimeoutError; 0 waits as long as the work goes on.
        seed: of the order, and of random transforms: those depend on (seed, epoch, index of the sample) only.
        codec: of features on the wire: `float32` (exact), `float16`, `bfloat16`, `int8`.
        codecs: instead of `codec`, those among which a measured plan may choose; without measuring, the first.
        compression: of features on the wire, lossless: `none`, `lz4`, `zstd`, `packed`, or `auto`: that of them which
            pays by measurement; without measuring, none.
        device: where the rest of the backbone runs; default where the module is, for other backbones a GPU if any.
        engine: how that rest runs here: "auto" (compiled in the background once it pays), "eager" (exact to the last
            bit), or "compiled" (from the start; the whole backbone too).
        precision: in which the backbone computes, here and on the server: "float32" or "bf16".
        on_error: what to do with a sample that cannot be read or decoded. `raise`: SampleError when its batch is
            reached. `skip`: leave it out, counted in `stats.failed_samples`; a batch that lost all samples is left out.
        epochs: how many are planned: the planner weighs start-up costs with it.
        requests_in_flight, buffer_bytes: how much is asked for at once, and how many bytes may be under way.
        retry_seconds: how long a server may be away before its error is raised, counted from its last answer.
        fallback: what to do when the server stays away for longer than that. False: its error is raised. True: the
            loader goes on without it for good: it reads the data itself and computes everything here, with the same
            features in the same order, which `plan.history` and `stats.fallback_samples` tell. An address instead of
            True: where the same files lie for this process. That they can be read here, and that their names and labels
            are the same, is checked at the beginning.
        busy_seconds: how long a server may go on answering that it is full without serving a sample here. It is waited
            for as it asks (Retry-After), with fewer requests in flight; what can never fit is an error at once.
        link: bandwidth and latency for the planner; default: measured.
        replan: let a measured plan (`auto`, `mix`, `single`) follow the rates of link and tiers while the job runs;
            `plan.history` tells what changed, and why. The features are the same at every cut. A Plan that was given
            stays, but which samples take which of its cuts depends on where there is room; with False it does not.
        rank, world_size: this process's share of every epoch; default: those of torch.distributed if it is
            initialised. All ranks have the same number of batches. A sampler of your own replaces this.
        weights: for a backbone given by name: `DEFAULT`, `none`, or a safetensors file.
        indices: read only these samples, as torch.utils.data.Subset does; `subset` makes several such loaders.
        cache_bytes: most bytes of finished features that are kept in memory, so that later epochs need neither storage
            nor network nor backbone; 0 keeps none. Default: 1 GiB, but at most a quarter of the free memory. They are
            kept when the transform is deterministic. What does not fit is computed in every epoch.
        cache_dir: a folder that keeps finished features as well, for this job and later ones, also of other processes;
            `disk_cache_bytes`: most bytes it takes.
        augment_views: keep a random transform's features too, K variants of each sample: epoch e then sees the variant
            that epoch e modulo K would draw, so augmentation repeats after K epochs. None draws anew in every epoch,
            and keeps nothing.

    Raises, before any sample is read: InputError and its kinds, ServerUnreachableError, UnauthorizedError,
    ForbiddenError, ObjectNotFoundError, AccessDeniedError.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Manifest | Any,
        *,
        backbone: nn.Module | Graph | str,
        transform: Callable[..., Any] | None = None,
        server: str | ServerClient | None = None,
        pushdown: str | Plan = AUTO,
        token: str | None = None,
        batch_size: int | None = 1,
        shuffle: bool | None = False,
        sampler: Sampler | Iterable | None = None,
        batch_sampler: Sampler | Iterable | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        seed: int = 0,
        codec: CodecName = "float32",
        codecs: Sequence[str] | None = None,
        compression: CompressionName | Literal["auto"] = "auto",
        device: str | torch.device | None = None,
        engine: Choice = "auto",
        precision: Precision = "float32",
        on_error: Literal["raise", "skip"] = "raise",
        epochs: int = 1,
        requests_in_flight: int = 6,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        retry_seconds: float = 120.0,
        fallback: Where = False,
        busy_seconds: float = BUSY_SECONDS,
        link: Link | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        replan: bool = True,
        weights: str | None = "DEFAULT",
        indices: Sequence[int] | None = None,
        cache_bytes: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        disk_cache_bytes: int = DEFAULT_DISK_BYTES,
        augment_views: int | None = None,
    ) -> None:
        if worker_init_fn is not None or multiprocessing_context is not None:
            raise InputError(
                "worker_init_fn and multiprocessing_context: HAPI reads with threads and has no worker processes. "
                "Leave them out."
            )
        if pin_memory_device:
            raise InputError("pin_memory_device: say device= instead; batches are yielded there.")
        if num_workers < 0 or timeout < 0 or epochs < 1 or not 0 <= seed < 2**63:
            raise InputError("num_workers, timeout and seed must not be negative, epochs at least 1.")
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error {on_error!r}: say 'raise' or 'skip'.")
        if (rank is None) != (world_size is None):
            raise InputError("rank and world_size belong together: give both or neither.")
        allowed = Allowed(tuple(codecs) if codecs is not None else (codec,), compression)
        world = None if rank is None or world_size is None else World(rank, world_size)
        first_contact = replace(QUICK, busy_seconds=busy_seconds)
        self._server = ServerClient(server, token, retry=first_contact) if isinstance(server, str) else server
        frozen = Backbone(backbone, weights=weights, device=device, engine=engine, precision=precision)
        self.dataset: Dataset
        self.dataset, own_transform = resolve(data, self._server)
        self._order = EpochOrder(
            len(self.dataset),
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=sampler,
            batch_sampler=batch_sampler,
            drop_last=drop_last,
            generator=generator,
            seed=seed,
            world=world,
            indices=indices,
        )
        self._execution = Execution(
            self.dataset,
            frozen,
            transform if transform is not None else own_transform,
            self._server,
            pushdown,
            seed=seed,
            allowed=allowed,
            workload=Workload(len(self.dataset), batch_size or 1, epochs),
            limits=Limits(
                num_workers or min(processors(), MAX_DEFAULT_THREADS),
                requests_in_flight,
                buffer_bytes,
                retry_seconds,
                busy_seconds,
            ),
            link=link,
            caching=CacheOptions(
                cache_bytes, None if cache_dir is None else Path(cache_dir), disk_cache_bytes, augment_views
            ),
            replan=replan,
            here=None if self._server is None or fallback is False else readable(data, fallback, self.dataset),
        )
        self.batch_size, self.drop_last, self.timeout = batch_size, drop_last, timeout
        self.num_workers, self.collate_fn, self.generator = num_workers, collate_fn, generator
        self.sampler, self.batch_sampler, self.seed = sampler, batch_sampler, seed
        self.device = frozen.device
        self.pin_memory = pin_memory and _can_pin()
        self._skip_errors = on_error == "skip"
        self._position = Position(self._order, self.dataset)

    def __iter__(self) -> LoaderIterator:
        """Starts the next epoch (or goes on within one, after load_state_dict)."""
        return self._start(self._make)

    def indexed(self) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """An epoch like any other, with each batch's indices in the dataset: (indices, features, labels).

        For backbones with one output; `collate_fn` and `pin_memory` have no part in it.
        """
        return self._start(lambda batch: (batch.indices, batch.features[0], batch.labels))

    def _start(self, make: Callable[[Batch], Any]) -> LoaderIterator:
        run = EpochRun(
            self._execution,
            self._order,
            self._position.begin(),
            make,
            timeout_seconds=self.timeout or None,
            skip_errors=self._skip_errors,
        )
        return LoaderIterator(run)

    def __len__(self) -> int:
        """Batches per epoch, on this rank."""
        return len(self._order)

    @property
    def plan(self) -> Plan:
        """What runs where, and why. Deciding may measure, at first use or when iteration begins.

        It may change while batches are drawn: `plan.history` has every change so far.
        """
        return self._execution.plan

    @property
    def stats(self) -> LoaderStats:
        """What happened so far, over all epochs."""
        return self._execution.stats

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, ...; empty without labels."""
        return self.dataset.classes

    @property
    def samples(self) -> int:
        """Samples of the dataset."""
        return self.dataset.samples

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features; InputError if the backbone has several outputs."""
        shapes = self._execution.feature_shapes
        if len(shapes) != 1:
            raise InputError(f"the backbone has {len(shapes)} outputs, of shapes {shapes}; there is no one shape.")
        return shapes[0]

    @property
    def model(self) -> str:
        """Name of the backbone."""
        return self._execution.model

    @property
    def transform(self) -> list[dict[str, Any]] | None:
        """The transform as data; None for a function that is not portable."""
        return self._execution.transform

    @property
    def is_deterministic(self) -> bool:
        """Whether a sample has the same features in every epoch: its transform is known, and not random."""
        return self._execution.is_deterministic

    def warm_up(self) -> None:
        """Does what the first iteration would do beforehand: plan, upload the model, place the backbone.

        Nothing of that if every feature is in the cache.
        """
        self._execution.warm_up()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is (epochs count by themselves otherwise); told to a sampler that asks."""
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """A JSON document of how far the current epoch was yielded; at its end, of the beginning of the next."""
        return self._position.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Lets the next iteration begin where `state_dict` was taken; InputError if that was another dataset."""
        self._position.load(state_dict)

    def subset(
        self, indices: Sequence[int], *, batch_size: int | None = 1, shuffle: bool = False, drop_last: bool = False
    ) -> Self:
        """Another loader over some of the samples, with the same backbone, server, plan and stats.

        Its order is that of a DataLoader over `torch.utils.data.Subset(dataset, indices)` with this loader's seed.
        """
        order = EpochOrder(
            len(self.dataset),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=self.seed,
            indices=indices,
        )
        other = copy.copy(self)
        other._order, other._position = order, Position(order, self.dataset)
        other.batch_size, other.drop_last = batch_size, drop_last
        other.sampler = other.batch_sampler = other.generator = None
        return other

    def close(self) -> None:
        """Gives connections back. Iterations that are under way end their own threads."""
        self._execution.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = self._server.url if self._server is not None else "in process"
        return f"DataLoader({self.dataset.uri!r}, {self.samples} samples, {where})"

    def _make(self, batch: Batch) -> Any:
        return collate(
            batch,
            collate_fn=self.collate_fn,
            batched=self._order.batched,
            device=self.device,
            pin_memory=self.pin_memory,
        )


def _can_pin() -> bool:
    if torch.accelerator.is_available():
        return True
    warnings.warn("pin_memory=True has no effect: torch finds no accelerator here", stacklevel=3)
    return False
