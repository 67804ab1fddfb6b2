"""Receiving a model archive: streamed to the disk, with a limit, off the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request

from hapi.errors import InputError
from hapi.wire.protocol import ModelInfo
from storage_server.library.models import ModelStore, Upload

PIECE = 2**20
"""Bytes gathered before a thread writes them."""


async def store_upload(
    models: ModelStore, digest: str, tenant: str, request: Request, run: Callable[..., Awaitable[Any]]
) -> tuple[ModelInfo, bool]:
    """Receives the body of `request` as the archive `digest`; answers what it is, and whether it was new.

    TooLargeError, DigestMismatchError or ArchiveError; whatever happens, nothing half-received stays on the disk.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit():
        models.archives.check_size(int(declared))
    upload: Upload = await run(Upload, models, digest, tenant)
    try:
        gathered = bytearray()
        async for chunk in request.stream():
            gathered += chunk
            if len(gathered) >= PIECE:
                await run(upload.write, gathered)
                gathered = bytearray()
        await run(upload.write, gathered)
        if not upload.size:
            raise InputError("the upload has no body. Send the file that hapi.save_archive writes.")
        return await run(upload.finish)
    finally:
        upload.close()
