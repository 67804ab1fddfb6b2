"""`hapi profile` and `hapi plan` as their users run them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from example_images import write_folder
from example_profiles import profile_of

from hapi import cli
from hapi.plan import Profile
from profiler.policies import MOST_GIVEN


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hapi", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    profile = profile_of(
        (110_000, 0.0001, 0.004), (400_000, 0.002, 0.001), (8_000, 0.003, 0.0001), bits_per_s=1e9, samples=50_000
    )
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json()))
    return path


def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(monkeypatch, "plan", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_plan_answers_one_document(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = planned(monkeypatch, capsys, str(file), "--bandwidth", "1Gbit")
    assert sorted(mix) == ["cuts", "limit_seconds", "policy", "predicted_seconds", "reasons"]
    assert mix["policy"] == "mix"
    assert sum(cut["share"] for cut in mix["cuts"]) == pytest.approx(1)
    assert mix["limit_seconds"] <= mix["predicted_seconds"]
    none = planned(monkeypatch, capsys, str(file), "--policy", "none", "--bandwidth", "10Mbit", "--epochs", "2")
    assert none["cuts"] == [{"name": "input", "share": 1.0}]
    assert none["predicted_seconds"] == pytest.approx(2 * 50_000 * 0.088, rel=0.01)
    small = planned(monkeypatch, capsys, str(file), "--policy", "cut1", "--batch-size", "1")
    large = planned(monkeypatch, capsys, str(file), "--policy", "cut1", "--batch-size", "5000")
    assert small["predicted_seconds"] < large["predicted_seconds"]


def test_plan_explains_itself(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "plan", str(file), "--policy", "all") == 0
    text = capsys.readouterr().out
    assert text.startswith("plan all: 100% output\n  - every sample: cut at output, 8 kB on the link")


def test_a_profile_of_somebody_else_needs_four_numbers_per_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = ("name", "out_bytes", "server_seconds", "client_seconds")
    rows = (("input", 110_000, 0.0001, 0.004), ("layer3", 401_408, 0.0021, 0.0009), ("output", 8_192, 0.003, 0.0001))
    document: dict[str, Any] = {"input_bytes": 110_000, "cuts": [dict(zip(figures, row, strict=True)) for row in rows]}
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(document))
    mix = planned(monkeypatch, capsys, str(path), "--bandwidth", "2Gbit")
    assert [cut["name"] for cut in mix["cuts"]] == ["input", "layer3", "output"]
    assert mix["predicted_seconds"] <= (1 + MOST_GIVEN + 1e-4) * mix["limit_seconds"]
    assert any("does not say how many" in reason for reason in mix["reasons"])

    misspelt = {**document, "memory": 1, "link": {"bandwidth_bits_per_s": 2e9, "delay": 1}}
    misspelt["cuts"] = [{**cut, "flop": 1} for cut in document["cuts"]]
    path.write_text(json.dumps(misspelt))
    assert run(monkeypatch, "plan", str(path), "--json") == 0
    captured = capsys.readouterr()
    assert "Not known, and not used: cuts.flop, link.delay, memory." in captured.err
    assert json.loads(captured.out)["cuts"] == mix["cuts"]


def test_memory_leaves_cuts_out(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(file.read_text())
    for cut, server, client in zip(document["cuts"], (0, 10, 12), (10, 2, 0), strict=True):
        cut |= {"server_bytes_per_sample": server, "client_bytes_per_sample": client}
    document |= {"batch_size": 100, "weight_bytes": 50}

    def cuts(*arguments: str, **memory: int) -> set[str]:
        file.write_text(json.dumps({**document, **memory}))
        return {
            cut["name"] for cut in planned(monkeypatch, capsys, str(file), "--bandwidth", "2Gbit", *arguments)["cuts"]
        }

    assert cuts() == {"input", "cut1", "output"}
    assert cuts(server_memory_bytes=61) == {"input", "cut1"}  # 50 of weights, one sample at a time
    assert cuts(server_memory_bytes=59) == {"input"}
    assert cuts("--bandwidth", "1Gbit", client_memory_bytes=1049) == {"cut1", "output"}  # 50 of weights, a batch of 100
    assert cuts("--batch-size", "99", client_memory_bytes=1049) == {"input", "cut1", "output"}
    file.write_text(json.dumps({**document, "server_memory_bytes": 59, "client_memory_bytes": 49}))
    assert {cut["name"] for cut in planned(monkeypatch, capsys, str(file), "--policy", "all")["cuts"]} == {"output"}
    file.write_text(json.dumps({**document, "server_memory_bytes": 59, "client_memory_bytes": 1049}))
    assert run(monkeypatch, "plan", str(file)) == 2
    assert "fits in memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("{}", [], "'cuts' must be a list"),
        ("not json", [], "not JSON"),
        (None, [], "cannot be read"),
        ("valid", ["--policy", "best"], "unknown policy 'best'"),
        ("valid", ["--bandwidth", "fast"], "not a rate"),
        ("valid", ["--batch-size", "0"], "batch-size"),
        ("no link", [], "--bandwidth 1Gbit"),
    ],
)
def test_bad_input_ends_with_2(
    content: str | None,
    arguments: list[str],
    message: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is None:
        file.unlink()
    elif content == "no link":
        file.write_text(
            json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "link"})
        )
    elif content != "valid":
        file.write_text(content)
    assert run(monkeypatch, "plan", str(file), *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_profile_measures_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plot = write_folder(tmp_path / "photos"), tmp_path / "plot.png"
    arguments = ["--data", str(folder), "--plot", str(plot), "--batch-size", "4", "--json"]
    code = run(monkeypatch, "profile", "example_images:model", *arguments)
    captured = capsys.readouterr()
    assert code == 0
    profile = Profile.loads(captured.out)
    assert profile.samples == 10
    assert profile.batch_size == 4
    assert profile.link is None
    for wanted in ("this machine was measured as both tiers", "assumes 1 Gbit/s", "plan mix", "drawn:"):
        assert wanted in captured.err.replace("\n", " ")
    assert plot.read_bytes()[:4] == b"\x89PNG"
    saved = tmp_path / "profile.json"
    saved.write_text(captured.out)
    assert planned(monkeypatch, capsys, str(saved), "--bandwidth", "100mbit")["predicted_seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "plot.docx"], "must end in"),
        (["--plot", "/no/such/folder/plot.png"], "folder does not exist"),
        (["--bandwidth", "quick"], "not a rate"),
    ],
)
def test_profile_refuses_before_it_measures(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "profile", "no.such:model", "--data", "/no/such/folder", *arguments) == 2
    assert message in capsys.readouterr().err
