"""A user's new file: whole or absent, and errors of its content are not called errors of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from compute_client.files import whole_file, write_whole
from hapi.errors import BatchTimeoutError, HapiError, InputError


def test_whole_or_absent(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    for target in (tmp_path / "none" / "file", tmp_path):
        with pytest.raises(InputError):
            write_whole(target, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("trouble", "kind", "says"),
    [
        (OSError(28, "No space left on device"), HapiError, r"new: cannot be written \(No space left on device\)"),
        (BatchTimeoutError("no batch within 5 s."), BatchTimeoutError, r"^no batch within 5 s\.$"),
    ],
)
def test_what_goes_wrong_while_it_is_written_is_said_as_what_it_is(
    tmp_path: Path, trouble: Exception, kind: type[HapiError], says: str
) -> None:
    def write() -> None:
        with whole_file(tmp_path / "new") as unfinished:
            unfinished.write_bytes(b"a part")
            raise trouble

    with pytest.raises(kind, match=says) as caught:
        write()
    assert type(caught.value) is kind
    assert list(tmp_path.iterdir()) == []
