"""What probes and Prometheus ask."""

from __future__ import annotations

import os
from typing import Literal

import structlog
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from framepack_daemon.errors import FolderAwayError
from framepack_daemon.printable import printable
from framepack_daemon.spool import troubles
from framepack_daemon.web.gateway import Here
from framepack_daemon.web.problems import GatewayError, documented

router = APIRouter(tags=["health"])

_log = structlog.get_logger(__name__)


class Health(BaseModel):
    """The gateway answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The queue takes jobs; what may keep them from running."""

    daemon: bool = Field(examples=[True], description="Whether a daemon on this machine holds the queue.")
    paused: bool
    troubles: list[str] = Field(examples=[[]], description="What fails for the daemon; its log says why.")


class NotReadyError(GatewayError):
    """The queue cannot take jobs."""

    code = "not_ready"
    status = 503
    retryable = True
    retry_seconds = 10


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the gateway lives; asks no folder and wants no token."""
    return Health()


@router.get("/readyz", responses=documented(503))
def readyz(here: Here) -> Readiness:
    """Whether the queue can take jobs; wants no token, and tells of no path."""
    try:
        here.expect()
        here.queue.make()
        ready = os.access(here.queue.building, os.W_OK | os.X_OK)
    except (FolderAwayError, OSError) as error:
        _log.warning("queue_not_ready", reason=str(error))
        ready = False
    if not ready:
        raise NotReadyError("the queue is away or cannot be written", hint="the gateway's log says why")
    runs = here.daemon_runs()
    found = troubles.read(here.settings.work_dir / troubles.FILE) if runs else []
    return Readiness(daemon=runs, paused=here.queue.paused, troubles=[printable(each["what"]) for each in found])


@router.get("/metrics", response_class=Response, responses={
    200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."},
})  # fmt: skip
def metrics(here: Here) -> Response:
    """Numbers about the gateway; those of queue and workers are the daemon's."""
    return Response(here.numbers.text(), media_type="text/plain; version=0.0.4")
