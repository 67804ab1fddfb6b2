"""A profile as a table that people read."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from hapi.plan import INPUT, CutCost, Plan, Profile
from hapi.units import format_bandwidth, format_bytes, format_seconds

CHOSEN = "bold green"
SMALLER = "green"


def profile_table(profile: Profile, plan: Plan | None = None) -> Table:
    """One row per cut: what it ships, FLOPs of the prefix, seconds on either tier, memory; a plan's cuts are marked."""
    shares = {share.name: share.share for share in plan.cuts} if plan else {}
    table = Table(title=f"[bold]{profile.model}[/] per sample, {len(profile.cuts)} cuts", caption=_caption(profile))
    table.add_column("")
    table.add_column("cut", overflow="fold")
    for title in ("ships", "of stored", "GFLOP", "server", "client", "server mem.", "client mem."):
        table.add_column(title, justify="right", no_wrap=True)
    if shares:
        table.add_column("share", justify="right", no_wrap=True)
    for cut in profile.cuts:
        share = shares.get(cut.name)
        cells = [Text("▶" if share else ""), Text(cut.name), *_cells(cut, profile.input_bytes)]
        if shares:
            cells.append(Text(f"{share:.0%}" if share else ""))
        table.add_row(*cells, style=CHOSEN if share else None)
    return table


def _cells(cut: CutCost, stored: float) -> list[Text]:
    ratio = cut.out_bytes / stored if stored else 0.0
    compared = "" if cut.name == INPUT or not stored else f"{ratio:.2f} x" if ratio < 10 else f"{ratio:.0f} x"
    return [
        Text(format_bytes(cut.out_bytes)),
        Text(compared, style=SMALLER if 0 < ratio < 1 else ""),
        Text(f"{cut.flops / 1e9:.2f}" if cut.flops else ""),
        Text(format_seconds(cut.server_seconds)),
        Text(format_seconds(cut.client_seconds)),
        Text("" if cut.name == INPUT else format_bytes(cut.server_bytes_per_sample)),
        Text(format_bytes(cut.client_bytes_per_sample)),
    ]


def _caption(profile: Profile) -> str:
    job = f"{profile.samples} samples, batches of {profile.batch_size}"
    if profile.link is None:
        return f"{job}, link not measured"
    latency = format_seconds(profile.link.latency_seconds)
    return f"{job}, link {format_bandwidth(profile.link.bandwidth_bits_per_s)} with {latency} round trip"
