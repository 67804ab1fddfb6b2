"""How a loader's samples become features: the plan, the parts on either side of its cuts, and the source of samples."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from compute_client.backbone import Backbone
from compute_client.cache import CacheOptions, LoaderCache
from compute_client.dataset import Dataset
from compute_client.decode import Decoder, Transform
from compute_client.local import LocalSource
from compute_client.pipeline import Finished, Pipeline
from compute_client.planning import (
    AUTO,
    Workload,
    fixed_cut,
    fixed_plan,
    follows,
    measured_plan,
    policies,
    policy_of,
    unmeasured_plan,
)
from compute_client.remote import RemoteJob, RemoteSource, Restorer
from compute_client.replanning.activity import Activity
from compute_client.replanning.dealing import Dealing
from compute_client.replanning.observer import Observer
from compute_client.replanning.replanner import Replanner
from compute_client.source import SpanSource
from compute_client.spans import Dealer, SpanCutter, span_size
from compute_client.stats import LoaderStats
from compute_client.suffix import Compute, SuffixRunner
from compute_client.window import Window
from hapi.backoff import BUSY_SECONDS, RetryPolicy
from hapi.cache import FeatureKeys
from hapi.data import TransformSpec, describe_transform
from hapi.errors import (
    CaptureError,
    HapiError,
    InputError,
    ManifestError,
    MemoryBudgetError,
    TransformError,
    UnknownCutError,
    UnknownDatasetError,
)
from hapi.plan import INPUT, OUTPUT, Link, Plan, Profile
from hapi.wire import Allowed
from profiler.remote import ServerClient

log = logging.getLogger(__name__)

PROBE_SECONDS, MOST_PROBE_SECONDS, PROBE_BYTES, PROBE_STREAMS = 0.1, 1.0, 2**23, 2
"""Of looking at the link while a job runs: shorter than before its first plan, as spans wait meanwhile."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one loader: threads that decode, requests at once, bytes that are under way, patience with a server."""

    threads: int
    in_flight: int
    buffer_bytes: int
    retry_seconds: float
    busy_seconds: float = BUSY_SECONDS

    def __post_init__(self) -> None:
        if self.in_flight < 1 or self.buffer_bytes < 1 or min(self.retry_seconds, self.busy_seconds) < 0:
            raise InputError(
                "requests_in_flight and buffer_bytes must be at least 1, retry_seconds and busy_seconds not negative."
            )

    @property
    def retry(self) -> RetryPolicy:
        """Patience with a server, once it was reached."""
        return RetryPolicy(patience_seconds=self.retry_seconds, busy_seconds=self.busy_seconds)


class Execution:
    """Everything between sample indices and finished features. What can be checked is checked at construction."""

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        transform: Any,
        server: ServerClient | None,
        pushdown: str | Plan,
        *,
        seed: int,
        allowed: Allowed,
        workload: Workload,
        limits: Limits,
        link: Link | None,
        caching: CacheOptions,
        replan: bool = True,
    ) -> None:
        self.dataset, self.stats, self.activity = dataset, LoaderStats(), Activity()
        self._backbone, self._server, self._pushdown = backbone, server, pushdown
        self._seed, self._workload, self._limits, self._link = seed, workload, limits, link
        self._fixed = fixed_cut(pushdown, server is not None)
        self._note: str | None = None
        self._transform = self._portable(transform)
        if self._fixed not in (None, INPUT):
            self._fixed = self._named(str(self._fixed))
        digest = spec = None
        if self._fixed != INPUT:
            digest = backbone.graph(self._transform).digest
            assert isinstance(self._transform, TransformSpec)
            spec = self._transform.to_json()
        self._allowed = allowed
        self._job = RemoteJob(dataset.digest, digest, spec, seed, *allowed.default, precision=backbone.precision)
        self._lock = threading.RLock()
        self._plan = self._checked(pushdown) if isinstance(pushdown, Plan) else None
        self._parts: dict[str, Compute] | None = None
        self._replan = replan and follows(pushdown)
        self._replanner: Replanner | None = None
        self._observer: Observer | None = None
        self._restorer = Restorer(self._restore)
        self._window = Window(limits.in_flight)  # what a full server taught holds for the next epoch as well
        self.cache = self._open_cache(caching)

    @property
    def plan(self) -> Plan:
        """Decided at first use, which for a policy means measuring both tiers, unless everything is in the cache."""
        with self._lock:
            if self._plan is None and self._holds_all():
                return Plan(str(self._pushdown), (), None, None, ("every feature is in the cache",))
            return self._decided()

    @property
    def feature_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self._backbone.feature_shapes(self._transform)

    @property
    def model(self) -> str:
        return self._backbone.name

    @property
    def transform(self) -> list[dict[str, Any]] | None:
        return self._transform.to_json() if isinstance(self._transform, TransformSpec) else None

    @property
    def is_deterministic(self) -> bool:
        return isinstance(self._transform, TransformSpec) and not self._transform.is_random

    def cut_name(self, name: str) -> str:
        """The graph's own name for a cut; UnknownCutError lists those that are close."""
        return self._backbone.graph(self._transform).cut(name).name

    def _named(self, pushdown: str) -> str:
        """The cut that `pushdown` names, by its own name."""
        try:
            return self.cut_name(pushdown)
        except UnknownCutError as error:
            raise UnknownCutError(
                f"pushdown {pushdown!r} is no policy ({', '.join(policies())}), and {error}"
            ) from None

    def begin(self, epoch: int) -> int:
        """Called before an epoch; answers which variant of its random transforms the epoch sees."""
        if self.cache is None:
            return epoch
        self.cache.begin(self._backbone.version)
        return epoch % self.cache.views

    def cutter(self, epoch: int) -> SpanCutter:
        """Deals an epoch's samples to the cuts of the plan."""
        share = self._limits.buffer_bytes // (2 * self._limits.in_flight)
        plan = self._decided()
        sizes = {
            cut.name: span_size(
                self.dataset.samples,
                self._bytes_at(cut.name),
                limit_bytes=share,
                in_flight=self._limits.in_flight,
            )
            for cut in plan.cuts
        }
        return SpanCutter(Dealer(plan.cuts, sizes), epoch)

    def open(self) -> Pipeline:
        """Threads for one iteration."""
        parts = self.ready()
        run = SuffixRunner(parts, device=self._backbone.device, stats=self.stats, batch_size=self._workload.batch_size)

        def finish(cut: str, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            with self.activity.working():
                return run(cut, tensors)

        return Pipeline(
            self._source(),
            finish,
            lambda span: int(len(span) * self._bytes_at(span.cut)),
            in_flight=self._limits.in_flight,
            budget_bytes=self._limits.buffer_bytes,
            keep=self._finished,
            deal=Dealing(self._decided, self._reconsider, self._allowed.default) if self._replanner else None,
        )

    @property
    def device(self) -> torch.device:
        return self._backbone.device

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()
        if self._server is not None:
            self._server.close()

    def _portable(self, transform: Any) -> Transform:
        """The transform as data; only where nothing is pushed down may it be any function."""
        if transform is None:
            transform = self._backbone.transform
        if transform is None:
            raise InputError(
                "no transform: HAPI must know how pictures become the backbone's input. "
                "Pass transform=, for example weights.transforms()."
            )
        if isinstance(transform, TransformSpec):
            return transform
        try:
            return describe_transform(transform)
        except TransformError as error:
            if self._fixed != INPUT or not callable(transform):
                raise
            self._note = f"the transform runs here as it is, since it is not portable: {error}"
            return transform

    def _finished(self, finished: Finished) -> None:
        if self._observer is not None:
            span = finished.span
            self._observer.finished(span.cut, span.way, len(span))
        if self.cache is not None:
            self.cache.put(finished)

    def _reconsider(self) -> None:
        """Changes the plan if the rates have changed, and prepares what new cuts need."""
        if self._replanner is None:
            return
        try:
            plan = self._replanner.consider()
            if plan is not None:
                log.info("the plan has changed: %s", plan.history[-1])
                self._adopt(plan)
        except Exception:  # whatever it is, the job has a plan that works
            log.exception("the plan stays as it is from now on, since changing it failed")
            self._replanner = None

    def _adopt(self, plan: Plan) -> None:
        assert self._parts is not None
        for share in plan.cuts:
            if share.name not in self._parts:
                self._parts[share.name] = self._backbone.suffix(share.name, self._transform)
        with self._lock:
            self._plan = plan

    def _probe(self) -> float | None:
        """What the link gives beside what is under way, bits per second; None if the server has no time for that."""
        from profiler.link import probe_link

        assert self._server is not None
        try:
            return probe_link(
                self._server.link,
                seconds=PROBE_SECONDS,
                max_bytes=PROBE_BYTES,
                max_seconds=MOST_PROBE_SECONDS,
                streams=PROBE_STREAMS,
            ).bandwidth_bits_per_s
        except HapiError as error:
            log.info("the link could not be probed: %s", error)
            return None

    def _decided(self) -> Plan:
        with self._lock:
            if self._plan is None:
                self._plan = self._decide()
            return self._plan

    def _holds_all(self) -> bool:
        """Whether no epoch will compute anything. Cheap for a cache that holds nothing."""
        return self.cache is not None and self.cache.holds(range(self.dataset.samples), range(self.cache.views))

    def _open_cache(self, options: CacheOptions) -> LoaderCache | None:
        """None where features are not to be kept, or would not be the same in a later epoch."""
        if options.views is not None and not isinstance(self._transform, TransformSpec):
            raise InputError("augment_views needs a transform that is known to HAPI: build it of torchvision's v2.")
        views = 1 if self.is_deterministic else options.views
        if options.is_off or views is None:
            return None
        return LoaderCache(self.dataset, options, views=views, keys=partial(self._keys, views), stats=self.stats)

    def _kept_share(self) -> float:
        """Part of the samples that an epoch after the first finds in the cache, over all such epochs."""
        later = self._workload.epochs - 1
        if self.cache is None or later < 1:
            return 0.0
        row_bytes = sum(4 * math.prod(shape) for shape in self.feature_shapes)
        return self.cache.share(row_bytes) * max(0, self._workload.epochs - self.cache.views) / later

    def _keys(self, views: int) -> list[FeatureKeys]:
        """Names of the finished features on disk, per view; none for a backbone that cannot be named."""
        assert isinstance(self._transform, TransformSpec)
        try:
            digest = self._backbone.graph(self._transform).digest
        except CaptureError as error:
            log.warning("the cache directory is not used: its files are named by the captured network, and %s", error)
            return []
        exact = self._allowed.is_exact or self._fixed == INPUT
        return [
            FeatureKeys(
                self.dataset.listing,
                self._transform,
                seed=self._seed,
                epoch=view,
                model_digest=digest,
                cut=OUTPUT,
                precision=self._backbone.precision
                + ("" if exact else f", {'/'.join(self._allowed.codecs)} on the wire"),
            )
            for view in range(views)
        ]

    def _checked(self, plan: Plan) -> Plan:
        """A plan made elsewhere, with this graph's names of its cuts; UnknownCutError if it is of another model."""
        for share in plan.cuts:
            self._allowed.check(share.codec or self._job.codec)
        cuts = tuple(
            share if share.name == INPUT else replace(share, name=self.cut_name(share.name)) for share in plan.cuts
        )
        return replace(plan, cuts=cuts)

    def _decide(self) -> Plan:
        assert isinstance(self._pushdown, str)
        if self._fixed is not None:
            plan = fixed_plan(self._pushdown, self._fixed, has_server=self._server is not None)
        else:
            assert self._server is not None
            assert isinstance(self._transform, TransformSpec)
            self._upload()
            try:
                plan, profile = measured_plan(
                    self._pushdown,
                    self._server,
                    self._backbone,
                    self._transform,
                    self.dataset,
                    self._workload,
                    allowed=self._allowed,
                    link=self._link,
                    threads=self._limits.threads,
                    kept_share=self._kept_share(),
                )
                self._follow(plan, profile)
            except MemoryBudgetError as error:
                if self._pushdown != AUTO:  # who names a policy wants to know
                    raise
                plan = unmeasured_plan(f"nothing is pushed down, since the server cannot measure the network: {error}")
        return replace(plan, reasons=(*plan.reasons, self._note)) if self._note else plan

    def _follow(self, plan: Plan, profile: Profile) -> None:
        """Begins to watch the rates that a plan was made from."""
        if self._replan:
            self._observer = Observer(profile, self.activity)
            policy = policy_of(str(self._pushdown))
            self._replanner = Replanner(plan, profile, policy, self._observer, probe=self._probe)

    def warm_up(self) -> None:
        if self._parts is None and not self._holds_all():
            self.ready()

    def ready(self) -> dict[str, Compute]:
        """Plans, uploads and places what iterations need, once; per cut, what is left to compute here."""
        with self._lock:
            if self._parts is None:
                cuts = [share.name for share in self._decided().cuts]
                if self._job.model is not None:
                    self._upload()
                    self._parts = {cut: self._backbone.suffix(cut, self._transform) for cut in cuts}
                else:
                    self._parts = {INPUT: self._backbone.whole(self._transform)}
            return self._parts

    def _source(self) -> SpanSource:
        decoder = None
        if self._replanner is not None or any(share.name == INPUT for share in self._decided().cuts):
            decoder = Decoder(
                self._transform,
                seed=self._seed,
                threads=self._limits.threads,
                stats=self.stats,
                activity=self.activity,
            )
        if self._server is None:
            assert decoder is not None
            assert self.dataset.manifest is not None
            return LocalSource(self.dataset.open_store(), self.dataset.manifest, decoder, self.stats)
        return RemoteSource(
            self._server,
            self._job.planned(self.plan),
            retry=self._limits.retry,
            restorer=self._restorer,
            decoder=decoder,
            stats=self.stats,
            window=self._window,
            observer=self._observer,
        )

    def _bytes_at(self, cut: str) -> float:
        """Bytes in memory of one sample that is under way to a cut: as it arrives, and as a tensor."""
        if cut == INPUT:
            return self.dataset.input_bytes + self._backbone.input_bytes(self._transform)
        return 2.0 * self._backbone.graph(self._transform).cut(cut).bytes_per_sample

    def _upload(self) -> None:
        """Sends the model unless the server holds it."""
        assert self._server is not None
        self._server.ensure_model(self._backbone.graph(self._transform))

    def _restore(self, error: HapiError) -> None:
        assert self._server is not None
        if not isinstance(error, UnknownDatasetError):
            self._upload()
            return
        summary = self._server.register(self.dataset.uri)
        if summary.digest != self.dataset.digest:
            raise ManifestError(
                f"{self.dataset.uri}: the files there changed while they were read ({self.dataset.samples} samples "
                f"before, {summary.samples} now). Start again with a new loader."
            )
