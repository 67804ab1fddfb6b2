"""Which faults are tried on whom, and what is said of how a training ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.bench.report import draw
from benchmarks.bench.rows import Row
from benchmarks.faults.bucket import change
from benchmarks.faults.experiment import Settings, more_or_less
from benchmarks.faults.faults import FAULTS, HUNG, end_of, stood, survived
from benchmarks.faults.lab import Lab
from benchmarks.faults.plots import plots
from benchmarks.faults.training import Ended, Training
from benchmarks.testbed.processes import ProgramFailedError
from hapi.errors import InputError


class UndisturbedLab:
    """All that judging needs of a lab."""

    def __init__(self) -> None:
        before = Ended(0, {"losses": [2.0, 1.0], "epoch_seconds": [3.0, 3.0]})
        self.undisturbed = {"mix": before, "plain": before}


LAB = cast("Lab", UndisturbedLab())


def after(*losses: float, **values: Any) -> Ended:
    return Ended(0, {"losses": list(losses), "epoch_seconds": [3.0, 5.0], "retries": 2, **values})


def test_equal_losses_are_what_ours_promises() -> None:
    values = survived(LAB, "mix", after(2.0, 1.00001))
    assert (values["survived"], values["lost_seconds"], values["retries"]) == (True, 2.0, 2)
    assert "failed" not in values
    assert survived(LAB, "mix", after(2.0, 1.1))["failed"]
    broken = survived(LAB, "mix", Ended(1, words="unreachable: nobody answers"))
    assert (broken["failed"], broken["note"]) == (True, "unreachable: nobody answers")


def test_plain_promises_nothing_and_is_told() -> None:
    values = survived(LAB, "plain", Ended(1, words="ClientError: no such key"))
    assert (values["survived"], values["note"]) == (False, "ended with 1: ClientError: no such key")
    assert "failed" not in values
    assert stood(LAB, "plain", after(2.0, 1.0))["loss_difference"] == 0.0


def test_who_hangs_is_told_of_others_and_a_failure_of_ours() -> None:
    class Hanging:
        def end(self, seconds: float) -> Ended:
            raise ProgramFailedError("the training hung")

    hanging = cast("Training", Hanging())
    assert end_of(hanging, "plain") == Ended(HUNG, words="the training hung")
    with pytest.raises(ProgramFailedError):
        end_of(hanging, "mix")


def test_the_undisturbed_come_first_whatever_is_chosen() -> None:
    everything = Settings().chosen()
    assert everything[:2] == [("none", "mix"), ("none", "plain")]
    assert len(everything) == sum(len(fault.systems) for fault in FAULTS)
    assert Settings(faults=("killed for good",), systems=("mix",)).chosen() == [
        ("none", "mix"),
        ("server killed for good", "mix"),
    ]
    assert {system for _, system in Settings(quick=True).chosen()} == {"mix"}
    with pytest.raises(InputError, match="earthquake"):
        Settings(faults=("earthquake",)).chosen()
    with pytest.raises(InputError, match="theirs"):
        Settings(systems=("theirs",)).chosen()


def test_objects_are_lost_damaged_and_restored(tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    class Client:
        def __getattr__(self, name: str) -> Any:
            return lambda **words: asked.append((name, words))

    (tmp_path / "a.jpg").write_bytes(b"picture")
    change(Client(), "s3://bucket/in/here", {"do": "lose", "key": "cat/a.jpg"})
    change(Client(), "s3://bucket", {"do": "damage", "key": "cat/a.jpg"})
    change(Client(), "s3://bucket", {"do": "restore", "key": "cat/a.jpg", "file": str(tmp_path / "a.jpg")})
    assert asked[0] == ("delete_object", {"Bucket": "bucket", "Key": "in/here/cat/a.jpg"})
    assert asked[1][1]["Body"] != b"picture"
    assert asked[2] == ("put_object", {"Bucket": "bucket", "Key": "cat/a.jpg", "Body": b"picture"})


def test_the_picture_is_drawn_also_of_what_failed() -> None:
    pytest.importorskip("matplotlib")
    rows = [
        Row("faults", "mix", seconds=8.0).filled(fault="none", lost_seconds=0.0),
        Row("faults", "plain", seconds=7.0).filled(fault="store stopped", lost_seconds=-1.0),
        Row("faults", "mix", failed=True).filled(fault="server killed"),
    ]
    (plot,) = plots()
    assert draw(plot, rows)[0][:4] == b"\x89PNG"
    assert more_or_less(-1.04) == "-1.0 s"
