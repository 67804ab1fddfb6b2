"""Light clients: they ask as the DataLoader does (spans in flight, retries, Retry-After) and check what arrives.

They only receive: a training process for each of 40 tenants would leave two processors nothing for the server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.tenants.jobs import TenantJob
from compute_client.remote import RemoteJob, RemoteSource
from compute_client.restoring import Restorer
from compute_client.spans import Span
from compute_client.stats import LoaderStats
from compute_client.window import Window
from hapi.backoff import RetryPolicy
from hapi.cancel import Cancel, CancelledWork
from hapi.errors import HapiError
from profiler.remote import ServerClient

IN_FLIGHT, SPAN = 2, 32
"""Requests at once per tenant, and samples in each."""
LOOK_SECONDS = 0.5
PATIENCE = RetryPolicy(patience_seconds=120.0, busy_seconds=3600.0)


@dataclass
class JobOutcome:
    """What came of one tenant's job.

    Attributes:
        seconds: from the common start until its last sample; None while it is not finished.
        prints: sample -> sum and sum of magnitudes of its features: enough to tell that they are right.
        first_seconds: until the first sample.
        error: why it failed.
    """

    job: TenantJob
    seconds: float | None = None
    first_seconds: float | None = None
    prints: dict[int, tuple[float, float]] = field(default_factory=dict)
    error: str | None = None
    stats: LoaderStats = field(default_factory=LoaderStats)


@dataclass(frozen=True)
class Address:
    """Where the server is, the photographs as it knows them, and the tenants' tokens."""

    url: str
    dataset: str
    tokens: Mapping[str, str]

    def client(self, tenant: str) -> ServerClient:
        return ServerClient(self.url, self.tokens[tenant])


class JobRun:
    """One tenant at work, on threads of its own; `vanish` breaks its connections off without a word."""

    def __init__(self, address: Address, job: TenantJob, in_flight: int = IN_FLIGHT, span: int = SPAN) -> None:
        self.outcome = JobOutcome(job)
        self._client = address.client(job.tenant)
        task = job.task
        remote = RemoteJob(address.dataset, task.network.graph.digest, task.network.transform.to_json(), seed=0)
        self._source = RemoteSource(
            self._client,
            remote,
            retry=PATIENCE,
            restorer=Restorer(lambda error: None),
            decoder=None,
            stats=self.outcome.stats,
            window=Window(in_flight),
        )
        self._spans = spans_of(task.cut, job.indices, span)
        self._cancel = Cancel()
        self._lock = threading.Lock()
        self._started = 0.0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(in_flight)]

    def start(self) -> None:
        """Begins; the clock of its outcome starts."""
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> None:
        """For its end, but not longer than that."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def join(self) -> JobOutcome:
        """Waits for the end."""
        for thread in self._threads:
            thread.join()
        self._client.close()
        if self.outcome.error is None and len(self.outcome.prints) == self.outcome.job.samples:
            self.outcome.seconds = self._last - self._started
        return self.outcome

    def vanish(self) -> None:
        """Goes away in the middle of everything."""
        self._cancel.set("the tenant vanished")

    @property
    def is_running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def give_up(self, why: str) -> None:
        """Ends as failed, if it has not ended yet."""
        if self.is_running:
            self.outcome.error = self.outcome.error or why
            self._cancel.set(why)

    def _work(self) -> None:
        while self.outcome.error is None:
            with self._lock:
                span = next(self._spans, None)
            if span is None:
                return
            try:
                stage = self._source.fetch(span, self._cancel)
            except CancelledWork:
                return
            except HapiError as error:
                self.outcome.error = f"{error.kind}: {error}"
                return
            if stage.errors:
                self.outcome.error = next(iter(stage.errors.values()))
                return
            self._note(span, stage.tensors)

    def _note(self, span: Span, tensors: Sequence[torch.Tensor]) -> None:
        sums = sum(tensor.double().flatten(1).sum(1) for tensor in tensors)
        sizes = sum(tensor.double().flatten(1).abs().sum(1) for tensor in tensors)
        assert isinstance(sums, torch.Tensor)
        assert isinstance(sizes, torch.Tensor)
        with self._lock:
            self._last = time.monotonic()
            if self.outcome.first_seconds is None:
                self.outcome.first_seconds = self._last - self._started
            self.outcome.prints.update(zip(span.indices, zip(sums.tolist(), sizes.tolist(), strict=True), strict=True))


def run_together(
    address: Address,
    jobs: Sequence[TenantJob],
    meanwhile: Callable[[list[JobRun]], None] = lambda runs: None,
    trouble: Callable[[], str | None] = lambda: None,
) -> list[JobOutcome]:
    """Runs all jobs at once; `meanwhile` is called once they have begun.

    `trouble` is asked twice a second; once it says something, those that have not ended fail with that.
    """
    runs = [JobRun(address, job) for job in jobs]
    for run in runs:
        run.start()
    meanwhile(runs)
    for run in runs:
        while run.is_running:
            run.wait(LOOK_SECONDS)
            said = trouble()
            if said is not None:
                for other in runs:
                    other.give_up(said)
                break
    return [run.join() for run in runs]


def differs(outcome: JobOutcome, expected: Mapping[int, tuple[float, float]]) -> str | None:
    """What is wrong with the features that came, beside those of another run: batches round differently, no more."""
    for index, (total, _) in outcome.prints.items():
        right = expected.get(index)
        if right is not None and abs(total - right[0]) > 1e-4 * max(1.0, right[1]):
            return f"the features of sample {index} sum to {total:.6g}, alone to {right[0]:.6g}"
    return None


def spans_of(cut: str, indices: Sequence[int], size: int) -> Iterator[Span]:
    """The requests of a job, in order."""
    for number, start in enumerate(range(0, len(indices), size)):
        yield Span(number, cut, 0, tuple(indices[start : start + size]))
