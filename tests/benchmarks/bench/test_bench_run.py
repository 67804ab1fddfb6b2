"""A run: failed rows, the exit status, the JSON document, the report, interruption."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from benchmarks.bench.headline import UNFINISHED
from benchmarks.bench.index import index
from benchmarks.bench.kept import read_folder
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Bench, Plot
from hapi import files
from hapi.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_broken() -> None:
    with Bench("e2e", as_json=True, compare_with=["plain"]) as bench:
        with bench.trial(system="plain", model="m") as trial:
            trial.measured(seconds=4.0, bytes=10)
        with bench.trial(system="peer", model="m"):
            raise InputError("the peer is [not] installed.")
        with bench.trial(system="strange", model="m"):
            raise ZeroDivisionError("by zero")
        with bench.trial(system="lazy", model="m"):
            pass
        with bench.trial(system="mix", model="m") as trial:
            trial.measured(seconds=1.0, bytes=5, cut="layer4")
        bench.remark("no delay")


def test_a_broken_system_leaves_the_other_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        run_broken()
    assert ended.value.exit_code == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [(row["system"], row["failed"]) for row in document["rows"]] == [
        ("plain", False),
        ("peer", True),
        ("strange", True),
        ("lazy", True),
        ("mix", False),
    ]
    assert document["rows"][4]["ratio_to_plain"] == 4.0
    assert document["rows"][4]["cut"] == "layer4"
    assert document["rows"][1]["note"] == "the peer is [not] installed."
    assert document["remarks"] == ["no delay"]
    assert document["machine"]["cpus_usable"] >= 1
    assert document["machine"]["versions"]["torch"]
    assert "the peer is [not] installed." in said.err
    assert "Traceback" in said.err  # of what was nobody's plan


def test_a_run_that_succeeds_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    with Bench("wire") as bench, bench.trial(system="mix") as trial:
        trial.measured(seconds=1.0)
    assert "mix" in capsys.readouterr().out


def test_a_run_without_rows_has_failed() -> None:
    with pytest.raises(typer.Exit), Bench("wire"):
        pass


def run_terminated(taken_down: list[bool]) -> None:
    with Bench("wire", as_json=True) as bench:
        with bench.trial(system="mix") as trial:
            trial.measured(seconds=1.0)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            taken_down.append(True)


def test_termination_is_raised_where_the_scenario_stands(capsys: pytest.CaptureFixture[str]) -> None:
    taken_down: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_terminated(taken_down)
    assert ended.value.code == 130
    assert taken_down
    assert signal.getsignal(signal.SIGTERM) is before
    said = capsys.readouterr()
    document = json.loads(said.out)  # one, with what was measured until then
    assert document["interrupted"] is True
    assert [row["system"] for row in document["rows"]] == ["mix"]
    assert "interrupted" in document["remarks"][0]
    assert "mix" in said.err


def test_the_report_of_an_interrupted_run_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def interrupted() -> None:
        with Bench("wire", report=tmp_path) as bench:
            with bench.trial(system="mix") as trial:
                trial.measured(seconds=1.0)
            with bench.trial(system="none"):
                raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        interrupted()
    assert ended.value.code == 130
    assert [row["system"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == ["mix"]


def test_what_breaks_between_rows_is_a_failed_row_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        with Bench("e2e", as_json=True) as bench:
            for model in ("a", "b"):
                with bench.step(system="mix", model=model):
                    if model == "a":
                        raise InputError("the server did not start")
                    with bench.trial(system="mix", model=model) as trial:
                        trial.measured(seconds=1.0)

    with pytest.raises(typer.Exit) as ended:
        broken()
    assert ended.value.exit_code == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["model"], row["failed"], row["note"]) for row in rows] == [
        ("a", True, "the server did not start"),
        ("b", False, ""),
    ]


def test_the_report_of_a_run_that_broke_does_not_look_whole(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def broken() -> None:
        with Bench("wire", report=tmp_path / "wire") as bench:
            with bench.trial(system="mix") as trial:
                trial.measured(seconds=1.0)
            raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        broken()
    document = json.loads((tmp_path / "wire" / "rows.json").read_text())
    assert document["interrupted"] is True
    assert "ZeroDivisionError: by zero" in document["remarks"][0]
    assert UNFINISHED in (tmp_path / "wire" / "index.html").read_text()
    assert UNFINISHED in index(read_folder(tmp_path), tmp_path)


def draw_seconds(figure: Figure, rows: Sequence[Row]) -> None:
    figure.subplots().bar([row.system for row in rows], [row.seconds or 0 for row in rows])


def run_reported(folder: Path) -> None:
    with Bench("wire", report=folder, plots=[Plot("s", "Seconds & <more>", draw_seconds)]) as bench:
        with bench.trial(system="mix") as trial:
            trial.measured(seconds=1.0)
        with bench.trial(system="peer"):
            raise InputError("<b>missing</b>")


def test_the_report_is_one_page_without_anything_from_outside(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "out"
    with pytest.raises(typer.Exit):
        run_reported(folder)
    page = (folder / "index.html").read_text()
    assert page.count("<figure>") == 1
    assert "Seconds &amp; &lt;more&gt;" in page
    assert "&lt;b&gt;missing" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<table") == page.count("</table>") == 2
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")
    assert [row["system"] for row in json.loads((folder / "rows.json").read_text())["rows"]] == ["mix", "peer"]


def test_a_folder_that_cannot_be_written_is_told_before_measuring(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"), Bench("wire", report=tmp_path / "file"):
        raise AssertionError("measured")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hapi.cli import build_app\n"
        "try: build_app()(['bench', '--help'], standalone_mode=False)\n"
        "finally:\n assert not {'torch', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "decode" in done.stdout


def test_a_report_that_cannot_be_written_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")

    def run(plots: Sequence[Plot]) -> None:
        with (
            Bench("wire", as_json=True, report=tmp_path, plots=plots) as bench,
            bench.trial(system="mix") as trial,
        ):
            trial.measured(seconds=1.0)

    def reported(*plots: Plot) -> dict[str, Any]:
        with pytest.raises(typer.Exit) as ended:
            run(plots)
        assert ended.value.exit_code == 1
        return json.loads(capsys.readouterr().out)

    def broken(figure: Figure, rows: Sequence[Row]) -> None:
        raise ZeroDivisionError("no axes")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    told = reported(Plot("s", "Seconds", broken))
    assert [row["system"] for row in told["rows"]] == ["mix"]
    assert told["remarks"] == [f"the report in {tmp_path} is not whole: ZeroDivisionError: no axes"]
    kept = (tmp_path / "rows.json").read_text()
    monkeypatch.setattr(files.os, "fsync", full)
    assert "No space left" in reported()["remarks"][0]
    assert (tmp_path / "rows.json").read_text() == kept
