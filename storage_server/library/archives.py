"""Model archives on disk: by digest, within a number of bytes, with what is known of each and who sent it."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ValidationError

from hapi.errors import TooLargeError
from hapi.files import Draft, remove_leftovers, write_whole
from hapi.units import format_bytes
from hapi.wire.protocol import ModelInfo

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")


class _Card(BaseModel):
    """What stands beside an archive, so that a restarted server need not load it to describe it."""

    info: ModelInfo
    tenants: list[str]


class ArchiveStore:
    """A folder of `<digest>.hapi` archives, each with its `<digest>.json` card. Thread-safe.

    A digest is as hard to guess as a token, so whoever names it may use the model; listing and removing is for the
    tenants who sent it.
    """

    def __init__(self, folder: Path, max_model_bytes: int, max_total_bytes: int) -> None:
        self._folder = folder
        self._max_model_bytes = max_model_bytes
        self._max_total_bytes = max_total_bytes
        self._lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)

    @property
    def folder(self) -> Path:
        return self._folder

    def check_size(self, count: int) -> None:
        """TooLargeError if an archive of `count` bytes is more than is taken."""
        if count > self._max_model_bytes:
            raise TooLargeError(
                f"the model archive has more than {format_bytes(self._max_model_bytes)}, the most that is taken here. "
                "Send a smaller model, or have HAPI_SERVER_MAX_MODEL_BYTES raised."
            )

    def path(self, digest: str) -> Path | None:
        """Where the archive lies, and marks it as used just now; None if it is not here."""
        path = self._archive(digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def info(self, digest: str) -> ModelInfo | None:
        """What is known of the archive; None if it is not here."""
        card = self._card(digest)
        return card.info if card is not None and self._archive(digest).exists() else None

    def list(self, tenant: str) -> list[ModelInfo]:
        """The models that `tenant` sent, by name."""
        cards = [self._card(path.stem) for path in self._folder.glob("*.hapi")]
        mine = [card.info for card in cards if card is not None and tenant in card.tenants]
        return sorted(mine, key=lambda info: (info.name, info.digest))

    def add(self, draft: Draft, info: ModelInfo, tenant: str, in_use: Collection[str] = ()) -> set[str]:
        """Takes a checked archive in; older ones that nobody uses make room for it. Answers the digests of these."""
        with self._lock:
            removed = self._make_room(draft.size, {*in_use, info.digest})
            draft.commit(self._archive(info.digest))
            self._write(_Card(info=info, tenants=[tenant]), tenant)
            return removed

    def remove(self, digest: str) -> None:
        """Removes an archive, whoever sent it: what is left of it is of no use."""
        with self._lock:
            self._remove(digest)

    def claim(self, digest: str, tenant: str) -> None:
        """Notes that `tenant` sent this archive, too."""
        with self._lock:
            card = self._card(digest)
            if card is not None and tenant not in card.tenants:
                self._write(card, tenant)

    def release(self, digest: str, tenant: str) -> bool | None:
        """Takes back what `tenant` sent. True: the archive is gone; False: others sent it, too; None: not its own."""
        with self._lock:
            card = self._card(digest)
            if card is None or tenant not in card.tenants:
                return None
            left = [name for name in card.tenants if name != tenant]
            if left:
                write_whole(self._card_path(digest), _Card(info=card.info, tenants=left).model_dump_json().encode())
                return False
            self._remove(digest)
            return True

    def _write(self, card: _Card, tenant: str) -> None:
        known = self._card(card.info.digest)
        tenants = sorted({*card.tenants, *(known.tenants if known else ()), tenant})
        data = _Card(info=card.info, tenants=tenants).model_dump_json().encode()
        write_whole(self._card_path(card.info.digest), data)

    def _make_room(self, wanted: int, keep: Collection[str]) -> set[str]:
        removed: set[str] = set()
        found = [(path.stat(), path) for path in self._folder.glob("*.hapi")]
        total = sum(status.st_size for status, _ in found) + wanted
        for status, path in sorted(found, key=lambda pair: pair[0].st_mtime_ns):
            if total <= self._max_total_bytes:
                break
            if path.stem not in keep:
                log.info("removing model %s to make room", path.stem[:12])
                self._remove(path.stem)
                removed.add(path.stem)
                total -= status.st_size
        if total > self._max_total_bytes:
            raise TooLargeError(
                f"the models on this server may take {format_bytes(self._max_total_bytes)}, and those in use leave no "
                f"room for {format_bytes(wanted)}. Remove models, or have HAPI_SERVER_MAX_CACHE_BYTES raised."
            )
        return removed

    def _remove(self, digest: str) -> None:
        self._archive(digest).unlink(missing_ok=True)
        self._card_path(digest).unlink(missing_ok=True)

    def _card(self, digest: str) -> _Card | None:
        path = self._card_path(digest)
        try:
            return _Card.model_validate(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, ValidationError) as error:
            log.warning("the card of model %s cannot be read: %s", digest[:12], error)
            return None

    def _archive(self, digest: str) -> Path:
        return self._folder / f"{_checked(digest)}.hapi"

    def _card_path(self, digest: str) -> Path:
        return self._folder / f"{_checked(digest)}.json"


def _checked(digest: str) -> str:
    """The digest, which is about to be part of a path."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is not a SHA-256 digest")
    return digest
