"""Jobs beyond the original's endpoints: the sidecar's own schema, and the moves that the command line has too.

Every change is one rename, made by `spool.moves`; the daemon sees it as it sees a file manager's.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from framepack_daemon.errors import RequestError
from framepack_daemon.spool import moves
from framepack_daemon.spool.submit import retake
from framepack_daemon.strict_json import parse_json
from framepack_daemon.web import entering, views
from framepack_daemon.web.forms import FILE, PICTURES
from framepack_daemon.web.gateway import Here
from framepack_daemon.web.models import EXAMPLE_JOB, Accepted, AcceptedJobs, Change, JobId, JobSummary, Message, said
from framepack_daemon.web.problems import documented
from framepack_daemon.web.uploads import received

MAX_ROWS = 10_000
Rows = Annotated[int, Query(ge=1, le=MAX_ROWS, description="At most so many of each state.")]
FILES = ("image", "last_image", "video")
_FORM = {
    "type": "object",
    "required": ["sidecar"],
    "properties": {
        "sidecar": {"$ref": "#/components/schemas/Sidecar"},
        "image": FILE | {"description": "The picture that the video begins with."},
        "last_image": FILE | {"description": "The picture that it ends in."},
        "video": FILE | {"description": "In place of the picture: the video that it goes on from."},
    },
}
_ENCODING = {
    "sidecar": {"contentType": "application/json"},
    "image": {"contentType": PICTURES},
    "last_image": {"contentType": PICTURES},
    "video": {"contentType": "video/mp4"},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": _FORM, "encoding": _ENCODING}},
    }
}

router = APIRouter(tags=["jobs"])


@router.post("/jobs", responses=documented(404, 408, 413, 415, 422, 429, 503), openapi_extra=_BODY)
async def add(request: Request, here: Here) -> AcceptedJobs:
    """Put a picture into the queue, with every field that a sidecar has.

    The part `sidecar` is the JSON of a sidecar (`framepack-daemon schema`); `continue_from` in it, or a `video`, takes
    the place of the picture.
    """
    async with received(request, here, FILES) as upload:
        if "sidecar" not in upload.fields:
            raise RequestError("sidecar: is missing", hint='send a part called sidecar, like {"prompt": "waves"}')
        fields = parse_json(upload.fields["sidecar"].encode())
        jobs = await run_in_threadpool(entering.enter, here, fields, upload)
    return AcceptedJobs(job_id=jobs[0], message=await run_in_threadpool(entering.told, here, jobs[0]), job_ids=jobs)


@router.get("/jobs/{job_id}", responses=documented(404, 422))
def show(here: Here, job_id: JobId) -> dict[str, Any]:
    """The job's status file, in full."""
    shown: dict[str, Any] = views.clean(here.body(job_id))
    return shown


@router.patch("/jobs/{job_id}", responses=documented(400, 404, 409, 422, 503))
def change(here: Here, job_id: JobId, change: Change) -> JobSummary:
    """Give a job that waits another place in the line."""
    here.expect()
    moves.prioritise(here.queue, job_id, change.priority)
    return JobSummary(**here.summary(job_id))


@router.delete("/jobs/{job_id}", responses=documented(404, 409, 422, 503) | said(f"{EXAMPLE_JOB}: removed"))
def remove(here: Here, job_id: JobId) -> Message:
    """Take a job out of the queue for good, in whatever state. A video that was published stays."""
    here.expect()
    return Message(message=moves.remove(here.queue, job_id))


@router.post(
    "/interrupt/{job_id}",
    responses=documented(404, 409, 422, 503)
    | said(f"{EXAMPLE_JOB}: interrupted; it waits again and keeps what it has rendered"),
)
def interrupt(here: Here, job_id: JobId) -> Message:
    """Put a running job back into the line; what it has rendered is kept."""
    return Message(message=moves.interrupt(here.queue, job_id))


@router.post("/retry/{job_id}", responses=documented(404, 409, 422, 503))
def retry(
    here: Here,
    job_id: JobId,
    new_seed: Annotated[bool, Query(description="Make a new job of it, with a seed that is drawn.")] = False,
) -> Accepted:
    """Run a job that has ended once more."""
    here.expect()
    if not new_seed:
        return Accepted(job_id=job_id, message=moves.retry(here.queue, job_id))
    here.state(job_id)
    job = retake(here.queue, here.outputs, job_id, here.settings.model)[0]
    return Accepted(job_id=job, message=entering.told(here, job))


@router.post("/pause", responses=documented(503) | said("paused: jobs that wait stay waiting; what runs goes on"))
def pause(here: Here) -> Message:
    """Start no further job; what runs goes on."""
    here.expect()
    return Message(message=moves.pause(here.queue))


@router.post("/resume", responses=documented(503) | said("resumed"))
def resume(here: Here) -> Message:
    """Start jobs again."""
    return Message(message=moves.resume(here.queue))
