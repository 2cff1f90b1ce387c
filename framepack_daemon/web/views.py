"""A job as the API shows it: the original's words and numbers, made of a status file.

Texts come from dropped files and from whoever may write to the folders: what JSON or a terminal could stumble over is
escaped. Pure: reads no folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from framepack_daemon.errors import RequestError
from framepack_daemon.job import Outcome, State
from framepack_daemon.printable import printable
from framepack_daemon.request import build

Body = Mapping[str, Any]  # a status file


def word(body: Body) -> str:
    """The original's status word."""
    match body.get("state"):
        case State.DONE:
            return "completed"
        case State.FAILED if body.get("outcome") == Outcome.FAILED:
            return f"failed - {printable(_reason(body))}"
        case State.FAILED:
            return "cancelled"
    return str(body.get("state"))


def is_over(body: Body) -> bool:
    """Whether the job has ended."""
    return body.get("state") in (State.DONE, State.FAILED)


def wire(body: Body) -> dict[str, Any]:
    """What `GET /status/{job_id}` of the original answers."""
    rendered = body.get("outcome") == Outcome.COMPLETED and body.get("state") in (State.DONE, State.PROCESSING)
    now = _part(body, "progress")
    sections, steps = _number(now, "sections"), _number(now, "steps")
    step = max(_number(now, "section") - 1, 0) * steps + _number(now, "step")
    total = _planned(body) if rendered else sections * steps
    share = 1.0 if rendered else _number(now, "fraction")
    return {
        "job_id": printable(body["job"]),
        "status": word(body),
        "progress": round(100 * min(max(share, 0), 1)),
        "progress_step": int(total if rendered else min(step, total)),
        "progress_total": int(total),
        "progress_info": printable(_info(body, now)),
    }


def summary(body: Body) -> dict[str, Any]:
    """A job in a list."""
    request = _part(body, "request")
    error = _part(body, "error")
    job = quote(str(body["job"]), safe="", errors="replace")
    done = body.get("state") == State.DONE
    shown: dict[str, Any] = clean(
        {
            "state": body.get("state"),
            "outcome": body.get("outcome"),
            "message": body.get("message"),
            "hint": error.get("hint") or "",
            "prompt": request.get("prompt"),
            "seed": request.get("seed"),
            "priority": request.get("priority", 0),
            "eta_seconds": _part(body, "progress").get("eta_seconds"),
            "submitted_at": body.get("submitted_at"),
            "started_at": body.get("started_at"),
            "finished_at": body.get("finished_at"),
            "video": _part(body, "video").get("file") if done else None,
            "video_url": f"/download/video/{job}" if done else None,
            "preview_url": f"/preview/{job}" if body.get("preview") and not done else None,
            "thumbnail_url": f"/thumbnail/{job}",
        }
    )
    return wire(body) | shown


def clean(value: Any) -> Any:
    """`value` as JSON that everybody can read: texts printable, numbers finite."""
    if isinstance(value, Mapping):
        return {printable(key): clean(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, type(None))) else printable(value, keep="\n\t")


def _info(body: Body, now: Body) -> str:
    if body.get("state") != State.PROCESSING or not _number(now, "sections"):
        return str(body.get("message") or "")
    left = now.get("eta_seconds")
    words = f"section {now.get('section')}/{now.get('sections')}, step {now.get('step')}/{now.get('steps')}"
    return words if not isinstance(left, (int, float)) else f"{words}, {round(left)} s left"


def _planned(body: Body) -> int:
    """Sampling steps of all sections, by the request; the status of a job that is rendered no longer counts them."""
    try:
        request = build(dict(_part(body, "request")))
    except RequestError:
        return 0
    return request.sections * request.num_inference_steps


def _reason(body: Body) -> str:
    return str(_part(body, "error").get("message") or body.get("message") or "no reason was given")


def _part(body: Body, name: str) -> Body:
    """A part of a status file; nothing, where somebody else has written what is no object there."""
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _number(body: Body, name: str) -> float:
    value = body.get(name)
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return max(value, 0) if plain else 0  # type: ignore[type-var,return-value]
