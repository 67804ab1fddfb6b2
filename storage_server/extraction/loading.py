"""From stored bytes to input tensors: reading and decoding, each on its own threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hapi.cancel import CancelledWork
from hapi.data import Manifest, ObjectStore, TransformSpec, load_sample, read_sample
from hapi.data.decoding import Fetched, Load, Processes
from hapi.data.images import Window, picture_bytes
from hapi.data.stores import described
from hapi.data.trimming import trim
from hapi.errors import HapiError, InputError, StoreUnavailableError
from storage_server.extraction.engine import Prefix
from storage_server.extraction.patience import Patience
from storage_server.extraction.threads import WorkerThreads
from storage_server.memory.pictures import ORDINARY_BYTES, LargePictures
from storage_server.metrics import Metrics
from storage_server.scheduling.occupancy import Occupancy

log = logging.getLogger(__name__)

Wanted = Callable[[], bool]
MOST_TOGETHER, TOGETHER_BYTES = 8, 8 * 2**20
"""Samples that a process fetches at once, and bytes of their tensors, unless one alone has more: each keeps as much."""
TURNS = 2
"""Of what waits, for each process that fetches."""


@dataclass(frozen=True)
class Source:
    """Where the samples of one request come from, and what is made of them; no transform: bytes as they are stored.

    Where stored objects are wanted, a transform says that of pictures only the part is that it reads."""

    manifest: Manifest
    store: ObjectStore
    transform: TransformSpec | None = None
    seed: int = 0
    epoch: int = 0


class SampleTrouble(Exception):
    """One sample that cannot be had; it says why. The others of its request go on."""


class SampleLoader:
    """Threads that read and threads that decode, shared by all requests. Requests bound what they ask for."""

    def __init__(
        self,
        read_threads: int,
        workers: int,
        metrics: Metrics,
        patience: Patience,
        large_bytes: int,
        occupancy: Occupancy | None = None,
        lay_ready: Callable[[torch.Tensor], torch.Tensor] = lambda sample: sample,
        load: Load = load_sample,
    ) -> None:
        """Large pictures take `large_bytes` together while they are decoded, unless one alone takes more.

        `occupancy` is to learn of decoding; `lay_ready` puts a sample where the device gets it easily; `load` decodes
        it, here or in processes.
        """
        self.load = load
        self._lay_ready = lay_ready
        self.occupancy = occupancy or Occupancy()
        self._metrics = metrics
        self._patience = patience
        self._pictures = LargePictures(large_bytes)
        self.readers = WorkerThreads(read_threads, "hapi-read")
        self.senders = WorkerThreads(read_threads, "hapi-send")
        """Readers of what is sent as it is stored: it would keep the link waiting behind all that is to be decoded."""
        self.decoders = WorkerThreads(workers, "hapi-decode", _one_thread)

    @property
    def read_threads(self) -> int:
        return self.readers.count

    @property
    def decode_threads(self) -> int:
        return self.decoders.count

    @property
    def fetching_ahead(self) -> int:
        """Samples that keep all processes busy that fetch, if any do."""
        return TURNS * MOST_TOGETHER * self.decoders.count if isinstance(self.load, Processes) else 0

    def together(self, count: int, each: int) -> int:
        """So many of `count` samples that wait, of so many bytes each as tensors, are one process's to fetch at once:
        all are to end at the same time."""
        return max(1, min(MOST_TOGETHER, TOGETHER_BYTES // max(1, each), count // (TURNS * self.decoders.count)))

    def close(self) -> None:
        """Ends the threads; work that has not begun is dropped."""
        self.readers.close()
        self.senders.close()
        self.decoders.close()

    def read(self, source: Source, index: int, is_wanted: Wanted) -> bytes:
        """The stored bytes of a sample. SampleTrouble; StoreUnavailableError if the store is down."""
        sample = source.manifest.sample(index)
        try:
            with self._metrics.stage("read"):
                data = self._patience(
                    f"reading {sample.key}", lambda _: read_sample(source.store, sample), "read", is_wanted
                )
        except Exception as error:
            raise self._trouble(sample.key, "read", error) from None
        self._metrics.received_bytes.inc(len(data))
        return data

    def fetches(self, source: Source, prefix: Prefix) -> bool:
        """Whether there are processes that read such samples and decode them, several at once."""
        is_usual = prefix.input.dtype == torch.float32 and source.transform is not None
        has_processes = isinstance(self.load, Processes) and self.load.is_ready
        return is_usual and has_processes and described(source.store) is not None

    def fetch(self, source: Source, indices: Sequence[int], prefix: Prefix) -> list[Fetched | None]:
        """Samples by way of one process; None for those that are to be read and decoded here, see `Processes.fetch`."""
        store = described(source.store)
        assert isinstance(self.load, Processes)
        assert source.transform is not None
        assert store is not None
        fetched = self.load.fetch(
            store,
            list(zip(indices, source.manifest.samples(indices), strict=True)),
            source.transform,
            seed=source.seed,
            epoch=source.epoch,
            shape=prefix.input.shape,
            most_bytes=ORDINARY_BYTES,
            keep=self._copied_ready,
        )
        found = [one for one in fetched if one is not None]
        self._metrics.stage_seconds.labels("read").inc(sum(one.read_seconds for one in found))
        self._metrics.stage_seconds.labels("decode").inc(sum(one.decode_seconds for one in found))
        self._metrics.received_bytes.inc(sum(one.stored_bytes for one in found))
        self._metrics.not_fetched.inc(len(fetched) - len(found))
        return fetched

    def _copied_ready(self, samples: torch.Tensor) -> torch.Tensor:
        copied = self._lay_ready(samples)
        return samples.clone() if copied is samples else copied

    def decode(self, source: Source, index: int, data: bytes, prefix: Prefix, is_wanted: Wanted) -> torch.Tensor:
        """The input tensor of a sample. SampleTrouble; InputError if the transform is not the model's."""
        key, transform = source.manifest.sample(index).key, source.transform
        assert transform is not None

        def work(attempt: int) -> torch.Tensor:
            return self._lay_ready(self.load(data, transform, seed=source.seed, epoch=source.epoch, index=index))

        try:
            with self._metrics.stage("decode"):
                count = self._patience(f"decoding {key}", lambda _: picture_bytes(data), "decode", is_wanted)
                with self._pictures.decoding(count):
                    tensor = self._patience(f"decoding {key}", work, "decode", is_wanted)
        except Exception as error:
            raise self._trouble(key, "decode", error) from None
        if (tuple(tensor.shape), tensor.dtype) != (prefix.input.shape, prefix.input.dtype):
            raise InputError(
                f"the transform makes {tuple(tensor.shape)} {tensor.dtype} of {key}, but {prefix.model} takes "
                f"{prefix.input.shape} {prefix.input.dtype} per sample. Use the transform that belongs to the model."
            )
        return tensor

    def trim(self, source: Source, index: int, data: bytes, is_wanted: Wanted) -> tuple[bytes, Window | None]:
        """The part of a stored picture that the transform reads, and where it lies in it; see `hapi.data.trimming`."""
        key, transform = source.manifest.sample(index).key, source.transform
        assert transform is not None

        def work(attempt: int) -> tuple[bytes, Window | None]:
            return trim(data, transform, seed=source.seed, epoch=source.epoch, index=index)

        try:
            with self._metrics.stage("trim"):
                count = self._patience(f"trimming {key}", lambda _: picture_bytes(data), "trim", is_wanted)
                with self._pictures.decoding(count):
                    return self._patience(f"trimming {key}", work, "trim", is_wanted)
        except Exception as error:
            raise self._trouble(key, "trim", error) from None

    def _trouble(self, key: str, stage: str, error: Exception) -> Exception:
        """One sample that cannot be had fails alone; a store that is down ends the request."""
        if isinstance(error, StoreUnavailableError | CancelledWork):
            return error
        kind = error.kind if isinstance(error, HapiError) else "failed"
        self._metrics.stage_errors.labels(stage, kind).inc()
        if isinstance(error, HapiError):
            reason = str(error)
        else:
            log.error("sample %s could not be prepared", key, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        return SampleTrouble(reason if key in reason else f"{key}: {reason}")


def _one_thread() -> None:
    """Decoding is parallel over samples already; torch's own threads would only fight over the same cores."""
    torch.set_num_threads(1)
