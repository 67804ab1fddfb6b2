"""What people see: the table as golden text, the picture by what is in it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from example_profiles import profile_of
from rich.console import Console

from hapi.errors import InputError
from hapi.plan import Plan, Profile, Share
from profiler import draw_profile, plan, profile_table


def example() -> Profile:
    profile = profile_of(
        (110_000, 0.0001, 0.004), (803_000, 0.002, 0.001), (8_000, 0.003, 0.0001), bits_per_s=1e9, samples=5000
    )
    cuts = [
        replace(cut, flops=int(index * 1.5e9), server_bytes_per_sample=index * 10**6, client_bytes_per_sample=2_500_000)
        for index, cut in enumerate(profile.cuts)
    ]
    return replace(profile, model="toy [net]", cuts=tuple(cuts))


CHOICE = Plan("mix", (Share("input", 0.25), Share("output", 0.75)), 1.0, 1.0)


def render(profile: Profile, chosen: Plan | None, *, width: int, narrow: bool = False) -> str:
    output = io.StringIO()
    Console(file=output, width=width, color_system=None).print(profile_table(profile, chosen, narrow=narrow))
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()).strip("\n")


def test_the_table() -> None:
    assert (
        render(example(), CHOICE, width=110)
        == """\
                                  toy [net]: 3 cuts, per sample

 cut                ships  of stored  server  client  GFLOP  server memory  client memory  share
 ───────────────────────────────────────────────────────────────────────────────────────────────
 ▶ input           110 kB             100 us    4 ms                               2.5 MB    25%
   cut1            803 kB     7.30 x    2 ms    1 ms   1.50           1 MB         2.5 MB
 ▶ output            8 kB     0.07 x    3 ms  100 us   3.00           2 MB         2.5 MB    75%

                           5000 samples, batches of 256, link 1 Gbit/s"""
    )


def test_the_narrow_table_of_long_names_fits_a_terminal() -> None:
    profile = example()
    long = replace(profile.cuts[1], name="encoder.layers.encoder_layer_11.mlp.block.activation")
    text = render(
        replace(profile, cuts=(profile.cuts[0], long, profile.cuts[2]), link=None), None, width=80, narrow=True
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "encoder_layer_11" in text
    assert "GFLOP" not in text
    assert "link not measured" in text
    assert "share" not in text


@pytest.mark.parametrize("cuts", [2, 5, 100])
def test_the_picture_names_cuts_and_marks_the_chosen(cuts: int, tmp_path: Path) -> None:
    rows = [(110_000, 0.0001, 0.02), *[(10**6 // depth, 0.01, 0.01) for depth in range(1, cuts - 1)], (512, 0.03, 0.0)]
    profile = profile_of(*rows, bits_per_s=3e8, samples=600)
    chosen = plan(profile, "all")
    text = draw_profile(profile, tmp_path / "plot.svg", chosen).read_text()
    for wanted in ("toy: what each cut costs", ">input<", ">output<", "100%", "stored", "link at 300 Mbit/s"):
        assert wanted in text
    named = sum(f">cut{index}<" in text for index in range(1, cuts - 1))
    assert named == cuts - 2 if cuts <= 45 else 25 <= named <= 45


def test_the_picture_without_plan_link_or_sizes(tmp_path: Path) -> None:
    bare = profile_of((0, 0, 0), (0, 0, 0), bits_per_s=None)
    assert draw_profile(bare, tmp_path / "bare.png").read_bytes()[:4] == b"\x89PNG"
    assert draw_profile(example(), str(tmp_path / "plain.pdf")).read_bytes()[:4] == b"%PDF"


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf"):
        draw_profile(example(), tmp_path / "plot.docx")
