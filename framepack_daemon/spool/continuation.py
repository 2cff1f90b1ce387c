"""What a job continues: a video beside its sidecar, or the end that a done job has kept.

`continue_from` names one or the other. Of a job the picture and the latents are copied when the drop is taken, so that
what is made of them needs the other job no more. Reads the queue; copies and moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framepack_daemon import atomic
from framepack_daemon.aliases import canonical
from framepack_daemon.errors import DropError, RequestError
from framepack_daemon.job import (
    CONTINUED_FILE,
    CONTINUED_STEM,
    JOB_ID,
    LATENTS_FILE,
    OUTCOME_FILE,
    REQUEST_FILE,
    Continued,
    Outcome,
    Role,
    State,
)
from framepack_daemon.spool import names
from framepack_daemon.spool.capture import DropChangedError
from framepack_daemon.spool.queue import Queue
from framepack_daemon.strict_json import shorten

FIELD = "continue_from"
TINY = "tiny"  # the model whose latents no other understands


class SourceRunsError(DropChangedError):
    """The job that is to be continued is not done yet; nothing was taken."""

    code = "source_runs"


@dataclass(frozen=True)
class Ending:
    """A done job that can be continued."""

    of: Continued
    files: tuple[tuple[Role, str, Path], ...]  # to be copied, in this order: role, name of the copy, where it is


def lay_over(
    continued: Continued, fields: dict[str, Any], preset: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sidecar's fields and its folder's with what the other video decides; RequestError where a field differs."""
    own, under = canonical(fields), canonical(preset)
    width, height, job = continued.width, continued.height, continued.job
    if own.get("resolution") is not None:
        raise RequestError(f"resolution: the video goes on with the {width}x{height} of {job}", hint="remove it")
    if (own.get("width", width), own.get("height", height)) != (width, height):
        raise RequestError(
            f"width and height: the video goes on with the {width}x{height} of {job}", hint="remove them"
        )
    model = own.get("model") or under.get("model") or continued.model
    if TINY in (model, continued.model) and model != continued.model:
        raise RequestError(
            f"model: {model} cannot go on from what {continued.model} made in {job}",
            hint=f"remove it, or write {continued.model}",
        )
    return fields | {"width": width, "height": height}, {"model": continued.model} | under


def misnamed(stem: str, named: str) -> DropError | None:
    """Why what a sidecar of that stem continues can be nothing of the kind, by its name alone."""
    if names.is_video(named):
        read_name = names.read(named)
        if read_name is not None and read_name.stem == stem:
            return None
        return DropError(
            f"{FIELD}: {shorten(named)} is not called like its sidecar",
            hint=f"call the video {stem}{Path(named).suffix}, put it beside {stem}.json, and write that name",
        )
    if JOB_ID.fullmatch(named):
        return None
    return DropError(
        f"{FIELD}: {shorten(named)} is neither the id of a job nor the name of a video",
        hint=f"write an id like beach-1f3a9c02d4e5, or {stem}.mp4 and put that video beside the sidecar",
    )


def waits_for(queue: Queue, job: str) -> str:
    """What a drop that continues that job waits for, in words; empty when the job is not on its way."""
    state = queue.state_of(job)
    return f"{job} to be done: it is {state}" if state in (State.PENDING, State.PROCESSING) else ""


def find(queue: Queue, job: str, stem: str) -> Ending:
    """The job of that id, ready to be continued by a drop of that stem.

    Raises `SourceRunsError` while it is not done, RequestError when it never can be continued as it is.
    """
    if waits := waits_for(queue, job):
        raise SourceRunsError(f"{FIELD}: waits for {waits}", hint="try again when it is done")
    state = queue.state_of(job)
    if state is None:
        raise RequestError(f"{FIELD}: there is no job {job}", hint="`framepack-daemon status` lists the jobs")
    folder = queue.path(state, job)
    outcome = atomic.read_json(folder / OUTCOME_FILE) or {}
    if state is State.FAILED:
        ended = "was cancelled" if outcome.get("outcome") == Outcome.CANCELLED else "failed"
        raise RequestError(
            f"{FIELD}: {job} has no video, it {ended}",
            hint=f"`framepack-daemon retry {job}`, and drop the sidecar again",
        )
    video = outcome.get("video") or {}
    mend = (
        f"copy outputs/{video.get('file') or f'{job}.mp4'} to {stem}.mp4 beside the sidecar, "
        f'and write "{FIELD}": "{stem}.mp4"'
    )
    request, run = atomic.read_json(folder / REQUEST_FILE), queue.run(state, job)
    begins = run and (run.file(Role.IMAGE) or run.file(Role.VIDEO))
    if request is None or not begins or not (folder / begins.name).exists():
        raise RequestError(f"{FIELD}: {job} was pruned", hint=mend)
    if not (folder / LATENTS_FILE).exists() or not {"width", "height"} <= video.keys():
        raise RequestError(
            f"{FIELD}: {job} kept nothing to go on from",
            hint=f'render it again with "keep_latents": true; or {mend}',
        )
    copy = f"{CONTINUED_STEM}{Path(begins.name).suffix}"
    return Ending(
        Continued(job, video["width"], video["height"], str(request.get("model"))),
        # The latents first: where a crash leaves no latents, nothing was copied.
        ((Role.LATENTS, CONTINUED_FILE, folder / LATENTS_FILE), (begins.role, copy, folder / begins.name)),
    )
