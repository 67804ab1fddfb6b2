"""How a loader's samples become features: the plan, the parts on either side of its cuts, and the source of samples."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from compute_client.backbone import Backbone
from compute_client.cache import CacheOptions
from compute_client.dataset import Dataset
from compute_client.decision import Decision
from compute_client.decode import Decoder, Transform
from compute_client.fallback import Fallback
from compute_client.keeping import feature_keys, kept_share, open_cache
from compute_client.limits import Limits
from compute_client.local import LocalSource
from compute_client.pipeline import Finished, Pipeline
from compute_client.planning import (
    AUTO,
    Workload,
    computed_seconds,
    fixed_cut,
    fixed_plan,
    follows,
    measured_plan,
    policies,
    unmeasured_plan,
)
from compute_client.remote import RemoteJob, RemoteSource
from compute_client.replanning.activity import Activity
from compute_client.restoring import Restorer, Teacher
from compute_client.source import SpanSource
from compute_client.spans import Dealer, SpanCutter, span_size
from compute_client.stats import LoaderStats
from compute_client.suffix import Compute, SuffixRunner
from compute_client.window import Window
from hapi.cache import FeatureKeys
from hapi.data import TransformSpec, describe_transform
from hapi.data.decoding import loader_for
from hapi.errors import InputError, MemoryBudgetError, TransformError, UnknownCutError
from hapi.plan import INPUT, TRIMMED, Link, Plan
from hapi.wire import Allowed
from profiler.remote import ServerClient

MOST_TOGETHER = 64
"""Samples of spans that are finished at once, and at most a training batch, as memory has room for that. By a plan that
does not change no two are: the same samples are then always computed together, and give the same to the last bit."""


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
        here: Dataset | None = None,
    ) -> None:
        """`here` is the dataset as this process reads it, if it shall go on without a server that is gone."""
        self.dataset, self.stats, self.activity = dataset, LoaderStats(), Activity()
        self._backbone, self._server, self._pushdown = backbone, server, pushdown
        self._version = backbone.version
        self._seed, self._workload, self._limits, self._link = seed, workload, limits, link
        self._fixed = fixed_cut(pushdown, server is not None)
        self._note: str | None = None
        self._kept_share = 0.0  # until a plan is made by measuring
        self._transform = self._portable(transform)
        if self._fixed not in (None, INPUT):
            self._fixed = self._named(str(self._fixed))
        digest = None if self._fixed == INPUT else backbone.graph(self._transform).digest
        self._allowed = allowed
        spec, precision = self.transform, backbone.precision
        self._job = RemoteJob(dataset.digest, digest, spec, seed, *allowed.default, precision=precision)
        self._lock = threading.RLock()
        self._parts: dict[str, Compute] | None = None
        self._follows = replan and follows(pushdown)
        self._decision = Decision(self._decide, self._prepare)
        if isinstance(pushdown, Plan):
            self._decision.adopt(self._checked(pushdown))
            if replan and len(pushdown.cuts) > 1:
                self._decision.deal_late()
        if server is not None:
            self._teacher = Teacher(server, dataset, lambda: backbone.graph(self._transform))
            self._restorer = Restorer(self._teacher.restore)
        self._fallback: Fallback | None = None
        if here is not None and server is not None:
            self._fallback = Fallback(here, self.stats, self._decision.give_server_up)
        self._window = Window(limits.in_flight)  # what a full server taught holds for the next epoch as well
        self.cache = open_cache(dataset, caching, self._transform, self._keys, self.stats)
        if self.cache is not None:
            self.cache.begin(self._version)

    @property
    def plan(self) -> Plan:
        """Decided at first use, which for a policy means measuring both tiers, unless everything is in the cache."""
        if not self._decision.is_made and self._holds_all():
            return Plan(str(self._pushdown), (), None, None, ("every feature is in the cache",))
        return self._decision.plan

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
        with self._lock:
            if (version := self._backbone.version) != self._version:
                self._renew()
                self._version = version
        if self.cache is None:
            return epoch
        self.cache.begin(version)
        return epoch % self.cache.views

    def _renew(self) -> None:
        """After the weights were written to: what is left to compute here is made of them as they are now, and requests
        name them so; the server, which does not know that name, is then sent them."""
        self._backbone.renew()
        if self._job.model is not None:
            self._job = replace(self._job, model=self._backbone.graph(self._transform).digest)
        if self._parts is not None:
            self._parts = self._placed(self._parts)

    def cutter(self, epoch: int) -> SpanCutter:
        """Deals an epoch's samples to the cuts of the plan."""
        plan = self._decision.plan
        return SpanCutter(Dealer(plan.cuts, self._sizes(plan)), epoch)

    def _sizes(self, plan: Plan) -> dict[str, int]:
        """Samples in a span of each of a plan's cuts."""
        limit = self._limits.buffer_bytes // (2 * self._limits.in_flight)
        seconds = computed_seconds(plan, self._workload, self._kept_share)
        return {
            cut.name: span_size(
                self.dataset.samples,
                self._bytes_at(cut.name),
                limit_bytes=limit,
                in_flight=self._limits.in_flight,
                share=cut.share,
                per_second=1 / seconds if seconds else math.inf,
            )
            for cut in plan.cuts
        }

    def _seconds(self, plan: Plan) -> float | None:
        """What a plan predicts for each sample that is computed; None if it does not, or was made for we do not know
        what."""
        return None if isinstance(self._pushdown, Plan) else computed_seconds(plan, self._workload, self._kept_share)

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
            together=min(self._workload.batch_size, MOST_TOGETHER) if self._decision.is_followed else 0,
            deal=self._decision.dealing(self._allowed.default, self._sizes, self._seconds),
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
        self._decision.finished(finished)
        if self.cache is not None:
            self.cache.put(finished, self._backbone.version)

    def _holds_all(self) -> bool:
        """Whether no epoch will compute anything. Cheap for a cache that holds nothing."""
        return self.cache is not None and self.cache.holds(range(self.dataset.samples), range(self.cache.views))

    def _keys(self, views: int) -> list[FeatureKeys]:
        assert isinstance(self._transform, TransformSpec)
        allowed = Allowed() if self._fixed == INPUT else self._allowed  # nothing is encoded on the way
        return feature_keys(views, self.dataset, self._transform, self._backbone, seed=self._seed, allowed=allowed)

    def _checked(self, plan: Plan) -> Plan:
        """A plan made elsewhere, with this graph's names of its cuts; UnknownCutError if it is of another model."""
        for share in plan.cuts:
            self._allowed.check(share.codec or self._job.codec)
            if share.compression == TRIMMED and self.transform is None:
                raise InputError(
                    "the plan sends pictures trimmed to what the transform reads, and a server does not know this one: "
                    f"{self._note}. Plan again, or leave 'compression' out of that cut."
                )
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
            self._teacher.upload()
            self._kept_share = kept_share(self.cache, self.feature_shapes, self._workload.epochs)
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
                    kept_share=self._kept_share,
                )
                if self._follows:
                    self._decision.follow(plan, profile, self._pushdown, self.activity, self._server)
            except MemoryBudgetError as error:
                if self._pushdown != AUTO:  # who names a policy wants to know
                    raise
                plan = unmeasured_plan(f"nothing is pushed down, since the server cannot measure the network: {error}")
        return replace(plan, reasons=(*plan.reasons, self._note)) if self._note else plan

    def _prepare(self, cuts: Iterable[str]) -> None:
        """What is left to compute here of cuts that are new."""
        assert self._parts is not None
        for cut in cuts:
            if cut not in self._parts:
                self._parts[cut] = self._backbone.suffix(cut, self._transform)

    def warm_up(self) -> None:
        if self._parts is None and not self._holds_all():
            self.ready()

    def ready(self) -> dict[str, Compute]:
        """Plans, uploads and places what iterations need, once; per cut, what is left to compute here."""
        with self._lock:
            if self._parts is None:
                cuts = [share.name for share in self._decision.plan.cuts]
                if self._job.model is not None:
                    self._teacher.upload()
                self._parts = self._placed(cuts)
            return self._parts

    def _placed(self, cuts: Iterable[str]) -> dict[str, Compute]:
        if self._job.model is None:
            return {INPUT: self._backbone.whole(self._transform)}
        return {cut: self._backbone.suffix(cut, self._transform) for cut in cuts}

    def _source(self) -> SpanSource:
        if self._server is None:
            return self._local_source(self.dataset)
        is_read_here = self._decision.is_followed or any(share.name == INPUT for share in self._decision.plan.cuts)
        remote = RemoteSource(
            self._server,
            self._job.planned(self.plan),
            retry=self._limits.retry,
            restorer=self._restorer,
            decoder=self._decoder() if is_read_here else None,
            stats=self.stats,
            window=self._window,
            observer=self._decision.observer,
            carried=self._carried,
        )
        return remote if self._fallback is None else self._fallback.source(remote, self._local_source)

    def _local_source(self, dataset: Dataset) -> SpanSource:
        assert dataset.manifest is not None
        return LocalSource(dataset.open_store(), dataset.manifest, self._decoder(), self.stats)

    def _decoder(self) -> Decoder:
        return Decoder(
            self._transform,
            seed=self._seed,
            threads=self._limits.threads,
            stats=self.stats,
            activity=self.activity,
            load=loader_for(self._limits.threads, self._backbone.device),
        )

    def _carried(self, cut: str) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape per sample and dtype of each tensor at a cut other than `input`."""
        found = self._backbone.graph(self._transform).cut(cut)
        return list(zip(found.shapes, found.dtypes, strict=True))

    def _bytes_at(self, cut: str) -> float:
        """Bytes in memory of one sample that is under way to a cut: as it arrives, and as a tensor."""
        if cut == INPUT:
            return self.dataset.input_bytes + self._backbone.input_bytes(self._transform)
        return 2.0 * self._backbone.graph(self._transform).cut(cut).bytes_per_sample
