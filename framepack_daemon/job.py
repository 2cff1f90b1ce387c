"""What a job is: its states, its id, and the records that lie in its directory.

A job is a directory named by its content; the folder it stands in is its state. Pure: no I/O, and no knowledge of where
the folders are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

ID_DIGITS = 12  # hex digits of the content's SHA-256 in a job id
MAX_STEM_BYTES = 100  # leaves room for ".status.json" and temporary names within the 255 bytes of a file name
JOB_ID = re.compile(rf"(?P<stem>[^/\x00]+)-(?P<content>[0-9a-f]{{{ID_DIGITS}}})")

REQUEST_FILE = "job.json"  # the effective request: itself a valid sidecar, never edited
RUN_FILE = "run.json"
OUTCOME_FILE = "outcome.json"
DEFAULTS_FILE = "defaults.json"  # the folder's preset as it was when the drop was taken
LATENTS_FILE = "latents.safetensors"  # of a done job that keeps its end, so that another can continue it
CONTINUED_STEM = "continued"  # of the copies of another job's files that this one begins with
CONTINUED_FILE = f"{CONTINUED_STEM}.safetensors"  # the end of that job
OWN_FILES = frozenset({REQUEST_FILE, RUN_FILE, OUTCOME_FILE, DEFAULTS_FILE, LATENTS_FILE})


class State(StrEnum):
    """Where a job stands; the value is the name of the folder."""

    PENDING = "pending"  # waits for a worker
    PROCESSING = "processing"  # a worker renders it, or its video is being published
    DONE = "done"  # its video is published
    FAILED = "failed"  # refused, failed or cancelled; outcome.json says which


class Outcome(StrEnum):
    """How a job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Role(StrEnum):
    """What a file is to its job; part of what the job id is drawn from."""

    IMAGE = "image"
    END_FRAME = "end_frame"
    VIDEO = "video"  # begins the job with its last frame, in place of an image
    LATENTS = "latents"  # the end of the job that is continued, a copy made at intake
    SIDECAR = "sidecar"  # the .json, or the .txt where there is no .json
    DEFAULTS = "defaults"
    ASIDE = "aside"  # taken along without effect: a .txt beside a .json, a member of a refused drop


@dataclass(frozen=True)
class JobFile:
    """A file of a job directory, as it was when it was taken."""

    role: Role
    name: str  # in the job directory
    original: str  # as dropped
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Continued:
    """The job that another one continues, and what follows from it."""

    job: str
    width: int  # pixels of its video
    height: int  # pixels of its video
    model: str


@dataclass(frozen=True)
class Run:
    """`run.json`: what the daemon keeps of a job besides the request. Times are UTC, ISO 8601."""

    job: str
    files: tuple[JobFile, ...]
    submitted_at: str
    queued_at: str  # its place in the queue: later when it was interrupted or retried
    priority: int = 0
    attempts: int = 0  # started without finishing a section since
    started_at: str | None = None
    variation: int | None = None  # which of the drop's variations, from 0
    continued: Continued | None = None  # the job whose end lies here as a copy
    videos: tuple[str, ...] = ()  # SHA-256 of videos published by earlier runs of this job

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Run:
        """The record in a parsed `run.json`; TypeError, KeyError or ValueError when it is not one."""
        files = tuple(JobFile(**(item | {"role": Role(item["role"])})) for item in value["files"])
        continued = Continued(**value["continued"]) if value.get("continued") else None
        run = cls(**(value | {"files": files, "continued": continued, "videos": tuple(value.get("videos", ()))}))
        # People edit the priority; what is no number there must not stop the queue.
        for number in (run.priority, run.attempts):
            if not isinstance(number, int):
                raise TypeError(f"{number!r} is not a whole number")
        for text in (run.job, run.queued_at, *(item.name for item in files)):
            if not isinstance(text, str) or "/" in text or text in ("", ".", ".."):
                raise ValueError(f"{text!r} is neither a name nor a time")
        return run

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON."""
        return asdict(self)

    def file(self, role: Role) -> JobFile | None:
        """The file of that role, if the job has one."""
        return next((item for item in self.files if item.role == role), None)

    def requeued(self, **changes: Any) -> Run:
        """The record of the job at the end of the queue of its priority."""
        return replace(self, queued_at=now(), **changes)


def failure(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The `outcome.json` of a job that failed by `problem`, which has a message, and a code and a hint."""
    return {
        "outcome": Outcome.FAILED,
        "message": problem["message"],
        "error": {key: problem.get(key, "") for key in ("code", "message", "hint")},
        "finished_at": now(),
    }


def now(later_microseconds: int = 0) -> str:
    """The time, or one a little later, as it stands in every record: UTC, ISO 8601, so that texts sort as times do."""
    time = datetime.now(UTC) + timedelta(microseconds=later_microseconds)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def job_id(stem: str, content: str) -> str:
    """The id of a job whose content has that SHA-256 (hex)."""
    return f"{safe_stem(stem)}-{content[:ID_DIGITS]}"


def safe_stem(stem: str) -> str:
    """`stem` as a path and URL can carry it: letters of any script and digits stay, the rest becomes `-`."""
    text = unicodedata.normalize("NFC", stem)
    kept = "".join(char if _carries(char, before) else "-" for before, char in zip(f"-{text}", text, strict=False))
    kept = re.sub(r"-{2,}", "-", kept).strip("-.")
    return kept.encode()[:MAX_STEM_BYTES].decode(errors="ignore").strip("-.") or "job"


def _carries(char: str, before: str) -> bool:
    """Whether a stem may keep the character; a mark (as in emoji) only on a letter or digit that is kept too."""
    kind = unicodedata.category(char)[0]
    return kind in "LN" or char in "_." or (kind == "M" and unicodedata.category(before)[0] in "LNM")


def stored_name(original: str) -> str:
    """The name of a dropped file in its job directory: its own, unless one of the daemon's records is called so."""
    hidden = original.startswith(".")
    return f"dropped-{original}" if original.casefold() in OWN_FILES or hidden else original
