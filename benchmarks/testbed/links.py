"""What joins the two hosts of a testbed: shaped namespaces, a relay, or a real network."""

from __future__ import annotations

import contextlib
from typing import Protocol
from urllib.parse import urlsplit

from benchmarks.testbed.namespaces import Namespaces
from benchmarks.thinlink import Pacer, thin_link

UNLIMITED_BITS_PER_S = 1e15


class TestbedLink(Protocol):
    """The network between the hosts, as seen by the testbed."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the results must know."""
        ...

    def shape(self, bits_per_s: float | None) -> None:
        """Sets the rate of both directions; None for no limit."""
        ...

    def carried(self) -> tuple[int, int] | None:
        """Bytes so far (to the compute host, to the storage host); None if nobody counts them."""
        ...

    def reach(self, url: str) -> str:
        """The address under which the compute host finds a server of the storage host."""
        ...


class ShapedLink:
    """A veth pair between namespaces."""

    remarks: tuple[str, ...] = (
        "two network namespaces on one machine, both directions shaped by tbf, in whose queue each connection has two "
        "packets of the kernel at most, so that they take turns and none is lost; no delay was added (round trips take "
        "some 0.05 ms where nothing waits)",
        "bytes on the link are counted by the interface, all headers included",
    )

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces

    def shape(self, bits_per_s: float | None) -> None:
        self._namespaces.shape(bits_per_s)

    def carried(self) -> tuple[int, int]:
        return self._namespaces.carried()

    def reach(self, url: str) -> str:
        return url


class RelayLink:
    """Relays on loopback, one per server, that share one rate for each direction. Ends with `close`."""

    remarks: tuple[str, ...] = (
        "no network namespaces: a relay in this process holds the rate, on loopback; "
        "no delay was added, and the relay's own work runs beside the storage host's",
        "bytes on the link are those of the connections' contents, without TCP and IP headers",
    )

    def __init__(self) -> None:
        self._to_compute, self._to_storage = Pacer(UNLIMITED_BITS_PER_S), Pacer(UNLIMITED_BITS_PER_S)
        self._relays = contextlib.ExitStack()

    def shape(self, bits_per_s: float | None) -> None:
        for pacer in (self._to_compute, self._to_storage):
            pacer.bits_per_s = bits_per_s or UNLIMITED_BITS_PER_S

    def carried(self) -> tuple[int, int]:
        return self._to_compute.bytes_sent, self._to_storage.bytes_sent

    def reach(self, url: str) -> str:
        return self._relays.enter_context(thin_link(url, pacers=(self._to_compute, self._to_storage))).url

    def close(self) -> None:
        self._relays.close()


class RealLink:
    """Whatever lies between this machine and servers elsewhere: it is used as it is."""

    def __init__(self, *urls: str) -> None:
        names = ", ".join(sorted({urlsplit(url).hostname or url for url in urls}))
        self.remarks: tuple[str, ...] = (
            f"real hosts ({names}): the network was not shaped, and its rate is what --bandwidth says, if anything",
            "servers elsewhere were not restarted between systems: they may keep what an earlier run left",
        )

    def shape(self, bits_per_s: float | None) -> None:
        """A real network has the rate it has."""

    def carried(self) -> None:
        return None

    def reach(self, url: str) -> str:
        return url
