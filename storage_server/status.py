"""What the server tells of each prefix and tenant: counted as it happens, read by /v1/status and /metrics."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from hapi.wire.protocol import BatchReason
from storage_server.extraction.engine import Prefix
from storage_server.extraction.sizing import Decision
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.rates import Mean

PREFIXES = 256
TENANTS = 1024
"""Those that were used least recently are forgotten, and their metrics with them."""


@dataclass
class PrefixRecord:
    """What is known of one prefix. Holds numbers only: the model may go."""

    model: str
    model_name: str
    cut: str
    device: str
    engine: str
    precision: str = "float32"
    batch: int = 1
    reason: BatchReason = "exploring"
    samples: int = 0
    out_of_memory: int = 0
    weight_bytes: int = 0
    predicted_peak_bytes: int = 0
    measured_peak_bytes: int | None = None
    row_seconds: Mean = field(default_factory=Mean)


@dataclass
class TenantRecord:
    """What one tenant had."""

    share: float = 1.0
    samples: int = 0
    failed: int = 0
    shared: int = 0
    device_seconds: float = 0.0
    queue_seconds: Mean = field(default_factory=Mean)


class Board:
    """Records of prefixes and tenants. Thread-safe."""

    def __init__(self) -> None:
        self._prefixes: OrderedDict[tuple[str, ...], PrefixRecord] = OrderedDict()
        self._tenants: OrderedDict[str, TenantRecord] = OrderedDict()
        self._lock = threading.Lock()

    def prefixes(self) -> dict[tuple[str, ...], PrefixRecord]:
        """By key, the one used last at the end."""
        with self._lock:
            return dict(self._prefixes)

    def tenants(self) -> dict[str, TenantRecord]:
        """By name."""
        with self._lock:
            return dict(self._tenants)

    def decided(self, prefix: Prefix, decision: Decision) -> None:
        """A whole batch has this size at present."""
        with self._lock:
            record = self._prefix(prefix)
            record.batch, record.reason = decision.samples, decision.reason
            record.engine = prefix.engine
            record.weight_bytes = prefix.memory.weight_bytes
            record.predicted_peak_bytes = prefix.memory.predicted(decision.samples)

    def computed(self, prefix: Prefix, samples: int, seconds: float) -> None:
        """A batch was computed."""
        with self._lock:
            record = self._prefix(prefix)
            record.samples += samples
            record.row_seconds.add(seconds / samples)

    def measured(self, prefix: Prefix, peak_bytes: int) -> None:
        """The most memory that a batch was seen to take, weights counted."""
        with self._lock:
            record = self._prefix(prefix)
            record.measured_peak_bytes = max(peak_bytes, record.measured_peak_bytes or 0)

    def ran_out(self, prefix: Prefix) -> None:
        """Memory ran out, and a smaller batch went on."""
        with self._lock:
            self._prefix(prefix).out_of_memory += 1

    def arrived(
        self, flow: Flow, *, done: int = 0, failed: int = 0, shared: int = 0, waits: Iterable[float] = ()
    ) -> None:
        """Samples of a tenant are done or failed; `waits` are the seconds of each that stood in line for the device."""
        with self._lock:
            record = self._tenant(flow)
            record.samples += done
            record.failed += failed
            record.shared += shared
            for waited in waits:
                record.queue_seconds.add(waited)

    def spent(self, seconds: dict[Flow, float]) -> None:
        """The device worked so long for each."""
        with self._lock:
            for flow, part in seconds.items():
                self._tenant(flow).device_seconds += part

    def _prefix(self, prefix: Prefix) -> PrefixRecord:
        record = self._prefixes.get(prefix.key)
        if record is None:
            digest, cut = prefix.key[:2]
            record = PrefixRecord(digest, prefix.model, cut, prefix.device, prefix.engine, prefix.precision)
            self._prefixes[prefix.key] = record
            if len(self._prefixes) > PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(prefix.key)
        return record

    def _tenant(self, flow: Flow) -> TenantRecord:
        record = self._tenants.setdefault(flow.name, TenantRecord())
        record.share = flow.share
        self._tenants.move_to_end(flow.name)
        if len(self._tenants) > TENANTS:
            self._tenants.popitem(last=False)
        return record
