"""Who may do what: tenants, their bearer tokens, and the dataset roots that each may read.

The tokens file is TOML:

    metrics_token = "..."               # optional: /metrics then asks for it

    [tenants.alice]
    token = "..."                       # at least 16 characters; or token_sha256 = "<64 hex digits>"
    roots = ["s3://photos/alice"]       # optional: without it every root of the server
    share = 2.0                         # optional: part of a busy server relative to others, 1 unless said
    operator = true                     # optional: sees every tenant in /v1/status

Tokens are kept as SHA-256 digests, compared in constant time, and never logged or shown.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import tomllib
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from hapi.errors import InputError, UnauthorizedError
from storage_server.access.roots import Roots
from storage_server.scheduling.fair import Flow

MIN_TOKEN_LENGTH = 16
MIN_SHARE, MAX_SHARE = 0.01, 100.0


@dataclass(frozen=True)
class Tenant:
    """One authenticated client and the roots it may read.

    `share` is its part of a busy server, relative to the shares of others; an operator sees all tenants' status.
    """

    name: str
    roots: Roots
    share: float = 1.0
    is_operator: bool = False

    @property
    def flow(self) -> Flow:
        """Under which its work is scheduled."""
        return Flow(self.name, self.share)


@dataclass(frozen=True)
class TokenTable:
    """Tokens and whose they are. Without tenants everybody is `local`, who may read every root of the server."""

    everyone: Tenant
    tenants: tuple[tuple[bytes, Tenant], ...] = field(default=(), repr=False)
    metrics_digest: bytes | None = field(default=None, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether no token is asked for."""
        return not self.tenants

    def tenant(self, token: str | None) -> Tenant:
        """Whose token this is; UnauthorizedError if nobody's. Takes equally long for every answer."""
        if self.is_open:
            return self.everyone
        if not token:
            raise UnauthorizedError("this server asks for a token. Pass token=..., or set HAPI_TOKEN.")
        digest = _digest(token)
        found = None
        for known, tenant in self.tenants:
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise UnauthorizedError("this server does not know that token. Ask its operator for a valid one.")
        return found

    def check_metrics(self, token: str | None) -> None:
        """UnauthorizedError if /metrics has a token of its own and this is not it."""
        if self.metrics_digest is not None and not hmac.compare_digest(self.metrics_digest, _digest(token or "")):
            raise UnauthorizedError("/metrics asks for its own token here: metrics_token of the tokens file.")


def load_tokens(path: Path | None, server_roots: Roots, *, follow_links: bool = False) -> TokenTable:
    """Reads the tokens file; InputError names what is wrong with it, never a token."""
    everyone = Tenant("local", server_roots, is_operator=True)
    if path is None:
        return TokenTable(everyone)
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"tokens file {path}: {error.strerror}. Pass --tokens FILE with the tenants.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"tokens file {path}: not TOML ({error}).") from None
    unknown = set(document) - {"tenants", "metrics_token"}
    entries = document.get("tenants")
    if unknown or not isinstance(entries, dict) or not entries:
        raise InputError(
            f"tokens file {path}: needs tables [tenants.NAME] and may have metrics_token"
            + (f"; it also has {', '.join(sorted(unknown))}." if unknown else ".")
        )
    table: list[tuple[bytes, Tenant]] = []
    for name, entry in entries.items():
        where = f"tokens file {path}, tenant {name!r}"
        digest, roots = _read_entry(entry, where)
        allowed = server_roots if roots is None else Roots(roots, follow_links=follow_links)
        if strangers := allowed.outside(server_roots):
            raise InputError(f"{where}: {', '.join(strangers)} is below no --root of this server.")
        if any(known == digest for known, _ in table):
            raise InputError(f"{where}: has the token of another tenant. Give each its own.")
        table.append((digest, Tenant(name, allowed, *_rank(entry, where))))
    metrics = document.get("metrics_token")
    return TokenTable(everyone, tuple(table), None if metrics is None else _checked(metrics, f"tokens file {path}"))


def check_binding(host: str, table: TokenTable) -> None:
    """InputError if strangers could reach a server that asks for no token."""
    if table.is_open and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached by others, and no tokens are set. "
            'Pass --tokens FILE, a TOML file with [tenants.NAME] and token = "..." for each, '
            "or --host 127.0.0.1 for this machine only."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name that is not `localhost` counts as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _read_entry(entry: Any, where: str) -> tuple[bytes, list[str] | None]:
    if not isinstance(entry, dict) or set(entry) - {"token", "token_sha256", "roots", "share", "operator"}:
        raise InputError(f"{where}: may have token or token_sha256, roots, share and operator; nothing else.")
    roots = entry.get("roots")
    if roots is not None and not (isinstance(roots, list) and roots and all(isinstance(root, str) for root in roots)):
        raise InputError(f"{where}: roots must be a list of addresses, or absent for all roots of the server.")
    if ("token" in entry) == ("token_sha256" in entry):
        raise InputError(f"{where}: needs either token or token_sha256.")
    if "token" in entry:
        return _checked(entry["token"], where), roots
    stored = entry["token_sha256"]
    if not isinstance(stored, str) or not re.fullmatch(r"[0-9a-f]{64}", stored):
        raise InputError(f"{where}: token_sha256 must be 64 lower-case hexadecimal digits.")
    return bytes.fromhex(stored), roots


def _rank(entry: dict[str, Any], where: str) -> tuple[float, bool]:
    """(share, whether it is an operator) of a tenant's table."""
    share, is_operator = entry.get("share", 1.0), entry.get("operator", False)
    if isinstance(share, bool) or not isinstance(share, int | float) or not MIN_SHARE <= share <= MAX_SHARE:
        raise InputError(f"{where}: share must be a number from {MIN_SHARE} to {MAX_SHARE:g}; 1 is the usual one.")
    if not isinstance(is_operator, bool):
        raise InputError(f"{where}: operator must be true or false.")
    return float(share), is_operator


def _checked(token: Any, where: str) -> bytes:
    if not isinstance(token, str) or len(token) < MIN_TOKEN_LENGTH or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise InputError(
            f"{where}: a token must be {MIN_TOKEN_LENGTH} or more printable ASCII characters without spaces; "
            "`openssl rand -hex 32` makes a good one."
        )
    return _digest(token)


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()
