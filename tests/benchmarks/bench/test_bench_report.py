"""The report's page, what it says at its top, and the README of a folder of results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench.headline import headline, spread
from benchmarks.bench.index import NAME, index, write_index
from benchmarks.bench.kept import read_folder, rows_of
from benchmarks.bench.report import MOST_SVG_BYTES
from benchmarks.bench.rows import Row, row_from_json
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import MODEL, SECONDS, SYSTEM, Column
from hapi.errors import InputError


def draw(figure: Any, rows: Sequence[Row]) -> None:
    figure.subplots().plot([row.seconds for row in rows if row.seconds])


def draw_many(figure: Any, rows: Sequence[Row]) -> None:
    figure.subplots().plot(*zip(*((place * 0.37 % 1, place * 0.73 % 1) for place in range(20_000)), strict=True))


def written(folder: Path, *, plots: Sequence[Plot] = (), by: str | None = None) -> str:
    with Bench("e2e", report=folder, columns=(MODEL, SYSTEM, SECONDS), plots=plots, compare_with=["plain"],
               title="A <title>", table_by=by, shown=lambda row: row.system != "hidden") as bench:  # fmt: skip
        for model in ("alexnet", "vgg11"):
            bench.add(Row("e2e", "plain", model, seconds=10.0, note="slow & <steady>"))
            bench.add(Row("e2e", "mix", model, seconds=4.0))
            bench.add(Row("e2e", "hidden", model, seconds=77.0))
        bench.remark("the link was <shaped>")
        bench.tell("All is well.")
    return (folder / "index.html").read_text()


def test_the_page_needs_nothing_beside_it_and_says_first_what_was_found(tmp_path: Path) -> None:
    page = written(tmp_path, plots=[Plot("time", "Time", draw, "Caption <here>")])
    assert "A &lt;title&gt;" in page
    assert (
        page.index("All is well.") < page.index("mix is 2.5 times as fast as plain PyTorch.") < page.index("<figure>")
    )
    assert "slow &amp; &lt;steady&gt;" in page
    assert "the link was &lt;shaped&gt;" in page
    assert "Caption &lt;here&gt;" in page
    assert 'src="data:image/svg+xml;base64,' in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "77" not in page.partition("Machine and versions")[0].partition("<tbody>")[2]
    assert "prefers-color-scheme: dark" in page
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "rows.json", "time.png"}
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 6


def test_a_plot_of_very_many_points_is_shown_as_pixels(tmp_path: Path) -> None:
    page = written(tmp_path, plots=[Plot("many", "Many", draw_many)])
    assert "data:image/png;base64," in page
    assert len(page) < 2 * MOST_SVG_BYTES


def test_a_failed_row_is_marked(tmp_path: Path) -> None:
    import typer

    with pytest.raises(typer.Exit), Bench("e2e", report=tmp_path, columns=(MODEL, SYSTEM, SECONDS)) as bench:
        bench.add(Row("e2e", "mix", "alexnet", failed=True, note="gone"))
    page = (tmp_path / "index.html").read_text()
    assert '<tr class="failed"><td><span>failed</span></td>' in page
    assert "1 of 1 rows failed." in page


def test_a_table_for_every_value_of_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = written(tmp_path, by="model")
    assert page.count("<tbody>") == 2
    assert "<h2>alexnet</h2>" in page
    assert "\nvgg11\n" in capsys.readouterr().out


def test_headlines_tell_ranges_and_failures() -> None:
    rows = [
        Row("e2e", "mix").filled(ratio_to_plain=value, ratio_to_none=1.0, measured_over_limit=None)
        for value in (1.5, 2.0, 6.0)
    ]
    said = headline([*rows, Row("e2e", "all", failed=True), Row("e2e", "plain").filled(ratio_to_plain=1.0)])
    assert said == [
        "mix is 1.5 to 6 (median 2) times as fast as plain PyTorch; is 1 times as fast as without pushdown.",
        "1 of 5 rows failed.",
    ]
    assert headline([]) == []
    assert spread([2.0]) == "2"


def test_rows_come_back_as_they_were_written() -> None:
    row = Row("e2e", "mix", "alexnet", seconds=1.5, note="so").filled(cuts=[{"name": "input", "share": 1.0}], tenants=3)
    assert row_from_json(json.loads(json.dumps(row.to_json()))) == row
    for wrong in ({}, [], {"scenario": 1, "system": "mix"}):
        with pytest.raises(ValueError, match="scenario and a system"):
            row_from_json(wrong)


def test_a_folder_of_results_is_read_and_gets_a_page(tmp_path: Path) -> None:
    written(tmp_path / "e2e", plots=[Plot("time", "Time", draw)])
    kept = read_folder(tmp_path)
    assert [one.scenario for one in kept] == ["e2e"]
    assert len(rows_of(kept, "e2e")) == 6
    text = write_index(tmp_path).read_text()
    assert text == index(read_folder(tmp_path), tmp_path)
    assert (tmp_path / NAME).exists()
    for expected in ("## e2e", "[rows](e2e/rows.json), [page](e2e/index.html)", "![time](e2e/time.png)", "2.5 times"):
        assert expected in text
    assert str(tmp_path) not in text.replace(kept[0].command, "")


def test_pictures_of_an_earlier_run_in_the_same_folder_are_not_shown(tmp_path: Path) -> None:
    for name in ("before", "now"):
        written(tmp_path / "e2e", plots=[Plot(name, "Time", draw)])
    text = index(read_folder(tmp_path), tmp_path)
    assert "![now](e2e/now.png)" in text
    assert "before" not in text
    document = json.loads((tmp_path / "e2e" / "rows.json").read_text())
    del document["pictures"]  # as runs were written before
    (tmp_path / "e2e" / "rows.json").write_text(json.dumps(document))
    assert "![before](e2e/before.png)" in index(read_folder(tmp_path), tmp_path)


def test_an_empty_folder_keeps_nothing(tmp_path: Path) -> None:
    assert "Nothing is kept yet." in index(read_folder(tmp_path), tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("columns", "note", "is_below"), [(9, "long " * 20, True), (9, "short", False), (3, "long " * 20, False)]
)
def test_long_notes_of_wide_tables_lie_below_their_rows(
    tmp_path: Path, columns: int, note: str, is_below: bool
) -> None:
    shown = [Column(f"column_{number}", f"column {number}") for number in range(columns)]
    with Bench("wire", report=tmp_path, columns=shown) as bench:
        for text in ("", note):
            bench.add(Row("wire", "mix", "toy", note=text).filled(**{column.key: 1 for column in shown}))
    page = (tmp_path / "index.html").read_text()
    assert (f'colspan="{columns}">{note}' in page) == is_below
    assert (f'<td class="note">{note}' in page) != is_below
