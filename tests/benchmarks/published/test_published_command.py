"""`hapi bench published` with results, without, and with some that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kept_rows import e2e, keep, keep_all, tenants
from PIL import Image

from hapi import cli


@pytest.fixture
def photographs(tmp_path: Path) -> str:
    folder = tmp_path / "photographs" / "one"
    folder.mkdir(parents=True)
    Image.effect_noise((256, 256), 60).save(folder / "noise.jpg")
    return str(folder.parent)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "published", "--model", "torchvision:squeezenet1_1", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_every_figure_has_a_table_and_a_plot(
    tmp_path: Path, photographs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").mkdir()
    keep_all(tmp_path / "kept")
    assert run(monkeypatch, "--data", photographs, "--results", str(tmp_path / "kept"), "--report",
               str(tmp_path / "page"), "--json") == 0  # fmt: skip
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["name"] for row in rows} == {"time", "bytes", "batches", "tenants", "quality"}
    assert all(row["published_text"] and row["ours_text"] and row["says"] for row in rows)
    names = {path.stem for path in (tmp_path / "page").glob("*.png")}
    assert names == {"time", "bytes", "batches", "tenants", "quality"}


def test_what_is_missing_is_named_with_the_command_that_makes_it(
    tmp_path: Path, photographs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, "e2e", e2e())
    assert run(monkeypatch, "--data", photographs, "--results", str(tmp_path)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Split quality: nothing of ours to compare" in printed
    assert f"hapi bench sweep --json > {tmp_path}/sweep.json" in printed
    assert "Run time against bandwidth: nothing of ours" not in printed
    assert "Run time against bandwidth: no result of ours is kept for resnet18, resnet50" in printed
    assert "missing: hapi bench e2e --model torchvision:vgg19" in printed


def test_tenants_that_failed_are_not_left_out(
    tmp_path: Path, photographs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, "tenants", [{**row, "failures": 2, "failed": row["system"] == "ours"} for row in tenants()])
    assert run(monkeypatch, "--data", photographs, "--results", str(tmp_path), "--json") == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["name"] == "tenants"]
    assert {row["says"] for row in rows} == {"ours fails for 2"}


@pytest.mark.parametrize("text", ["{", "[]", '{"scenario": "e2e", "machine": {}}', '{"machine": {}, "rows": [1]}'])
def test_a_file_that_is_no_result_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text(text)
    assert run(monkeypatch, "--results", str(tmp_path)) == 2
    assert "other.json" in capsys.readouterr().err


def test_a_folder_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--results", str(tmp_path / "nowhere")) == 2
    assert "not a folder" in capsys.readouterr().err
