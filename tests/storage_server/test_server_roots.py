"""Which addresses a client may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hapi.errors import ForbiddenError, InputError
from storage_server.access.roots import Roots


@pytest.mark.parametrize(
    "uri",
    ["s3://photos", "s3://photos/train", "s3://photos/train/", "S3://photos/train/cats", "s3://photos//train"],
)
def test_what_lies_below_a_bucket_is_admitted(uri: str) -> None:
    assert Roots(["s3://photos"]).admit(uri).startswith("s3://photos")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://photos-private/train",
        "s3://photos",
        "s3://photos/trainer",
        "s3://other/train",
        "file:///photos/train",
        "/photos/train",
    ],
)
def test_what_does_not_is_forbidden_by_whole_segments(uri: str) -> None:
    with pytest.raises(ForbiddenError, match="not below a root"):
        Roots(["s3://photos/train"]).admit(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://photos/train/../secret",
        "s3://photos/./train",
        "http://169.254.169.254/latest",
        "https://evil.example/x",
        "ftp://photos",
        "photos/train",
        "../secret",
        "~/secret",
        "",
        "s3://",
        "file://otherhost/photos",
        "/photos\0/x",
    ],
)
def test_addresses_that_are_none_are_refused_and_never_opened(uri: str) -> None:
    with pytest.raises((InputError, ForbiddenError)):
        Roots(["s3://photos", "/photos"]).admit(uri)


def test_dots_in_a_path_are_resolved_before_it_is_compared(tmp_path: Path) -> None:
    (tmp_path / "open" / "in").mkdir(parents=True)
    (tmp_path / "closed").mkdir()
    roots = Roots([str(tmp_path / "open")])
    assert roots.admit(f"{tmp_path}/open/in/../in") == (tmp_path / "open" / "in").as_uri()
    for escape in (f"{tmp_path}/open/../closed", f"file://{tmp_path}/open/%2e%2e/closed", f"{tmp_path}/openness"):
        with pytest.raises(ForbiddenError):
            roots.admit(escape)


def test_a_link_out_of_the_root_is_an_escape_and_a_link_to_the_root_is_not(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "open" / "link").symlink_to(tmp_path / "closed")
    (tmp_path / "alias").symlink_to(tmp_path / "open")
    roots = Roots([str(tmp_path / "alias")])
    assert roots.admit(str(tmp_path / "open")) == (tmp_path / "open").as_uri()
    with pytest.raises(ForbiddenError):
        roots.admit(str(tmp_path / "open" / "link"))


def test_the_root_of_the_machine_admits_every_folder() -> None:
    assert Roots(["/"]).admit("/usr/share") == "file:///usr/share"
