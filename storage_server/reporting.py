"""What the server tells about itself: the status of prefixes and tenants, and the same as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hapi.wire.protocol import OTHERS, PrefixStatus, TenantStatus
from storage_server.scheduling.admission import Admission
from storage_server.scheduling.fair import SERVER
from storage_server.scheduling.holding import QueueBytes
from storage_server.status import Board, TenantRecord

Waiting = Callable[[], Mapping[tuple[str, ...], int]]
SHOWN_DIGITS = 12
"""Of a model's digest, for those who may not know it whole."""


class Report:
    """Reads the board, admission and queues. Admission is read from any thread: its numbers are of a moment ago."""

    def __init__(self, board: Board, admission: Admission, queue: QueueBytes, waiting: Waiting) -> None:
        """`waiting` tells the rows that wait for the device, by prefix."""
        self._board = board
        self._admission = admission
        self._queue = queue
        self._waiting = waiting

    def prefixes(self) -> list[PrefixStatus]:
        """The one used last first."""
        waiting = self._waiting()
        return [
            PrefixStatus(
                model=record.model,
                model_name=record.model_name,
                cut=record.cut,
                device=record.device,
                engine=record.engine,
                precision=record.precision,
                batch=record.batch,
                reason=record.reason,
                images_per_s=1 / record.row_seconds.value if record.row_seconds.value else 0.0,
                samples=record.samples,
                waiting=waiting.get(key, 0),
                weight_bytes=record.weight_bytes,
                predicted_peak_bytes=record.predicted_peak_bytes,
                measured_peak_bytes=record.measured_peak_bytes,
                out_of_memory=record.out_of_memory,
            )
            for key, record in reversed(self._board.prefixes().items())
        ]

    def tenants(self, name: str | None = None) -> list[TenantStatus]:
        """All tenants; or, for the tenant `name`, itself and the others together."""
        records = self._board.tenants()
        running = self._admission.tenants()
        held = self._queue.held_bytes()
        names = sorted({*records, *running, *held} - {SERVER.name})
        found = [_tenant(each, records.get(each), *running.get(each, (0, 0)), held.get(each, 0)) for each in names]
        if name is None:
            return found
        mine = [status for status in found if status.name == name] or [_tenant(name, None, 0, 0, 0)]
        others = [status for status in found if status.name != name]
        return mine + ([_summed(others)] if others else [])


class StatusCollector(Collector):
    """The report as metrics, made anew at each scrape: what is forgotten there has no labels here."""

    def __init__(self, report: Report, *, with_tenants: bool) -> None:
        """Without tenants where anybody may read the metrics of a server that has tokens."""
        self._report = report
        self._with_tenants = with_tenants

    def collect(self) -> Iterable[Metric]:
        """What the registry asks for."""
        yield from _metrics(
            "prefix",
            ("model", "name", "cut", "precision"),
            PREFIX,
            {
                (status.model[:SHOWN_DIGITS], status.model_name, status.cut, status.precision): status
                for status in self._report.prefixes()
            },
        )
        if self._with_tenants:
            yield from _metrics(
                "tenant", ("tenant",), TENANT, {(status.name,): status for status in self._report.tenants()}
            )


PREFIX = {
    "batch": "Samples of a whole batch, as last decided",
    "images_per_s": "Samples per second while the device runs it",
    "samples": "Samples computed",
    "waiting": "Samples that wait for the device",
    "predicted_peak_bytes": "Weights and one batch, as predicted",
    "measured_peak_bytes": "Weights and one batch, as measured",
    "out_of_memory": "Times that memory ran out and a smaller batch went on",
}
TENANT = {
    "share": "Part of a busy server, relative to others",
    "active": "Requests that run",
    "waiting": "Requests that wait",
    "samples": "Samples sent",
    "failed": "Samples that failed",
    "shared": "Samples answered by work done for another",
    "queue_seconds": "Mean wait of recent samples for the device",
    "device_seconds": "Seconds of the device spent",
    "held_bytes": "Bytes between reading and sending",
}
COUNTERS = {"samples", "failed", "shared", "device_seconds", "out_of_memory"}


def _metrics(
    kind: str, labels: tuple[str, ...], fields: Mapping[str, str], statuses: Mapping[tuple[str, ...], object]
) -> Iterable[Metric]:
    for field, text in fields.items():
        family = CounterMetricFamily if field in COUNTERS else GaugeMetricFamily
        metric = family(f"hapi_{kind}_{field}", text, labels=labels)
        for values, status in statuses.items():
            value = getattr(status, field)
            if value is not None:
                metric.add_metric(values, value)
        yield metric
    if kind == "prefix":
        reasons = GaugeMetricFamily("hapi_prefix_reason", "Why its batch has its size", labels=(*labels, "reason"))
        for values, status in statuses.items():
            reasons.add_metric((*values, getattr(status, "reason")), 1)  # noqa: B009
        yield reasons


def _tenant(name: str, record: TenantRecord | None, active: int, waiting: int, held_bytes: int) -> TenantStatus:
    record = record or TenantRecord()
    return TenantStatus(
        name=name,
        share=record.share,
        active=active,
        waiting=waiting,
        samples=record.samples,
        failed=record.failed,
        shared=record.shared,
        queue_seconds=record.queue_seconds.value,
        device_seconds=record.device_seconds,
        held_bytes=held_bytes,
    )


def _summed(statuses: list[TenantStatus]) -> TenantStatus:
    return TenantStatus(
        name=OTHERS,
        share=sum(status.share for status in statuses),
        active=sum(status.active for status in statuses),
        waiting=sum(status.waiting for status in statuses),
        samples=sum(status.samples for status in statuses),
        failed=sum(status.failed for status in statuses),
        shared=sum(status.shared for status in statuses),
        queue_seconds=sum(status.queue_seconds for status in statuses) / len(statuses),
        device_seconds=sum(status.device_seconds for status in statuses),
        held_bytes=sum(status.held_bytes for status in statuses),
    )
