"""The storage server without HTTP: what it holds, and what it does for a tenant. Methods block; threads call them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import psutil
import torch

import hapi
from hapi.cache import FeatureKeys
from hapi.cancel import Cancel
from hapi.data import Manifest, TransformSpec, open_store
from hapi.engine import Compiler, Engine, Precision, check_precision
from hapi.errors import BusyError, InputError, MemoryBudgetError
from hapi.machine import free_bytes, machine_name
from hapi.plan import INPUT, OUTPUT, TRIMMED
from hapi.settings import StoreSettings
from hapi.wire.protocol import DatasetSummary, ExtractRequest, ProfileRequest, ServerStatus
from profiler import TierProfile, measure, measure_loading, with_loading
from profiler.compiled import with_compiled
from profiler.loading import DEFAULT_SAMPLES, spread
from profiler.measurements import Measurements
from profiler.measuring import CPU_BATCH, DEVICE_BATCH, measured_with
from storage_server.access.auth import Tenant, check_binding, load_tokens
from storage_server.access.roots import Roots
from storage_server.checks import check_device, check_folder
from storage_server.extraction.engine import Prefix, prefix_key
from storage_server.extraction.fitting import check_fits, with_remedy
from storage_server.extraction.loading import Source
from storage_server.extraction.pipeline import Extraction, Job
from storage_server.extraction.rehearsal import Rehearsals
from storage_server.extraction.sizing import BatchPolicy, KneePolicy
from storage_server.extraction.stages import Stages
from storage_server.extraction.trial import answer_seconds, as_run, beyond, in_jobs, seconds_per_sample
from storage_server.features.opening import open_features
from storage_server.features.served import ServedCuts
from storage_server.features.starts import Start, starts_of
from storage_server.features.telling import cache_status, count_kept
from storage_server.library.archives import ArchiveStore
from storage_server.library.datasets import DatasetStore
from storage_server.library.models import Lease, ModelStore
from storage_server.memory.budget import MemoryBudget
from storage_server.memory.idle import IdleRelease
from storage_server.memory.lately import Lately
from storage_server.memory.workspaces import Workspaces
from storage_server.metrics import Metrics
from storage_server.reporting import SHOWN_DIGITS, Report, StatusCollector
from storage_server.scheduling.admission import Admission
from storage_server.scheduling.holding import QueueBytes
from storage_server.scheduling.rates import Rates
from storage_server.scheduling.remembered import Remembered
from storage_server.settings import ServerSettings

log = logging.getLogger(__name__)

PROFILE_SECONDS = 1.5
"""A profile holds the device for about so long; other requests wait meanwhile, and the job that asked for it."""
TRANSFORMS = 64
"""That are remembered, of those that requests named last."""
CACHE_BYTES = 256 * 2**20
"""Most bytes of finished features that are kept, unless the settings say otherwise."""


class Service:
    """One server's state: tenants, models, datasets, memory, threads."""

    def __init__(
        self,
        settings: ServerSettings,
        store_settings: StoreSettings | None = None,
        *,
        policy: BatchPolicy | None = None,
        budget: MemoryBudget | None = None,
        rates: Rates | None = None,
    ) -> None:
        """Checks the settings (InputError) and starts the threads; `close` ends them.

        `policy` decides batch sizes instead of our own (storage_server.extraction.sizing), to compare with;
        `budget` takes the place of the one that watches this machine, `rates` of those that are measured.
        """
        store_settings = store_settings or StoreSettings.load()
        readers = max(store_settings.readers, 2 * settings.read_threads)  # those that decode, and those that send
        self.store_settings = store_settings.model_copy(update={"readers": readers})
        self.settings = settings
        follow = self.store_settings.follow_links
        self.roots = Roots(settings.roots, follow_links=follow)
        self.tokens = load_tokens(settings.tokens, self.roots, follow_links=follow)
        check_binding(settings.host, self.tokens)
        check_device(settings.device)
        check_precision(settings.precision, settings.device)
        self.metrics = Metrics()
        kept_bytes = CACHE_BYTES if settings.feature_cache_bytes is None else settings.feature_cache_bytes
        buffers = settings.queue_limit + kept_bytes
        free = Lately(free_bytes)
        self.budget = budget or MemoryBudget(settings.device, settings.memory_budget, buffers, free)
        self.metrics.budget_bytes.set(self.budget.total_bytes)
        self.queue = QueueBytes(self.budget.queue_bytes * settings.queue_limit // buffers)
        check_folder(settings.cache_dir)
        kept_here = self.budget.queue_bytes - self.queue.total_bytes
        self.kept = open_features(settings, kept_here, self.store_settings, self.roots)
        self.remembered = Remembered(settings.cache_dir / "learned.json")
        self._served = ServedCuts(self.remembered)
        self._measurements = Measurements(settings.cache_dir / "measurements")
        self.datasets = DatasetStore(settings.cache_dir / "datasets", self.store_settings)
        archives = ArchiveStore(settings.cache_dir / "models", settings.max_model_bytes, settings.max_cache_bytes)
        budget = self.budget
        self.workspaces = Workspaces(
            settings.device, self.remembered, is_short=budget.is_short, room=budget.batch_bytes
        )
        self.compiler = Compiler(settings.cache_dir / "compiled") if settings.engine != "eager" else None
        engines = partial(Engine, choice=settings.engine, compiler=self.compiler)
        self.models = ModelStore(archives, self.budget, settings.device, self.metrics, self.workspaces, engines)
        self.policy = policy or KneePolicy(self.budget, settings.batch_limit, self.remembered)
        stages = Stages.start(settings, self.policy, self.queue, self.kept, self.metrics, self.workspaces, rates)
        self._stages = stages
        self.device, self.loader, self.flights, self.board = stages.device, stages.loader, stages.flights, stages.board
        self._rehearsals = Rehearsals(self.device, stages.rates, self.remembered, self.workspaces)
        self.admission = Admission(
            settings.max_requests,
            settings.max_waiting,
            self.metrics,
            stages.backlog_seconds,
            is_shared=not self.tokens.is_open,
        )
        self.idle = IdleRelease(lambda: not self.admission.running, settings.device)
        self.idle.start()
        self.report = Report(self.board, self.admission, self.queue, self.device.waiting)
        names_tenants = self.tokens.is_open or self.tokens.metrics_digest is not None
        self.metrics.registry.register(StatusCollector(self.report, with_tenants=names_tenants))

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
        source_of = partial(Source, manifest, self.datasets.store(manifest), seed=request.seed, epoch=request.epoch)
        is_trimmed = request.compression == TRIMMED
        transform = _transform(json.dumps(request.transform)) if is_trimmed or request.cut != INPUT else None
        if request.cut == INPUT:
            job = Job(source_of(transform), request.indices, None, compression=request.compression, flow=tenant.flow)
            yield from self._run(job, cancel)
            return
        assert request.model is not None  # the request's own validation
        assert transform is not None
        precision = self._precision(request.precision)
        with self.device.asking(tenant.flow) as let_in, self.models.lease(request.model, cancel) as lease:
            prefix = self._fitting(lease, request.cut, precision)
            self._stages.rates.introduce(prefix)
            keys_of = partial(
                FeatureKeys,
                manifest,
                transform,
                seed=request.seed,
                epoch=request.epoch,
                model_digest=request.model,
                precision=precision,
            )
            keys, starts = keys_of(cut=prefix.cut.name), self._starts(lease, request.model, prefix, keys_of)
            source = source_of(transform)
            job = Job(source, request.indices, prefix, request.codec, request.compression, tenant.flow, keys, starts)
            yield from self._run(job, cancel, let_in)

    def _run(
        self, job: Job, cancel: Cancel, let_in: Callable[[], object] = lambda: None
    ) -> Generator[bytes, None, None]:
        with contextlib.closing(Extraction(job, self._stages, cancel, let_in).chunks()) as chunks:
            yield from chunks

    def _starts(
        self, lease: Lease, digest: str, prefix: Prefix, keys_of: Callable[..., FeatureKeys]
    ) -> tuple[Start, ...]:
        """Shallower cuts that were served, which features of this prefix may begin at."""
        served = self._served.of(digest)
        self._served.note(digest, prefix.cut.name)
        starts = starts_of(lease, prefix, served, lambda cut: keys_of(cut=cut), self.queue.total_bytes)
        for start in starts:
            self._stages.rates.introduce(start.part)
        return starts

    def _precision(self, asked: Precision | None) -> Precision:
        """What a request is computed in; InputError where this server's device does not have it."""
        if asked is not None:
            check_precision(asked, self.settings.device)
        return asked or self.settings.precision

    def _fitting(self, lease: Lease, cut: str, precision: Precision) -> Prefix:
        """The prefix, if it can ever be computed here: MemoryBudgetError says what could. BusyError: not now."""
        try:
            prefix = lease.prefix(cut, precision)
            check_fits(prefix, self.budget, self.queue.total_bytes)
        except MemoryBudgetError as error:
            raise with_remedy(error, lease.graph, self.budget, self.queue.total_bytes) from None
        except BusyError as error:
            raise BusyError(str(error), self.admission.retry_seconds) from None
        return prefix

    def predicted_seconds(self, request: ExtractRequest) -> float:
        """How long the server will work on a request; a guess for prefixes that it does not know."""
        key = None
        if request.model is not None and request.cut != INPUT:
            key = prefix_key(request.model, request.cut, request.precision or self.settings.precision)
        return len(request.indices) * self._stages.sample_seconds(key)

    def profile(self, request: ProfileRequest, tenant: Tenant, cancel: Cancel) -> TierProfile:
        """Measures a model on this server's device, and reading and decoding samples of a dataset.

        The model's part is remembered; reading and decoding are measured each time. A model that does not fit whole is
        measured to its deepest cut that does; MemoryBudgetError if there is none. Loading is as small requests show it.
        """
        manifest = self.datasets.manifest(request.dataset, tenant)
        transform = TransformSpec.from_json(list(request.transform))
        precision = self._precision(request.precision)
        with self.models.lease(request.model, cancel) as lease:
            prefix = self._deepest(lease, precision)
            threads = max(self.settings.read_threads, self.settings.workers)
            store = self.datasets.store(manifest)
            load = measure_loading(
                store, manifest, transform, samples=request.samples, workers=threads, load=self.loader.load
            )
            device = self.settings.device
            fits = prefix.memory.largest_batch(self.budget.batch_bytes() + prefix.memory.weight_bytes)
            usual = min(self.settings.batch_limit, CPU_BATCH if device == "cpu" else DEVICE_BATCH)
            batch = max(1, min(usual, fits))
            last = None if prefix.cut.name == OUTPUT else prefix.cut.name

            how: dict[str, Any] = {"engine": self.settings.engine, "precision": precision}

            def measured() -> TierProfile:
                work = partial(measure, lease.graph, device=device, batch_size=batch, last=last, **how)
                return self.device.call(partial(work, limit_seconds=PROFILE_SECONDS), cancel, tenant.flow)

            key = measured_with(request.model, device, self.settings.threads)
            tier, is_known = self._measurements.get(
                {**key, **how, "last": last or OUTPUT, "batch": batch},
                measured,
                to_json=TierProfile.to_json,
                from_json=TierProfile.from_json,
                refresh=request.refresh,
            )
            if self.compiler is not None:
                threads = self.settings.threads or torch.get_num_threads()
                timed = partial(self._rehearsed, lease, precision, fits, cancel, tenant)
                tier = with_compiled(tier, lease.graph, self.compiler, precision, threads, timed)
            samples = min(request.samples, DEFAULT_SAMPLES)
            tried = partial(self._tried, lease, precision, manifest, transform, samples, cancel, tenant)
            load = as_run(load, tier, tried)

            data = {"dataset": request.dataset, "transform": list(request.transform), "samples": samples}
            data |= {"reading": self.settings.read_threads, "workers": self.settings.workers}
            more, _ = self._measurements.get(
                {**key, **how, **data, "what": "requests", "last": last or OUTPUT, "batch": batch},
                partial(beyond, tier, load.load_seconds, samples, tried),
                to_json=dict,
                from_json=lambda found: {str(cut): float(seconds) for cut, seconds in found.items()},
                refresh=request.refresh,
            )
            tier = in_jobs(tier, more)
        return replace(with_loading(tier, load), details={**tier.details, "remembered": is_known})

    def _rehearsed(
        self, lease: Lease, precision: Precision, most: int, cancel: Cancel, tenant: Tenant, cut: str
    ) -> float | None:
        """Seconds per sample of a prefix that lies compiled, and is ready for jobs then; None if it cannot be run."""
        try:
            prefix = self._fitting(lease, cut, precision)
        except MemoryBudgetError:  # deeper than what fits here
            return None
        return self._rehearsals.seconds(prefix, min(most, self.settings.batch_limit), cancel, tenant.flow)

    def _tried(
        self,
        lease: Lease,
        precision: Precision,
        manifest: Manifest,
        transform: TransformSpec,
        samples: int,
        cancel: Cancel,
        tenant: Tenant,
        cut: str,
    ) -> float | None:
        """Seconds per sample of requests that are run here; None for a prefix that there is no memory for."""
        try:
            part = None if cut == INPUT else self._fitting(lease, cut, precision)
        except MemoryBudgetError:  # an early cut may take more in the queues than the deepest
            return None
        source = Source(manifest, self.datasets.store(manifest), None if part is None else transform)

        def whole(count: int) -> float:
            own, job = Cancel(), Job(source, spread(len(manifest), count), part, flow=tenant.flow)
            with cancel.calling(partial(own.set, "the profile is not wanted any more")):
                return answer_seconds(self._run(job, own))  # a request ends with a cancel of its own

        return seconds_per_sample(whole, min(samples, len(manifest)))

    def _deepest(self, lease: Lease, precision: Precision) -> Prefix:
        """The whole model, or as much of it as fits here."""
        try:
            return self._fitting(lease, OUTPUT, precision)
        except MemoryBudgetError as error:
            if error.fits is None:
                raise
            return self._fitting(lease, error.fits, precision)

    def status(self, tenant: Tenant) -> ServerStatus:
        """What the server is doing, and what this tenant may read.

        Whoever knows a model's digest may use it: only an operator is shown those of all tenants whole.
        """
        models, prefixes = self.models.loaded(), self.report.prefixes()
        if not tenant.is_operator:
            models = [digest[:SHOWN_DIGITS] for digest in models]
            prefixes = [one.model_copy(update={"model": one.model[:SHOWN_DIGITS]}) for one in prefixes]
        return ServerStatus(
            version=hapi.__version__,
            device=self.settings.device,
            precision=self.settings.precision,
            budget_bytes=self.budget.total_bytes,
            used_bytes=self.budget.weight_bytes + self.queue.used_bytes + self.kept.nbytes,
            requests_active=self.admission.running,
            requests_queued=self.admission.waiting,
            samples_done=self.metrics.samples_done,
            models=models,
            roots=list(tenant.roots.uris),
            draining=self.admission.draining,
            backlog_seconds=self.admission.backlog_seconds,
            queue_bytes=self.queue.total_bytes,
            rss_bytes=psutil.Process().memory_info().rss,
            machine=machine_name(),
            prefixes=prefixes,
            tenants=self.report.tenants(None if tenant.is_operator else tenant.name),
            cache=cache_status(self.kept, self.metrics),
        )

    def render_metrics(self) -> bytes:
        """The metrics as Prometheus reads them, gauges as they are now."""
        self.metrics.budget_bytes.set(self.budget.total_bytes)
        self.metrics.queue_depth.set(self.device.depth)
        self.metrics.queued_bytes.set(self.queue.used_bytes)
        count_kept(self.kept, self.metrics)
        self.metrics.memory_releases.set(self.workspaces.releases)
        self.metrics.backlog_seconds.set(self.admission.backlog_seconds)
        return self.metrics.render()

    def close(self) -> None:
        """Ends the threads and closes connections; requests must have ended before."""
        self.idle.close()
        self._stages.close()
        self.kept.close()
        if self.compiler is not None:
            self.compiler.close()
        self.datasets.close()
        self.remembered.save()


@lru_cache(TRANSFORMS)
def _transform(text: str) -> TransformSpec:
    """Reads its JSON, once for all requests that have the same; TransformError."""
    return TransformSpec.from_json(json.loads(text))


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
