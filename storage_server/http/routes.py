"""REST API v1: a thin shell that turns requests into calls of the service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from hapi.cancel import Cancel
from hapi.errors import TooLargeError
from hapi.units import format_bytes
from hapi.wire.protocol import (
    API,
    ARCHIVE_TYPE,
    ARROW_STREAM,
    PROBLEM_JSON,
    DatasetRequest,
    DatasetSummary,
    Digest,
    ExtractRequest,
    ModelInfo,
    ModelList,
    Problem,
    ProfileRequest,
    ServerStatus,
)
from storage_server.access.auth import Tenant
from storage_server.http.slots import Slots, SlottedStream
from storage_server.http.streaming import AnswerStream, watched
from storage_server.http.threads import started_threads
from storage_server.http.uploads import store_upload
from storage_server.service import PROFILE_SECONDS, Service

T = TypeVar("T")
LINK_PIECE = 2**20

_bearer = HTTPBearer(auto_error=False, description="The tenant's token; not asked for when the server has none.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


class Shell:
    """What the routes need besides the service: threads for what blocks, and how much may happen at once."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self.service = service
        self.answers = started_threads(settings.max_requests, "hapi-answer")
        self.blocking = started_threads(8, "hapi-blocking")
        self.uploads = Slots(4, "uploads")
        self.probes = Slots(4, "bandwidth probes")
        self.listings = Slots(4, "dataset listings")
        self.noise = os.urandom(LINK_PIECE)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Runs what may block in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.blocking, work, *args)

    def close(self) -> None:
        self.answers.shutdown(cancel_futures=True)
        self.blocking.shutdown(cancel_futures=True)


def shell_of(request: Request) -> Shell:
    return request.app.state.shell


async def room_of(request: Request) -> Shell:
    """A coroutine, as the tenant is: what is none would be run in a thread."""
    return shell_of(request)


async def tenant_of(request: Request, credentials: Credentials) -> Tenant:
    """Whose request this is; UnauthorizedError."""
    return shell_of(request).service.tokens.tenant(credentials.credentials if credentials else None)


Caller = Annotated[Tenant, Depends(tenant_of)]
Room = Annotated[Shell, Depends(room_of)]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for error answers. FastAPI would say application/json of a `model`."""
    content = {PROBLEM_JSON: {"schema": Problem.model_json_schema()}}
    return {status: {"content": content} for status in (401, *statuses)}


def router() -> APIRouter:
    """All routes below /v1."""
    api = APIRouter(prefix=API)

    @api.put(
        "/models/{digest}",
        tags=["models"],
        summary="Upload a model archive",
        response_model=ModelInfo,
        responses={201: {"model": ModelInfo, "description": "It is new."}, **problems(409, 413, 422, 429, 507)},
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "The file that hapi.save_archive writes.",
                "content": {ARCHIVE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def put_model(digest: Digest, request: Request, tenant: Caller, shell: Room) -> Response:
        with shell.uploads.one():
            info, is_new = await store_upload(shell.service.models, digest, tenant.name, request, shell.run)
        return JSONResponse(info.model_dump(mode="json"), 201 if is_new else 200)

    @api.get("/models/{digest}", tags=["models"], summary="Describe a model and its cuts", responses=problems(404, 422))
    async def get_model(digest: Digest, tenant: Caller, shell: Room) -> ModelInfo:
        return await shell.run(shell.service.models.info, digest)

    @api.head("/models/{digest}", tags=["models"], summary="Ask whether a model is here", responses=problems(404, 422))
    async def head_model(digest: Digest, tenant: Caller, shell: Room) -> Response:
        await shell.run(shell.service.models.info, digest)
        return Response()

    @api.delete(
        "/models/{digest}",
        tags=["models"],
        summary="Forget a model that you uploaded; requests that use it finish",
        status_code=204,
        responses=problems(404, 422),
    )
    async def delete_model(digest: Digest, tenant: Caller, shell: Room) -> None:
        await shell.run(shell.service.models.remove, digest, tenant.name)

    @api.get("/models", tags=["models"], summary="List the models that you uploaded", responses=problems())
    async def list_models(tenant: Caller, shell: Room) -> ModelList:
        return ModelList(models=await shell.run(shell.service.models.archives.list, tenant.name))

    @api.post(
        "/datasets",
        tags=["datasets"],
        summary="Register a dataset: its manifest is made, or brought up to date, and kept",
        responses=problems(403, 404, 422, 429, 502, 503),
    )
    async def post_dataset(body: DatasetRequest, tenant: Caller, shell: Room) -> DatasetSummary:
        with shell.listings.one():
            return await shell.run(shell.service.register, body.uri, tenant, body.refresh)

    @api.get(
        "/datasets/{digest}",
        tags=["datasets"],
        summary="The manifest of a dataset: every sample with its key, label and version",
        response_class=Response,
        responses={
            200: {
                "description": "An Arrow IPC stream that hapi.data.Manifest.from_bytes reads.",
                "content": {ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}}},
            },
            **problems(403, 404, 422, 429),
        },
    )
    async def get_dataset(digest: Digest, tenant: Caller, shell: Room) -> Response:
        with shell.listings.one():
            manifest = await shell.run(shell.service.datasets.manifest, digest, tenant)
            return Response(await shell.run(manifest.to_bytes), media_type=ARROW_STREAM)

    @api.post(
        "/extract",
        tags=["features"],
        summary="Stream the features of some samples at one cut",
        response_class=Response,
        responses={
            200: {
                "description": "An Arrow IPC stream with the columns index, label, features (fixed-shape tensor) or "
                "object, and error. It is complete only with its end-of-stream marker.",
                "content": {ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}}},
            },
            **problems(403, 404, 413, 422, 429, 503, 507),
        },
    )
    async def post_extract(body: ExtractRequest, tenant: Caller, shell: Room) -> Response:
        service = shell.service

        def begin(cancel: Cancel) -> Any:
            return service.extract(body, tenant, cancel)

        seconds = service.predicted_seconds(body)
        return AnswerStream(
            begin, shell.answers, service.admission, service.metrics, ARROW_STREAM, tenant.flow, seconds
        )

    @api.post(
        "/profile",
        tags=["features"],
        summary="Measure every cut of a model on this server",
        description="Answers a TierProfile: seconds and bytes per sample for the part before and after each cut, and "
        "for reading and decoding.",
        response_class=JSONResponse,
        responses=problems(403, 404, 422, 429, 503, 507),
    )
    async def post_profile(body: ProfileRequest, request: Request, tenant: Caller, shell: Room) -> Response:
        service = shell.service
        async with watched(request.receive) as cancel, service.admission.turn(cancel, tenant.flow, PROFILE_SECONDS):
            loop = asyncio.get_running_loop()
            measured = await loop.run_in_executor(shell.answers, service.profile, body, tenant, cancel)
        return JSONResponse(measured.to_json())

    @api.get("/status", tags=["server"], summary="What the server is doing", responses=problems())
    async def get_status(tenant: Caller, shell: Room) -> ServerStatus:
        return shell.service.status(tenant)

    @api.get(
        "/link",
        tags=["server"],
        summary="Bandwidth probe: so many bytes that cannot be compressed",
        response_class=Response,
        responses={200: {"content": {ARCHIVE_TYPE: {}}}, **problems(413, 422, 429)},
    )
    async def get_link(
        tenant: Caller, shell: Room, count: Annotated[int, Query(alias="bytes", ge=0, examples=[1048576])]
    ) -> Response:
        most = shell.service.settings.max_link_bytes
        if count > most:
            raise TooLargeError(f"a probe of {format_bytes(count)}: at most {format_bytes(most)}. Ask for less.")

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, count, LINK_PIECE):
                yield shell.noise[: min(LINK_PIECE, count - start)]

        return SlottedStream(shell.probes, pieces(), ARCHIVE_TYPE, count)

    return api
