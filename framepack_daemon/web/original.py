"""The endpoints of the original system, with its paths, fields, defaults and status words.

A client of it works unchanged; what was wrong there is not kept: ranges are enforced, a second cancel is no error, 503
means that the queue cannot take jobs, and a video is announced when it is published. Media and streams have modules of
their own.
"""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from framepack_daemon import loras
from framepack_daemon.job import State
from framepack_daemon.spool import moves
from framepack_daemon.web import entering, forms, media, views
from framepack_daemon.web.gateway import Here
from framepack_daemon.web.jobs import Rows
from framepack_daemon.web.models import (
    EXAMPLE_JOB,
    Accepted,
    Cleaned,
    JobId,
    JobStatus,
    Loras,
    Message,
    QueueList,
    Result,
    WorkerStatus,
    said,
)
from framepack_daemon.web.problems import documented
from framepack_daemon.web.uploads import received

router = APIRouter(tags=["original"])
UPLOAD = documented(408, 413, 415, 422, 429, 503)


def form(schema: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a form itself."""
    content = {"schema": schema, "encoding": {"image": {"contentType": forms.PICTURES}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


@router.post("/generate", responses=UPLOAD, openapi_extra=form(forms.schema()))
async def generate(request: Request, here: Here) -> Accepted:
    """Put a picture into the queue. The answer comes at once; the video later.

    With seed -1 a seed is drawn, so that the same form twice makes two videos; with another it is the same job.
    """
    async with received(request, here, files=("image",)) as upload:
        jobs = await run_in_threadpool(entering.enter, here, forms.fields(upload.fields), upload)
    return Accepted(job_id=jobs[0], message=await run_in_threadpool(entering.told, here, jobs[0]))


@router.get("/status/{job_id}", responses=documented(404, 422))
def status(here: Here, job_id: JobId) -> JobStatus:
    """How far a job is."""
    return JobStatus(**views.wire(here.body(job_id)))


@router.get("/result/{job_id}", responses=documented(404, 422))
def result(here: Here, job_id: JobId) -> Result:
    """Where the video of a completed job is, and its first frame."""
    media.video_of(here, job_id)
    jpeg = media.thumbnail_of(here, job_id)
    url = views.summary(here.body(job_id))["video_url"]
    return Result(video_url=url, thumbnail_base64=base64.b64encode(jpeg).decode() if jpeg else None)


@router.post("/cancel/{job_id}", responses=documented(404, 409, 422, 503) | said(f"{EXAMPLE_JOB}: cancelled"))
def cancel(here: Here, job_id: JobId) -> Message:
    """End a job that waits or runs. One that is completed or cancelled already stays so, and the answer says it."""
    return Message(message=moves.cancel(here.queue, job_id))


@router.get("/queue", responses=documented(422))
def queue(here: Here, limit: Rows = 100) -> QueueList:
    """The jobs that run, those that wait, in their order, and the newest of those that ended."""
    return QueueList(**here.overview(limit))


@router.get("/worker/status")
def worker_status(here: Here) -> WorkerStatus:
    """Whether a daemon works on the queue, and on which job."""
    running = sorted(here.queue.names(State.PROCESSING))
    return WorkerStatus(is_running=here.daemon_runs(), processing_job_id=running[0] if running else None)


@router.post("/cleanup_jobs", responses=documented(503) | said("2 jobs removed", removed=2))
def cleanup_jobs(here: Here) -> Cleaned:
    """Remove the files of the oldest ended jobs beyond `FRAMEPACK_WEB_MAX_COMPLETED_JOBS`; their videos stay."""
    here.expect()
    keep = here.web.max_completed_jobs
    pruned = moves.prune(here.queue, here.outputs, keep=keep, older_than_seconds=None, videos=False, forget=False)
    count = len(pruned)
    return Cleaned(message=f"{count} {'job' if count == 1 else 'jobs'} removed", removed=count)


@router.get("/loras")
def lora_files(here: Here) -> Loras:
    """The LoRA files that a request can name."""
    return Loras(loras=[name for name in loras.names(here.settings.loras_dir) if name.isprintable()])
