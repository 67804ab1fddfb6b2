"""A profile as a picture: bytes and seconds over depth, with the chosen cuts marked. Needs the extra `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hapi.errors import InputError
from hapi.plan import INPUT, Plan, Profile
from hapi.units import format_bandwidth, format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
INK, QUIET, GRID = "#22303c", "#7b8794", "#e4e8ec"
LESS, MORE, STORED = "#2f8f6b", "#c3ccd4", "#b3541e"
SERVER, CLIENT, LINK = "#2b6cb0", "#8a4fbf", "#f3c9a0"
MARK = "#f6c945"
WRITTEN_SIZES = 20
"""Most cuts whose bars have their size written above."""
LABEL_LENGTH = 30
LABELS = 45
"""Cut names that fit side by side; of more cuts, only some are named (the chosen ones always)."""


def draw_profile(profile: Profile, path: str | Path, plan: Plan | None = None) -> Path:
    """Writes the picture to `path` (.png, .svg or .pdf, by its ending) and answers it.

    Above: what each cut ships, on a logarithmic scale, against the stored object. Below: seconds per sample of server,
    client and (if known) link at that cut; the highest of the three sets the pace. Raises InputError for another
    ending or without matplotlib.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"plot {str(path)!r}: the name must end in {', '.join(FORMATS)}.")
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'hapi-split[plot]'.") from error
    count = len(profile.cuts)
    with rc_context({"font.size": 10, "axes.edgecolor": QUIET, "text.color": INK, "svg.fonttype": "none"}):
        figure = Figure(figsize=(min(15.0, max(9.0, 0.42 * count + 2.5)), 7.6), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.15, 1))
        _bytes(upper, profile)
        _seconds(lower, profile)
        _marks(upper, lower, profile, plan)
        _names(lower, profile, plan)
        _titles(upper, profile, plan)
        figure.savefig(path, dpi=150, facecolor="white")
    return path


def _bytes(axes: Axes, profile: Profile) -> None:
    sizes = [max(cut.out_bytes, 1.0) for cut in profile.cuts]
    stored = profile.input_bytes
    colors = [STORED if cut.name == INPUT else LESS if cut.out_bytes < stored else MORE for cut in profile.cuts]
    axes.bar(range(len(sizes)), sizes, width=0.72, color=colors, zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(min(sizes) / 2.2, max(sizes) * 6)
    _frame(axes, "bytes per sample", format_bytes)
    if stored:
        axes.axhline(stored, color=STORED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=4)
        axes.annotate(
            f"stored\n{format_bytes(stored)}",
            (1, stored),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=STORED,
            fontsize=9,
        )
    if len(sizes) <= WRITTEN_SIZES:
        for place, cut in enumerate(profile.cuts):
            under_the_line = stored and 0.6 < sizes[place] / stored < 1
            axes.annotate(
                format_bytes(cut.out_bytes),
                (place, sizes[place]),
                xytext=(0, 9 if under_the_line else 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=STORED if cut.name == INPUT else QUIET,
                zorder=5,
            )


def _seconds(axes: Axes, profile: Profile) -> None:
    places = range(len(profile.cuts))
    lines = [
        ("server: read, decode, prefix", SERVER, [cut.server_seconds for cut in profile.cuts]),
        ("client: the rest", CLIENT, [cut.client_seconds for cut in profile.cuts]),
    ]
    marker = "o" if len(profile.cuts) <= 45 else ""
    for label, color, values in lines:
        axes.plot(places, values, color=color, linewidth=2, marker=marker, markersize=4.5, label=label, zorder=4)
        axes.fill_between(places, values, color=color, alpha=0.08, linewidth=0, zorder=2)
    top = highest = max(max(values) for _, _, values in lines)
    if profile.link is not None:
        rate = profile.link.bandwidth_bits_per_s
        seconds = [8 * cut.out_bytes / rate for cut in profile.cuts]
        highest = max(top, *seconds)
        axes.bar(places, seconds, width=0.72, color=LINK, label=f"link at {format_bandwidth(rate)}", zorder=3)
    # the link may be orders of magnitude slower than either device: it may leave the picture, they may not
    axes.set_ylim(0, 1.08 * min(highest, 1.7 * top if top else highest) or 1.0)
    _frame(axes, "seconds per sample", format_seconds)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, handlelength=1.6)


def _marks(upper: Axes, lower: Axes, profile: Profile, plan: Plan | None) -> None:
    if plan is None:
        return
    names = [cut.name for cut in profile.cuts]
    for share in plan.cuts:
        place = names.index(share.name)
        for axes in (upper, lower):
            axes.axvspan(place - 0.5, place + 0.5, color=MARK, alpha=0.38, linewidth=0, zorder=1)
        upper.annotate(
            f"{share.share:.0%}",
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -13),
            textcoords="offset points",
            ha="center",
            weight="bold",
            fontsize=9.5,
            zorder=7,
        )


def _names(axes: Axes, profile: Profile, plan: Plan | None) -> None:
    count = len(profile.cuts)
    chosen = {share.name for share in plan.cuts} if plan else set()
    step = -(-count // LABELS)
    must = [index for index, cut in enumerate(profile.cuts) if index in (0, count - 1) or cut.name in chosen]
    shown = set(must) | {
        index for index in range(0, count, step) if step == 1 or all(abs(index - other) >= step for other in must)
    }
    ticks = sorted(shown)
    labels = _labels(profile)
    axes.set_xticks(ticks, [labels[index] for index in ticks], rotation=50, ha="right", rotation_mode="anchor")
    for label, index in zip(axes.get_xticklabels(), ticks, strict=True):
        label.set_fontsize(9)
        if profile.cuts[index].name in chosen:
            label.set_fontweight("bold")
    axes.set_xlim(-0.7, count - 0.3)


def _labels(profile: Profile) -> list[str]:
    """Names for the axis: without what all cuts between the ends have in front, and not longer than fits."""
    inner = [cut.name.split(".") for cut in profile.cuts[1:-1]]
    shared = 0
    while len(inner) > 1 and all(len(parts) > shared + 1 and parts[shared] == inner[0][shared] for parts in inner):
        shared += 1
    names = [f"…{'.'.join(parts[shared:])}" if shared else ".".join(parts) for parts in inner]
    cropped = [name if len(name) <= LABEL_LENGTH else f"{name[:18]}…{name[-11:]}" for name in names]
    return [profile.cuts[0].name, *cropped, profile.cuts[-1].name]


def _titles(upper: Axes, profile: Profile, plan: Plan | None) -> None:
    facts = [f"{len(profile.cuts)} cuts"]
    lines = []
    if plan is not None:
        lines = [f"plan {plan.policy}: " + ", ".join(f"{share.share:.0%} {share.name}" for share in plan.cuts)]
        if plan.predicted_seconds is not None and profile.samples:
            facts.append(f"{format_seconds(plan.predicted_seconds)} predicted for {profile.samples} samples")
    lines.insert(0, "  ·  ".join(facts))
    upper.set_title(
        f"{profile.model}: what each cut costs", loc="left", fontsize=14, weight="bold", pad=8 + 14 * len(lines)
    )
    note = upper.annotate(
        "\n".join(lines), (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", color=QUIET
    )
    note.set_in_layout(False)  # a long line may not squeeze the axes


def _frame(axes: Axes, label: str, unit: Any) -> None:
    axes.set_ylabel(label, color=QUIET)
    axes.yaxis.set_major_formatter(lambda value, _: unit(value))
    axes.grid(axis="y", color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
