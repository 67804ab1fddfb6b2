"""Which photographs are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench.photographs import choose, count, enough, mean_bytes, photographs
from hapi.data.folder import IMAGE_EXTENSIONS
from hapi.errors import InputError


def make(folder: Path, **counts: int) -> Path:
    for name, amount in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(amount):
            (folder / name / f"{number:03d}.JPG").write_bytes(name.encode() * (number + 1))
    return folder


def test_every_class_gives_its_part(tmp_path: Path) -> None:
    folder = make(tmp_path, rose=30, tulip=60, weed=10)
    (folder / "rose" / "notes.txt").write_text("not a photograph")
    chosen = choose(folder, 10)
    assert [path.parent.name for path in chosen] == ["rose"] * 3 + ["tulip"] * 6 + ["weed"]
    assert len(choose(folder, 1000)) == 100


def test_all_that_a_training_would_take_is_taken(tmp_path: Path) -> None:
    (tmp_path / "rose").mkdir()
    for ending in IMAGE_EXTENSIONS:
        (tmp_path / "rose" / f"photograph{ending}").touch()
    assert {path.suffix for path in choose(tmp_path, 100)} == set(IMAGE_EXTENSIONS)


def test_they_lie_in_a_folder_of_their_own_and_are_gone_afterwards(tmp_path: Path) -> None:
    folder = make(tmp_path, rose=4, tulip=4)
    with photographs(str(folder), 4) as place:
        names = sorted(path.parent.name for path in place.glob("*/*"))
        assert names == ["rose", "rose", "tulip", "tulip"]
        assert mean_bytes(place) == (4 + 12 + 5 + 15) / 4
    assert not place.exists()
    assert len(list(folder.glob("*/*"))) == 8


def test_where_there_are_too_few_all_come_again_under_further_names(tmp_path: Path) -> None:
    folder = make(tmp_path, rose=2, tulip=1)
    with enough(folder, 7) as place:
        assert count(place) == 7
        contents = sorted(path.read_bytes() for path in place.glob("*/*"))
        assert contents == sorted([b"rose"] * 3 + [b"roserose"] * 2 + [b"tulip"] * 2)
    with enough(folder, 2) as place:
        assert count(place) == 2


def test_synthetic_ones_are_about_100_kb() -> None:
    with photographs(None, 10) as place:
        assert 70e3 < mean_bytes(place) < 140e3
        assert len(list(place.glob("*/*.jpg"))) == 10


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no photographs"), photographs(str(tmp_path), 4):
        pass
