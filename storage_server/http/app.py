"""The FastAPI application around a service: routes, error answers, probes, and an end in good order."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import hapi
from hapi.cancel import CancelledWork
from hapi.errors import BusyError, HapiError, InputError
from hapi.settings import StoreSettings
from storage_server.http import problems
from storage_server.http.middleware import BodyLimit, RequestCounter
from storage_server.http.routes import Credentials, Shell, router, shell_of
from storage_server.service import Service
from storage_server.settings import ServerSettings

log = logging.getLogger(__name__)

DESCRIPTION = """
Runs the frozen part of a network next to the object store, and streams its features.

1. `PUT /v1/models/{digest}` uploads a captured backbone, once.
2. `POST /v1/datasets` registers a folder or bucket prefix below a root of this server, and answers its digest.
3. `POST /v1/extract` streams the features of some samples at one cut, as an Arrow IPC stream.

Errors are `application/problem+json`; their `type` is a stable name, their `detail` a sentence that says what to do.
"""


def create_app(settings: ServerSettings, store_settings: StoreSettings | None = None) -> FastAPI:
    """The storage server as an ASGI application; InputError if the settings cannot work.

    Its threads run from now until its lifespan ends.
    """
    return app_of(Service(settings, store_settings))


def app_of(service: Service) -> FastAPI:
    """The application of a service that exists already; it is closed when the application's lifespan ends."""
    shell = Shell(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.admission.drain(0)
            service.close()
            shell.close()

    app = FastAPI(title="HAPI storage server", version=hapi.__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.shell = shell
    app.add_middleware(BodyLimit, max_bytes=service.settings.max_body_bytes, tokens=service.tokens)
    app.add_middleware(RequestCounter, metrics=service.metrics)
    app.include_router(router())
    _add_errors(app)
    _add_probes(app)
    return app


def _add_probes(app: FastAPI) -> None:
    @app.get("/healthz", tags=["server"], summary="The process is alive")
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz", tags=["server"], summary="The server takes requests (503 while it is about to stop)")
    async def readyz(request: Request) -> dict[str, bool]:
        if shell_of(request).service.admission.draining:
            raise BusyError("this server is about to stop.", 5.0)
        return {"ready": True}

    @app.get("/metrics", tags=["server"], summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request, credentials: Credentials) -> Response:
        """Open, unless the tokens file has a `metrics_token`; only then, or without tenants, are tenants named."""
        service = shell_of(request).service
        service.tokens.check_metrics(credentials.credentials if credentials else None)
        return Response(service.render_metrics(), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HapiError)
    async def known(request: Request, error: HapiError) -> Response:
        draining = isinstance(error, BusyError) and shell_of(request).service.admission.draining
        return problems.from_error(error, 503 if draining else None)

    @app.exception_handler(CancelledWork)
    @app.exception_handler(ClientDisconnect)
    async def ended(request: Request, error: Exception) -> Response:
        """The caller left, and sees nothing of this; or the server is about to stop, and the caller is told so."""
        log.info("request %s %s ended early: %s", request.method, request.url.path, error)
        return problems.from_error(BusyError("this server is about to stop. Ask another one.", 5.0), 503)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problems.problem(InputError.kind, 422, problems.sentence(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        detail = f"{request.method} {request.url.path}: {error.detail}. The routes are listed at /docs."
        return problems.problem("bad-input", error.status_code, detail, error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        mark = secrets.token_hex(4)
        log.error("request %s %s failed (%s)", request.method, request.url.path, mark)
        detail = f"the server failed on its side ({type(error).__name__}). Its log tells more; look for {mark}."
        return problems.problem(HapiError.kind, 500, detail)
