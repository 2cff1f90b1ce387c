"""The gateway's application: routes, guards, and the feed that lives as long as it does.

Made anew for each process; nothing is kept between two. The page's routes join the API's here.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from framepack_daemon import __version__
from framepack_daemon.errors import FolderAwayError
from framepack_daemon.request import Request as Sidecar
from framepack_daemon.settings import Settings
from framepack_daemon.web import events, health, jobs, media, original, page, problems
from framepack_daemon.web.gateway import Gateway
from framepack_daemon.web.guard import Guard, TokenGate
from framepack_daemon.web.numbers import Counting
from framepack_daemon.web.settings import WebSettings

ROUTERS = (original.router, jobs.router, media.router, events.router, health.router)
_HEADERS = ("Authorization", "Content-Type", "Last-Event-ID", "If-None-Match", "Range")
_EXPOSED = ("ETag", "Content-Range", "Accept-Ranges", "Retry-After")

_log = structlog.get_logger(__name__)


def create(settings: Settings, web: WebSettings) -> FastAPI:
    """The application on the folders that `settings` name."""
    gateway = Gateway(settings, web)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            gateway.expect()
            gateway.queue.make()
        except (FolderAwayError, OSError) as error:  # it serves what can be read, and says so in /readyz
            _log.warning("queue_not_ready", reason=str(error))
        async with gateway.feed.running():
            yield

    app = FastAPI(
        title="framepack-daemon",
        version=__version__,
        summary="Pictures in, videos out: a queue of folders, over HTTP.",
        lifespan=lifespan,
        docs_url=None,  # both pages would be loaded from another host
        redoc_url=None,
        middleware=_middleware(gateway),
    )
    app.state.gateway = gateway
    problems.install(app)
    common = (401, 403) if web.token else (403,)
    for router in ROUTERS:
        app.include_router(router, responses=problems.documented(*common))
    page.install(app)
    _describe(app)
    return app


def _middleware(gateway: Gateway) -> list[Middleware]:
    """From the outside in; a preflight asks before it has a token."""
    web = gateway.web
    gates = [
        Middleware(Counting, numbers=gateway.numbers),
        Middleware(Guard, hosts=(web.host, *web.hosts), origins=web.cors_origins),
    ]
    if web.cors_origins:
        gates.append(
            Middleware(
                CORSMiddleware,
                allow_origins=web.cors_origins,
                allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
                allow_headers=_HEADERS,
                expose_headers=_EXPOSED,
            )
        )
    if web.token:
        gates.append(Middleware(TokenGate, token=web.token.get_secret_value()))
    return gates


def _describe(app: FastAPI) -> None:
    """Put the schema of a sidecar into the app's OpenAPI."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            described = plain()
            sidecar = Sidecar.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = sidecar.pop("$defs", {})
            described["components"]["schemas"] |= parts | {"Sidecar": sidecar}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend it
