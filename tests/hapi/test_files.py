"""Files that are written whole or not at all: what is a leftover and what is not."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from hapi.files import Draft, draft, remove_leftovers, write_whole


def test_a_whole_file_or_none(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_whole(target, b"old")
    with draft(tmp_path) as file:
        file.write(b"new")  # and is not committed
    assert target.read_bytes() == b"old"
    write_whole(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_are_removed_but_not_what_is_being_written_nor_what_nobody_may_remove(tmp_path: Path) -> None:
    (tmp_path / ".dead.part").write_bytes(b"of a process that died")
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "kept").write_bytes(b"")
    with draft(tmp_path) as file:
        assert remove_leftovers(tmp_path) == 1
        assert set(tmp_path.iterdir()) == {tmp_path / "folder.part", tmp_path / "kept", file.path}
        file.commit(tmp_path / "done")
    assert remove_leftovers(tmp_path) == 0


def test_a_draft_that_was_taken_for_a_leftover_before_it_was_locked_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = fcntl.flock, []

    def late(file: Any, how: int) -> None:
        """Another process looks for leftovers just before the lock."""
        if not removed:
            removed.append(None)
            assert remove_leftovers(tmp_path) == 1
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", late)
    file = Draft(tmp_path)
    file.write(b"all of it")
    file.commit(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"all of it"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
