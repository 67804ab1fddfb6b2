"""Tenants and their tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hapi.errors import InputError, UnauthorizedError
from storage_server.access.auth import TokenTable, check_binding, is_loopback, load_tokens
from storage_server.access.roots import Roots

ALICE, BOB, METRICS = "alice-secret-0123456789", "bob-secret-0123456789", "metrics-secret-0123456789"
SERVER = Roots(["s3://photos", "/data"])
FILE = f"""
metrics_token = "{METRICS}"
[tenants.alice]
token = "{ALICE}"
roots = ["s3://photos/alice"]
[tenants.bob]
token_sha256 = "{hashlib.sha256(BOB.encode()).hexdigest()}"
"""


@pytest.fixture
def table(tmp_path: Path) -> TokenTable:
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    return load_tokens(path, SERVER)


def test_each_token_belongs_to_its_tenant_with_its_roots(table: TokenTable) -> None:
    assert table.tenant(ALICE).name == "alice"
    assert table.tenant(ALICE).roots.uris == ("s3://photos/alice",)
    assert table.tenant(BOB).name == "bob"
    assert table.tenant(BOB).roots.uris == SERVER.uris


def test_a_tenant_may_have_a_share_and_be_an_operator(tmp_path: Path, table: TokenTable) -> None:
    path = tmp_path / "ranks.toml"
    path.write_text(f'[tenants.a]\ntoken = "{ALICE}"\nshare = 2\noperator = true')
    ranked = load_tokens(path, SERVER).tenant(ALICE)
    assert (ranked.share, ranked.is_operator) == (2.0, True)
    assert (table.tenant(ALICE).share, table.tenant(ALICE).is_operator) == (1.0, False)


@pytest.mark.parametrize("token", [None, "", "wrong", ALICE + "x", ALICE[:-1], METRICS, "\udcff"])
def test_any_other_token_is_nobodys(table: TokenTable, token: str | None) -> None:
    with pytest.raises(UnauthorizedError):
        table.tenant(token)


def test_metrics_have_a_token_of_their_own(table: TokenTable) -> None:
    table.check_metrics(METRICS)
    for token in (None, ALICE):
        with pytest.raises(UnauthorizedError):
            table.check_metrics(token)


def test_tokens_are_not_shown(table: TokenTable) -> None:
    shown = repr(table) + str(table.tenant(ALICE))
    assert ALICE not in shown
    assert hashlib.sha256(ALICE.encode()).hexdigest() not in shown
    assert hashlib.sha256(ALICE.encode()).digest() not in shown.encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs tables"),
        ("tenants = 3", "needs tables"),
        ("[tenants]", "needs tables"),
        ("[tenants.a", "not TOML"),
        (f'[tenants.a]\ntoken = "{ALICE}"\nshare = 0', "share must be a number from 0.01"),
        (f'[tenants.a]\ntoken = "{ALICE}"\nshare = true', "share must be a number"),
        (f'[tenants.a]\ntoken = "{ALICE}"\noperator = 1', "operator must be true or false"),
        ("[tenants.a]", "needs either"),
        ('[tenants.a]\ntoken = "short-token"', "16 or more"),
        ('[tenants.a]\ntoken = "with a space 0123456789"', "16 or more"),
        ('[tenants.a]\ntoken_sha256 = "abc"', "64 lower-case"),
        (f'[tenants.a]\ntoken = "{ALICE}"\ntoken_sha256 = "{"0" * 64}"', "needs either"),
        (f'[tenants.a]\ntoken = "{ALICE}"\nroot = "s3://photos"', "nothing else"),
        (f'[tenants.a]\ntoken = "{ALICE}"\nroots = []', "list of addresses"),
        (f'[tenants.a]\ntoken = "{ALICE}"\nroots = ["s3://elsewhere"]', "below no --root"),
        (f'[tenants.a]\ntoken = "{ALICE}"\n[tenants.b]\ntoken = "{ALICE}"', "token of another"),
        (f'[tenants.a]\ntoken = "{ALICE}"\n[other]', "also has other"),
    ],
)
def test_a_wrong_tokens_file_is_explained_without_a_token(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        load_tokens(path, SERVER)
    assert ALICE not in str(caught.value)


def test_a_missing_tokens_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml"):
        load_tokens(tmp_path / "absent.toml", SERVER)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_tokens(host: str) -> None:
    assert is_loopback(host)
    check_binding(host, load_tokens(None, SERVER))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "storage", "localhost.example.org"])
def test_other_addresses_do(host: str, table: TokenTable) -> None:
    with pytest.raises(InputError, match="--tokens"):
        check_binding(host, load_tokens(None, SERVER))
    check_binding(host, table)
