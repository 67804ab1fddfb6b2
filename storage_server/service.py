"""The storage server without HTTP: what it holds, and what it does for a tenant. Methods block; threads call them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import hapi
from hapi.cancel import Cancel
from hapi.data import Manifest, TransformSpec, open_store
from hapi.errors import InputError
from hapi.files import write_whole
from hapi.plan import INPUT, OUTPUT
from hapi.settings import StoreSettings
from hapi.wire.protocol import DatasetSummary, ExtractRequest, ProfileRequest, ServerStatus
from profiler import TierProfile, measure, measure_loading
from profiler.measuring import CPU_BATCH, DEVICE_BATCH
from storage_server.access.auth import Tenant, check_binding, load_tokens
from storage_server.access.roots import Roots
from storage_server.admission import Admission
from storage_server.extraction.batching import BatchSizer
from storage_server.extraction.executor import DeviceExecutor
from storage_server.extraction.loading import SampleLoader, Source
from storage_server.extraction.pipeline import Extraction, Job, Stages
from storage_server.library.archives import ArchiveStore
from storage_server.library.datasets import DatasetStore
from storage_server.library.models import ModelStore
from storage_server.memory.budget import MemoryBudget, QueueBudget
from storage_server.metrics import Metrics
from storage_server.settings import ServerSettings

log = logging.getLogger(__name__)

PROFILE_SECONDS = 10.0
"""A profile holds the device for about so long; other requests wait meanwhile."""


class Service:
    """One server's state: tenants, models, datasets, memory, threads."""

    def __init__(self, settings: ServerSettings, store_settings: StoreSettings | None = None) -> None:
        """Checks the settings (InputError) and starts the threads; `close` ends them."""
        store_settings = store_settings or StoreSettings.load()
        readers = max(store_settings.readers, settings.read_threads)
        self.store_settings = store_settings.model_copy(update={"readers": readers})
        self.settings = settings
        follow = self.store_settings.follow_links
        self.roots = Roots(settings.roots, follow_links=follow)
        self.tokens = load_tokens(settings.tokens, self.roots, follow_links=follow)
        check_binding(settings.host, self.tokens)
        check_device(settings.device)
        self.metrics = Metrics()
        self.budget = MemoryBudget(settings.device, settings.memory_budget, settings.queue_bytes)
        self.metrics.budget_bytes.set(self.budget.total_bytes)
        self.queue = QueueBudget(self.budget.queue_bytes)
        self.admission = Admission(settings.max_requests, settings.max_waiting, self.metrics)
        check_folder(settings.cache_dir)
        self.datasets = DatasetStore(settings.cache_dir / "datasets", self.store_settings)
        archives = ArchiveStore(settings.cache_dir / "models", settings.max_model_bytes, settings.max_cache_bytes)
        self.models = ModelStore(archives, self.budget, settings.device, self.metrics)
        self.sizer = BatchSizer(self.budget, settings.batch_limit)
        self.device = DeviceExecutor(settings.device, settings.threads)
        self.loader = SampleLoader(settings.read_threads, settings.workers, self.metrics)
        self._stages = Stages(self.loader, self.device, self.sizer, self.metrics, self.queue, settings.frame_bytes)

    def check_roots(self) -> None:
        """Looks into every root once: a store's error says what is wrong with the first that cannot be listed."""
        for uri in self.roots.uris:
            store = open_store(uri, self.store_settings)
            try:
                next(iter(store.list()), None)
            finally:
                store.close()

    def register(self, uri: str, tenant: Tenant, refresh: bool = False) -> DatasetSummary:
        """Lists a dataset, or finds its kept manifest, and answers its summary."""
        return summary(self.datasets.register(uri, tenant, refresh))

    def extract(self, request: ExtractRequest, tenant: Tenant, cancel: Cancel) -> Generator[bytes, None, None]:
        """The answer to an extract request, piece by piece: an Arrow IPC stream.

        What is wrong with the request is raised before the first piece. Closing the generator frees everything.
        """
        manifest = self.datasets.manifest(request.dataset, tenant)
        highest = max(request.indices)
        if highest >= len(manifest):
            raise InputError(f"sample {highest} was asked for; {manifest.uri} has {len(manifest)}, numbered from 0.")
        with ExitStack() as stack:
            prefix, transform = None, None
            if request.cut != INPUT:
                assert request.model is not None  # the request's own validation
                transform = TransformSpec.from_json(list(request.transform or ()))
                prefix = stack.enter_context(self.models.lease(request.model)).prefix(request.cut)
                self.sizer.admit(prefix)
            source = Source(manifest, self.datasets.store(manifest), transform, request.seed, request.epoch)
            job = Job(source, request.indices, prefix, request.codec, request.compression)
            extraction = Extraction(job, self._stages, cancel)
            yield from stack.enter_context(contextlib.closing(extraction.chunks()))

    def profile(self, request: ProfileRequest, tenant: Tenant, cancel: Cancel) -> TierProfile:
        """Measures a model on this server's device, and reading and decoding samples of a dataset."""
        manifest = self.datasets.manifest(request.dataset, tenant)
        transform = TransformSpec.from_json(list(request.transform))
        with self.models.lease(request.model) as lease:
            whole = lease.prefix(OUTPUT)
            self.sizer.admit(whole)
            threads = max(self.settings.read_threads, self.settings.workers)
            store = self.datasets.store(manifest)
            load = measure_loading(store, manifest, transform, samples=request.samples, workers=threads)
            device = self.settings.device
            batch = min(self.sizer.size(whole), CPU_BATCH if device == "cpu" else DEVICE_BATCH)
            return self.device.call(
                lambda: measure(
                    lease.graph,
                    device=device,
                    batch_size=batch,
                    limit_seconds=PROFILE_SECONDS,
                    load_seconds=load.load_seconds,
                    read_seconds=load.read_seconds,
                    decode_seconds=load.decode_seconds,
                    input_bytes=load.input_bytes,
                ),
                cancel,
            )

    def status(self, tenant: Tenant) -> ServerStatus:
        """What the server is doing, and what this tenant may read."""
        return ServerStatus(
            version=hapi.__version__,
            device=self.settings.device,
            budget_bytes=self.budget.total_bytes,
            used_bytes=self.budget.weight_bytes + self.queue.used_bytes,
            requests_active=self.admission.running,
            requests_queued=self.admission.waiting,
            samples_done=self.metrics.samples_done,
            models=self.models.loaded(),
            roots=list(tenant.roots.uris),
            draining=self.admission.draining,
        )

    def render_metrics(self) -> bytes:
        """The metrics as Prometheus reads them, gauges as they are now."""
        self.metrics.queue_depth.set(self.device.depth)
        self.metrics.queued_bytes.set(self.queue.used_bytes)
        return self.metrics.render()

    def close(self) -> None:
        """Ends the threads and closes connections; requests must have ended before."""
        self.loader.close()
        self.device.close()
        self.datasets.close()


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


def summary(manifest: Manifest) -> DatasetSummary:
    """A manifest without its samples."""
    return DatasetSummary(
        digest=manifest.digest,
        uri=manifest.uri,
        samples=len(manifest),
        bytes=manifest.total_bytes,
        classes=list(manifest.classes),
        labelled=manifest.labels is not None,
        order_digest=manifest.order_digest,
    )
