"""A folder as an object store."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hapi.backoff import RetryPolicy, again
from hapi.data.stores.base import ObjectInfo, check_key, check_range
from hapi.errors import AccessDeniedError, ObjectNotFoundError, StoreError, StoreUnavailableError
from hapi.files import write_whole

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What a system says to whoever has too much open, or too little memory, whichever file is asked for."""
PATIENCE = RetryPolicy(patience_seconds=5.0, first_seconds=0.05, longest_seconds=0.5)
"""With a shortage, until the others have done and closed what they read."""
_LINKS_TO_OPEN = "/proc/self/fd" if hasattr(os, "O_PATH") and os.path.isdir("/proc/self/fd") else None
"""Where Linux tells which file each descriptor is of."""


class LocalStore:
    """The files below one folder. Symbolic links are followed as far as they stay below it (or with `follow_links`)."""

    def __init__(self, root: str | os.PathLike[str], *, follow_links: bool = False) -> None:
        self._root = os.path.abspath(os.path.expanduser(os.fspath(root)))
        self._follow_links = follow_links
        self._real_root = os.path.realpath(self._root)

    @property
    def uri(self) -> str:
        return Path(self._root).as_uri()

    @property
    def follows_links(self) -> bool:
        """Also those that lead out of the folder."""
        return self._follow_links

    def __repr__(self) -> str:
        return f"LocalStore({self._root!r})"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix:
            check_key(prefix, self.uri)
        if not os.path.isdir(self._root):
            if os.path.exists(self._root):
                raise ObjectNotFoundError(
                    f"{self._root} is a file, not a folder. Name the folder that holds it; a dataset may also be a "
                    "list of files (.csv, .jsonl or .parquet)."
                )
            raise ObjectNotFoundError(f"folder {self._root} does not exist. Check the path.")
        top = prefix.rpartition("/")[0]
        if top and not os.path.isdir(self._path(top)):
            return
        yield from self._walk(top, prefix, ())

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        data = again(partial(self._read, key, offset, length), PATIENCE)
        if length is not None and len(data) != length:
            raise StoreError(
                f"{self.uri}/{key}: {length} bytes from {offset} were asked for, the file holds {len(data)} of them. "
                "It changed since it was listed; list the dataset again."
            )
        return data

    def _read(self, key: str, offset: int, length: int | None) -> bytes:
        """In few calls of the system: after each, a thread has to wait for Python's lock again."""
        with self._errors(key), self._opened(key) as descriptor:
            left = max(0, os.fstat(descriptor).st_size - offset) if length is None else length
            parts: list[bytes] = []
            while left and (part := os.pread(descriptor, left, offset)):
                parts.append(part)
                offset, left = offset + len(part), left - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        """The file, open for reading, once it is known to lie inside: the one that was looked at, whatever links are
        made meanwhile."""
        path, place = self._joined(key), None
        try:
            if _LINKS_TO_OPEN is not None and not self._follow_links:
                try:
                    place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # which does nothing to what is there
                except OSError:
                    self._check_inside(path, key)  # of what lies outside not even that it is missing is told
                    raise
                path = f"{_LINKS_TO_OPEN}/{place}"
                self._check_below(os.readlink(path), key)
            else:
                self._check_inside(path, key)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            if place is not None:
                os.close(place)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._errors(key):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_whole(Path(path), data)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(ObjectNotFoundError), self._errors(key):
            os.unlink(path)

    def info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with self._errors(key):
            if os.path.isdir(path):
                raise ObjectNotFoundError(f"{self.uri}/{key} is a folder, not a file.")
            return _info(key, os.stat(path))

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def _path(self, key: str) -> str:
        path = self._joined(key)
        self._check_inside(path, key)
        return path

    def _joined(self, key: str) -> str:
        return os.path.join(self._root, check_key(key, self.uri))

    def _check_inside(self, path: str, key: str) -> None:
        if not self._follow_links:
            self._check_below(os.path.realpath(path), key)

    def _check_below(self, real: str, key: str) -> None:
        if _is_below(real, self._real_root):
            return
        self._real_root = os.path.realpath(self._root)  # the root may be a link, which now leads elsewhere
        if not _is_below(real, self._real_root):
            raise AccessDeniedError(
                f"{self.uri}/{key} is a link that leads out of the folder. "
                "Copy the files, or set HAPI_FILE_FOLLOW_LINKS=1 if you trust every link below it."
            )

    def _walk(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[ObjectInfo]:
        path = os.path.join(self._root, folder)
        with self._errors(folder or "."):
            try:
                status = os.stat(path)
                with os.scandir(path) as scan:
                    entries = list(scan)
            except FileNotFoundError:
                if not folder:
                    raise
                return  # removed since the folder above was read
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            raise StoreError(f"{self.uri}/{folder} is a link to a folder above it: an endless walk. Remove the link.")
        if not entries and folder and (folder + "/").startswith(prefix):
            yield ObjectInfo(folder + "/", 0, "")
        for entry in entries:
            key = f"{folder}/{entry.name}" if folder else entry.name
            with self._errors(key):
                if entry.is_symlink():
                    self._check_inside(entry.path, key)
                is_folder = entry.is_dir()
                if is_folder:
                    wanted = (key + "/").startswith(prefix) or prefix.startswith(key + "/")
                else:
                    wanted = key.startswith(prefix) and entry.is_file()
                details = None
                if wanted and not is_folder:
                    with contextlib.suppress(FileNotFoundError):  # removed or renamed since the folder was read
                        details = entry.stat()
            if details is not None:
                yield _info(key, details)
            elif wanted and is_folder:
                yield from self._walk(key, prefix, (*above, identity))

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turns what the operating system says into the errors of a store."""
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ObjectNotFoundError(f"{self.uri}/{key} does not exist. Check the path.") from error
        except PermissionError as error:
            raise AccessDeniedError(
                f"{self.uri}/{key}: permission denied. Run as a user who may read (or write) it."
            ) from error
        except OSError as error:
            if error.errno in SHORTAGES:
                raise StoreUnavailableError(
                    f"{self.uri}/{key}: {error.strerror}, which says nothing of the file. "
                    "Allow this process more open files (ulimit -n) or memory, or let it do less at once."
                ) from error
            raise StoreError(f"{self.uri}/{key}: {error.strerror or error}.") from error


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")
