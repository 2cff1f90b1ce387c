"""What the page shows of the queue: read from the folders at the moment of asking, as rows that templates can show.

States and order come from the state folders; status files are read for the rows that are shown and for no other. What
orders ten thousand jobs is kept until their folder changes. Knows nothing of HTTP and of words.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from framepack_daemon.job import JOB_ID, Outcome, State
from framepack_daemon.printable import printable
from framepack_daemon.request import Request
from framepack_daemon.settings import Settings
from framepack_daemon.spool import status, troubles
from framepack_daemon.spool.groups import halves
from framepack_daemon.spool.lock import daemon_runs
from framepack_daemon.spool.queue import Queue

_HUGE = 1e9  # no number that the page shows is so large
WAITING, FINISHED, FAILED, HALVES = 50, 24, 12, 8  # rows shown of each kind
# What a job that the daemon keeps back says: why, and for a model that is not there the command that fetches it.
_HELD = "waits: "
_PULL = re.compile(r"framepack-daemon models pull [\w-]+", re.ASCII)


@dataclass(frozen=True)
class Card:
    """A job as the page shows it; its texts are safe to show, its addresses safe to link to."""

    key: str  # part of ids in the page: the same as long as the job is
    job: str
    name: str  # without the digits
    state: str  # of `State`, or cancelled
    place: str  # the path of the job within addresses
    position: int | None  # in the line of those that wait, from 1
    body: dict[str, Any]  # the status file
    left: str | None  # time, as a clock shows it
    video: str | None  # address
    preview: str | None  # address; another one whenever more is rendered

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for; empty where that was refused."""
        request: dict[str, Any] = self.body["request"]
        return request

    @property
    def settings(self) -> list[tuple[str, Any]]:
        """What was asked for beside the prompt, and what the daemon filled in."""
        known = [name for name in Request.model_fields if name != "prompt" and name in self.request]
        return [(name, self.request[name]) for name in known if self.request[name] not in ("", [], False, None)]


@dataclass(frozen=True)
class Board:
    """Everything that the page shows beside the form."""

    running: bool
    paused: bool
    troubles: list[tuple[str, str]]
    halves: list[tuple[str, str]]
    pulls: list[str]  # commands that fetch the models that jobs wait for
    held: bool  # jobs wait for something else that is missing or broken
    counts: dict[str, int]
    queue: list[Card]  # running ones, then those that wait
    failed: list[Card]
    finished: list[Card]


@dataclass
class Reader:
    """Reads one daemon's folders."""

    settings: Settings
    queue: Queue
    _kept: dict[State, tuple[int, tuple[int, list[str]]]] = field(default_factory=dict)

    def forget(self) -> None:
        """Read everything again: a record was changed, which changes no folder."""
        self._kept.clear()

    def board(self) -> Board:
        """How things stand."""
        settings, queue = self.settings, self.queue
        counts, shown = {}, {}
        for state in State:
            counts[str(state)], shown[state] = self._standing(state)
        running = daemon_runs(settings.queue_dir, settings.inbox)
        pending = [self.card(State.PENDING, job, place) for place, job in enumerate(shown[State.PENDING], start=1)]
        said = [str(card.body.get("message")) for card in pending] if running else []
        found = halves(settings.inbox, queue, (settings.outputs, settings.queue_dir, settings.work_dir))
        held = {text: _PULL.search(text) for text in said if text.startswith(_HELD)}
        return Board(
            running=running,
            paused=queue.paused,
            troubles=self._troubles(told=running),
            halves=[(printable(name), printable(reason)) for name, reason in found[:HALVES]],
            pulls=sorted({command[0] for command in held.values() if command}),
            held=None in held.values(),
            counts=counts,
            queue=[*(self.card(State.PROCESSING, job) for job in shown[State.PROCESSING]), *pending],
            failed=[self.card(State.FAILED, job) for job in shown[State.FAILED]],
            finished=[self.card(State.DONE, job) for job in shown[State.DONE]],
        )

    def card(self, state: State, job: str, position: int | None = None) -> Card:
        """One job."""
        body = _shape(_safe(status.current(self.queue, self.settings.outputs, state, job)))
        found = JOB_ID.fullmatch(job)
        left = body["progress"].get("eta_seconds")
        place = quote(os.fsencode(job), safe="")
        video = body["video"].get("file") if state is State.DONE else None
        preview = body["preview"]
        return Card(
            key=hashlib.sha256(os.fsencode(job)).hexdigest()[:16],
            job=printable(job),
            name=printable(found["stem"] if found else job),
            state="cancelled" if state is State.FAILED and body.get("outcome") != Outcome.FAILED else str(state),
            place=place,
            position=position,
            body=body,
            left=None if left is None else str(timedelta(seconds=round(left))).removeprefix("0:"),
            video=f"/videos/{quote(str(video), safe='')}" if video else None,
            preview=f"/preview/{place}?v={_stamp(self.settings.outputs / Path(preview).name)}" if preview else None,
        )

    def _standing(self, state: State) -> tuple[int, list[str]]:
        """How many jobs stand in a state, and those of them that are shown; kept as long as its folder is the same."""
        stamp = _stamp(self.queue.folder(state))
        if state not in self._kept or self._kept[state][0] != stamp:
            names = self.queue.names(state)
            if state is State.PROCESSING:
                rows = sorted(names)
            elif state is State.PENDING:
                rows = self.queue.waiting()[:WAITING]
            else:
                rows = self.queue.newest(state, FINISHED if state is State.DONE else FAILED)
            self._kept[state] = (stamp, (len(names), rows))
        return self._kept[state][1]

    def _troubles(self, *, told: bool) -> list[tuple[str, str]]:
        """What keeps jobs from running: folders that are not mounted, and what a running daemon told of."""
        settings = self.settings
        folders = (settings.inbox, settings.outputs, settings.queue_dir)
        found = troubles.standing(settings.work_dir, folders, told=told)
        return [(printable(each["what"]), printable(each["reason"])) for each in found]


def _stamp(path: Path) -> int:
    """When the folder or file changed last, in nanoseconds; 0 when it is away."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _shape(body: dict[str, Any]) -> dict[str, Any]:
    """The body with a part of the right kind everywhere that the page looks, whatever someone wrote into the file."""
    found = body | {name: _object(body, name) for name in ("request", "error", "progress", "video")}
    for name in ("progress", "video"):
        found[name] = {key: value for key, value in found[name].items() if key == "file" or _is_number(value)}
    request = found["request"]
    if not isinstance(request.get("prompt"), (str, list)):
        found["request"] = {}
    elif not _are_loras(request.get("loras")):
        found["request"] = request | {"loras": []}
    found["preview"] = body["preview"] if isinstance(body.get("preview"), str) else None
    return found


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _are_loras(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and {"name", "scale"} <= each.keys() for each in value
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _HUGE


def _safe(value: Any) -> Any:
    """A parsed status file with every text in it safe to show; line breaks stay."""
    match value:
        case str():
            return printable(value, keep="\n")
        case dict():
            return {str(key): _safe(item) for key, item in value.items()}
        case list():
            return [_safe(item) for item in value]
    return value
