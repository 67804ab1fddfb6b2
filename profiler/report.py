"""A profile as a table that people read."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from hapi.plan import INPUT, CutCost, Plan, Profile
from hapi.units import format_bandwidth, format_bytes, format_seconds

CHOSEN = "bold green"
SMALLER = "green"
MARK = "▶ "


def profile_table(profile: Profile, plan: Plan | None = None, *, narrow: bool = False) -> Table:
    """One row per cut: what it ships, seconds on either tier, FLOPs and memory; a plan's cuts are marked.

    `narrow` leaves FLOPs and memory out, for terminals of 80 columns.
    """
    shares = {share.name: share.share for share in plan.cuts} if plan else {}
    table = Table(
        title=Text(f"{profile.model}: {len(profile.cuts)} cuts, per sample"),
        title_style="bold",
        caption=_caption(profile),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("cut", overflow="fold", min_width=16)
    titles = ["ships", "of stored", "server", "client"]
    if not narrow:
        titles += ["GFLOP", "server memory", "client memory"]
    for title in [*titles, "share"] if shares else titles:
        table.add_column(title, justify="right", no_wrap=True)
    for cut in profile.cuts:
        share = shares.get(cut.name)
        cells = _cells(cut, profile.input_bytes)[: len(titles)]
        if shares:
            cells.append(Text(f"{share:.0%}" if share else ""))
        name = Text(f"{MARK if share else ' ' * len(MARK)}{cut.name}")
        table.add_row(name, *cells, style=CHOSEN if share else None)
    return table


def _cells(cut: CutCost, stored: float) -> list[Text]:
    ratio = cut.out_bytes / stored if stored else 0.0
    compared = "" if cut.name == INPUT or not stored else f"{ratio:.2f} x" if ratio < 10 else f"{ratio:.0f} x"
    return [
        Text(format_bytes(cut.out_bytes)),
        Text(compared, style=SMALLER if 0 < ratio < 1 else ""),
        Text(format_seconds(cut.server_seconds)),
        Text(format_seconds(cut.client_seconds)),
        Text(f"{cut.flops / 1e9:.2f}" if cut.flops else ""),
        Text("" if cut.name == INPUT else format_bytes(cut.server_bytes_per_sample)),
        Text(format_bytes(cut.client_bytes_per_sample)),
    ]


def _caption(profile: Profile) -> str:
    job = f"{profile.samples} samples, batches of {profile.batch_size}"
    if profile.link is None:
        return f"{job}, link not measured"
    link = f"{job}, link {format_bandwidth(profile.link.bandwidth_bits_per_s)}"
    latency = profile.link.latency_seconds
    return f"{link} with {format_seconds(latency)} round trip" if latency else link
