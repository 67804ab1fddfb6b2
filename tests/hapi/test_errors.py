"""The tree of errors: each travels by its kind, pickles, and ends the command line with its code."""

from __future__ import annotations

import pickle

import pytest

from hapi import errors
from hapi.errors import BusyError, HapiError, InputError, ServiceError, from_kind

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HapiError)]


def test_kinds_are_unique() -> None:
    kinds = [cls.kind for cls in CLASSES]
    assert len(set(kinds)) == len(kinds) > 20


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_travels_by_its_kind_and_pickles(cls: type[HapiError]) -> None:
    error = from_kind(cls.kind, "dataset s3://x: gone. Name another.")
    assert type(error) is cls
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is cls
    assert str(copy) == "dataset s3://x: gone. Name another."
    assert cls.exit_code in (1, 2)


def test_bad_input_ends_with_2() -> None:
    assert {cls.exit_code for cls in CLASSES if issubclass(cls, InputError)} == {2}
    assert HapiError.exit_code == 1


def test_a_newer_servers_error_is_a_service_error() -> None:
    error = from_kind("quota-exceeded", "too much")
    assert type(error) is ServiceError
    assert str(error) == "too much"


def test_busy_keeps_when_to_come_back() -> None:
    copy = pickle.loads(pickle.dumps(BusyError("full", 7.5)))  # noqa: S301 - our own bytes
    assert (str(copy), copy.retry_after_seconds) == ("full", 7.5)
    assert BusyError("full").retry_after_seconds == 1.0
