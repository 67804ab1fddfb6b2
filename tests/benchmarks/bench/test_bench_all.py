"""`hapi bench all`: what it runs, and what it makes of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench.rows import Row
from benchmarks.bench.run import Trial
from benchmarks.scenarios import all as all_scenarios
from benchmarks.scenarios import names
from benchmarks.scenarios.all import LEFT_OUT, planned, run_scenario
from benchmarks.testbed.processes import ProgramFailedError
from hapi import cli

PROFILE = {
    "model": "toy",
    "input_bytes": 1e5,
    "cuts": [
        {"name": "input", "out_bytes": 1e5, "server_seconds": 0.001, "client_seconds": 0.02},
        {"name": "output", "out_bytes": 1e4, "server_seconds": 0.02, "client_seconds": 0.001},
    ],
}


def test_every_scenario_runs_and_the_published_figures_last() -> None:
    runs = planned(Path("kept"), quick=False)
    assert set(runs) == {*names(), "check"} - set(LEFT_OUT)
    assert next(iter(runs)) == "e2e"
    assert list(runs)[-1] == "published"
    assert runs["check"] == ["simulate", "--check"]
    assert runs["published"] == ["published", "--results", "kept"]
    assert "torchvision:vgg19" in runs["e2e"]
    assert "vit_b_16" in runs["memory"]


def test_quick_is_given_to_those_that_know_it() -> None:
    runs = planned(Path("kept"), quick=True)
    assert runs["e2e"] == ["e2e", "--quick"]
    assert "--quick" not in runs["published"]


def test_a_run_is_a_row_with_its_seconds_and_counts(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(PROFILE))
    words = [
        "simulate",
        "--profile",
        str(profile),
        "--cell",
        "1:1",
        "--samples",
        "64",
        "--report",
        str(tmp_path / "one"),
    ]
    trial = Trial(Row("all", "simulate"))
    run_scenario(trial, ["bench", *words], tmp_path / "one")
    assert trial.row.get("rows") == 3
    assert trial.row.get("rows_failed") == 0
    assert trial.row.seconds is not None
    assert not trial.row.failed
    with pytest.raises(ProgramFailedError, match="ended with 2 and wrote no rows"):
        run_scenario(trial, ["bench", "simulate", "--cell", "none"], tmp_path / "one")
    with pytest.raises(ProgramFailedError, match="took longer than 0 s and was ended and wrote no rows"):
        run_scenario(trial, ["bench", *words], tmp_path / "one", most_seconds=0.01)


def test_an_interrupted_scenario_may_write_its_rows_before_the_run_ends(tmp_path: Path) -> None:
    program = (
        "import pathlib\n"
        "from benchmarks.bench.run import Bench\n"
        "try:\n"
        "    with Bench('wire') as bench:\n"
        "        pathlib.Path('begun').touch()\n"
        "        __import__('signal').pause()\n"
        "finally: pathlib.Path('written').touch()"
    )

    class Interrupted(subprocess.Popen[bytes]):
        """Whose first wait is interrupted, once it has begun."""

        is_asked = False

        def wait(self, timeout: float | None = None) -> int:
            while not (tmp_path / "begun").exists():
                pass
            if not self.is_asked:
                self.is_asked = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    with Interrupted([sys.executable, "-c", program], cwd=tmp_path) as process, pytest.raises(KeyboardInterrupt):
        all_scenarios._ended(process, 60.0)
    assert process.returncode == 130
    assert (tmp_path / "written").exists()


def test_a_scenario_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "all", "--results", str(tmp_path), "--scenario", "nothing"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "published" in capsys.readouterr().err


def test_a_scenario_that_fails_stops_no_other_and_is_told_by_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(trial: Trial, words: list[str], *rest: object) -> None:
        trial.measured(seconds=60.0)
        if words[1] == "decode":
            raise ProgramFailedError("it ended with 1 and wrote no rows; what it said is above")
        trial.measured(rows=3, rows_failed=0)

    monkeypatch.setattr(all_scenarios, "run_scenario", run)
    chosen = [word for name in ("decode", "wire", "published") for word in ("--scenario", name)]
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "all", "--json", "--results", str(tmp_path), *chosen])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    rows = {row["system"]: row for row in json.loads(out)["rows"]}
    assert {name: row["failed"] for name, row in rows.items()} == {"decode": True, "wire": False, "published": False}
    assert rows["decode"]["seconds"] == 60.0
    assert "Traceback" not in err
    assert "3 scenarios took 3 min" in err


def test_a_run_of_which_nothing_came_has_its_row_and_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(trial: Trial, words: list[str], *rest: object) -> None:
        raise ProgramFailedError("it ended with 1 and wrote no rows; what it said is above")

    monkeypatch.setattr(all_scenarios, "run_scenario", run)
    words = ["--json", "--results", str(tmp_path / "new" / "results"), "--scenario", "decode"]
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "all", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert [row["system"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["decode"]
    assert "Nothing is kept yet." in (tmp_path / "new" / "results" / "README.md").read_text()


def test_a_folder_of_results_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "all", "--results", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "not a folder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("asked", [False, True])
def test_without_a_gpu_its_scenario_runs_only_when_it_is_asked_for(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(trial: Trial, words: list[str], *rest: object) -> None:
        ran.append(words[1])
        trial.measured(seconds=1.0, rows=1, rows_failed=0)

    monkeypatch.setattr(all_scenarios, "has_gpu", lambda: False)
    monkeypatch.setattr(all_scenarios, "run_scenario", run)
    more = ["--scenario", "device"] if asked else []
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "all", "--quick", "--results", str(tmp_path), *more])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert ("device" in ran) == asked
    assert ("no CUDA device here" in " ".join(capsys.readouterr().out.split())) != asked
