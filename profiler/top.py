"""`hapi top`: a storage server's status as a screen, and the loop that keeps it up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hapi.backoff import TRANSIENT
from hapi.units import format_bytes, format_seconds
from hapi.wire.protocol import PrefixStatus, ServerStatus, TenantStatus

BAR_WIDTH = 24
NARROW = 110
"""Columns of a terminal below which the tables leave out what is least looked at."""
SERVER_LINES, TABLE_LINES = 2, 5
"""Lines of what is told of the server, and of a table without its rows."""
GOOD, WARN, BAD, QUIET = "green", "yellow", "bold red", "dim"
REASONS = {"memory": WARN, "share": WARN, "recovering": BAD, "exploring": "cyan"}


@dataclass(frozen=True)
class View:
    """What is known of a server at one moment.

    Attributes:
        status: its last answer; None before the first.
        samples_per_s: between its last two answers; None before the second, or when it was started anew.
        trouble: why there is no answer now; None if there is.
        silent_seconds: for how long there was none.
    """

    url: str
    status: ServerStatus | None = None
    samples_per_s: float | None = None
    trouble: str | None = None
    silent_seconds: float = 0.0


class Watcher:
    """Asks a server again and again. What passes (no answer, full) becomes part of the view; the rest is raised."""

    def __init__(self, url: str, ask: Callable[[], ServerStatus], now: Callable[[], float] = time.monotonic) -> None:
        """`now` tells the time in seconds."""
        self._ask, self._now = ask, now
        self._view = View(url)
        self._answered: float | None = None

    def look(self) -> View:
        """The server as it is now."""
        before, began = self._view.status, self._answered
        try:
            status = self._ask()
        except TRANSIENT as error:
            self._view = View(self._view.url, before, None, str(error), self._silent())
            return self._view
        self._answered = self._now()
        rate = None
        if before is not None and began is not None and status.samples_done >= before.samples_done:
            rate = (status.samples_done - before.samples_done) / max(self._answered - began, 1e-9)
        self._view = View(self._view.url, status, rate)
        return self._view

    def _silent(self) -> float:
        now = self._now()
        self._answered = now if self._answered is None else self._answered
        return now - self._answered


def watch(watcher: Watcher, interval_seconds: float, wait: Callable[[float], None] = time.sleep) -> Iterator[View]:
    """A view per interval, for ever."""
    while True:
        yield watcher.look()
        wait(interval_seconds)


def screen(view: View, width: int = 120, height: int | None = None) -> RenderableType:
    """The view as tables: the server, its prefixes, its tenants; what does not fit into `height` lines is counted."""
    parts: list[RenderableType] = [_heading(view)]
    if view.trouble is not None:
        silence = f"no answer for {format_seconds(round(view.silent_seconds))}" if view.silent_seconds else "no answer"
        parts.append(Text(f"{silence}: {view.trouble}", style=BAD))
    if view.status is not None:
        is_old, narrow = view.trouble is not None, width < NARROW
        parts.append(_server(view.status, view.samples_per_s, narrow))
        left = None if height is None else height - (len(parts) - 1) - SERVER_LINES
        prefixes, tenants = _rows(left, len(view.status.prefixes), len(view.status.tenants))
        for table in (
            prefix_table(view.status.prefixes, narrow, prefixes),
            tenant_table(view.status.tenants, narrow, tenants),
        ):
            if table.row_count:
                table.style = QUIET if is_old else ""
                parts.append(table)
        if not view.status.prefixes:
            parts.append(Text("nothing was computed yet", style=QUIET))
    return Group(*parts)


def prefix_table(prefixes: list[PrefixStatus], narrow: bool = False, rows: int | None = None) -> Table:
    """One row per part of a model that the server computes, `rows` at most."""
    table = _table(_title("prefixes", len(prefixes), rows))
    table.add_column("model", min_width=8)
    table.add_column("cut", min_width=6)
    if not narrow:
        table.add_column("engine", no_wrap=True)
    table.add_column("batch", no_wrap=True, justify="right")
    table.add_column("because", no_wrap=True)
    for title in ("images/s", "waiting", "peak", "measured", "OOM") if not narrow else ("images/s", "waiting", "OOM"):
        table.add_column(title, no_wrap=True, justify="right")
    for one in prefixes[:rows]:
        peaks = [] if narrow else [format_bytes(one.predicted_peak_bytes), _bytes(one.measured_peak_bytes)]
        cells = [
            _name(one.model_name),
            _name(one.cut),
            *([] if narrow else [Text(one.engine)]),
            Text(str(one.batch)),
            Text(one.reason, style=REASONS.get(one.reason, "")),
            Text(f"{one.images_per_s:.1f}" if one.images_per_s else "-"),
            Text(str(one.waiting)),
            *map(Text, peaks),
            Text(str(one.out_of_memory), style=BAD if one.out_of_memory else ""),
        ]
        table.add_row(*cells)
    return table


def tenant_table(tenants: list[TenantStatus], narrow: bool = False, rows: int | None = None) -> Table:
    """One row per tenant that may be seen, `rows` at most; those who have something under way first."""
    table = _table(_title("tenants", len(tenants), rows))
    table.add_column("tenant", min_width=8)
    titles = ["share", "active", "waiting", "samples", "failed", "wait", "device", "shared", "held"]
    for title in titles[:-2] if narrow else titles:
        table.add_column(title, no_wrap=True, justify="right")
    order = sorted(tenants, key=lambda one: (not (one.active or one.waiting), -one.device_seconds, one.name))
    for one in order[:rows]:
        cells = [
            _name(one.name, style="" if one.active or one.waiting else QUIET),
            Text(f"{one.share:g}"),
            Text(str(one.active)),
            Text(str(one.waiting), style=WARN if one.waiting else ""),
            Text(str(one.samples)),
            Text(str(one.failed), style=BAD if one.failed else ""),
            Text(format_seconds(one.queue_seconds)),
            Text(format_seconds(one.device_seconds)),
            Text(str(one.shared)),
            Text(format_bytes(one.held_bytes)),
        ]
        table.add_row(*(cells[:-2] if narrow else cells))
    return table


def _rows(lines: int | None, prefixes: int, tenants: int) -> tuple[int | None, int | None]:
    """How many of each are shown in so many lines: half each, and what one does not need is the other's."""
    if lines is None:
        return None, None
    room = max(2, lines - 2 * TABLE_LINES)
    first = min(prefixes, max(room // 2, room - tenants, 1))
    return first, max(1, room - first)


def _title(what: str, count: int, rows: int | None) -> str:
    return what if rows is None or count <= rows else f"{what}, {rows} of {count}"


def _name(text: str, style: str = "") -> Text:
    """What is made shorter where there is no room. (A column of `no_wrap` would be narrowed like all others.)"""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _heading(view: View) -> Text:
    text = Text("HAPI storage server ", style="bold")
    text.append(view.url, style="bold cyan")
    if view.status is not None:
        text.append(f"  {view.status.device}, {view.status.precision}, version {view.status.version}", style=QUIET)
        if view.status.draining:
            text.append("  is stopping", style=BAD)
    return text


def _server(status: ServerStatus, samples_per_s: float | None, narrow: bool = False) -> RenderableType:
    """Memory as a bar, and what is under way."""
    used = status.used_bytes / status.budget_bytes if status.budget_bytes else 0.0
    grid = Table.grid(padding=(0, 1, 0, 0))
    width = BAR_WIDTH // 2 if narrow else BAR_WIDTH
    bar = ProgressBar(total=1.0, completed=min(used, 1.0), width=width, complete_style=_heat(used))
    memory = f"{format_bytes(status.used_bytes)} of {format_bytes(status.budget_bytes)}"
    memory += f", queues up to {format_bytes(status.queue_bytes)}, resident {format_bytes(status.rss_bytes)}"
    grid.add_row("memory", bar, Text(memory))
    rate = "-" if samples_per_s is None else f"{samples_per_s:.1f}"
    work = f"requests {status.requests_active} active, {status.requests_queued} waiting, backlog "
    work += f"{format_seconds(status.backlog_seconds)}, {rate} samples/s, {status.samples_done} in all"
    return Group(grid, Text(work))


def _heat(used: float) -> str:
    return GOOD if used < 0.8 else WARN if used < 0.95 else "red"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _bytes(count: int | None) -> str:
    return "-" if count is None else format_bytes(count)
