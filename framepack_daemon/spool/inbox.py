"""The drop folder over time: when the files that belong together are whole.

`Inbox.scan` waits until every file of a complete group has stood still and its content is complete, and gives back
what is ready as drops. It keeps only what it needs to see that a file stands still. Of the queue it asks no more than
whether a job that is to be continued is on its way; it moves nothing.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from framepack_daemon.errors import (
    ClipIncompleteError,
    DropUnreadableError,
    FramepackError,
    ImageIncompleteError,
    RequestError,
    RequestIncompleteError,
)
from framepack_daemon.job import Role, stored_name
from framepack_daemon.media import clip
from framepack_daemon.media import image as pictures
from framepack_daemon.spool.capture import Signature, Source, signature
from framepack_daemon.spool.drop import Drop, Part, continued_by, sidecar_bytes, sidecar_fields
from framepack_daemon.spool.groups import (
    Group,
    Preset,
    clash,
    groups,
    is_conflict,
    missing,
    presets,
    read_preset,
    wants_end_frame,
)
from framepack_daemon.spool.names import Kind
from framepack_daemon.spool.queue import Queue
from framepack_daemon.strict_json import MAX_SIDECAR_BYTES

_INCOMPLETE = (ClipIncompleteError, ImageIncompleteError, RequestIncompleteError)
JUDGE_SECONDS = 1.0  # of looking into files in one scan: of many pairs the first shall run while the others come in

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Timing:
    """How long files are given, in seconds."""

    settle: float = 2.0  # of standing still, before a file is looked at
    incomplete: float = 60.0  # more of standing still, before a file that ends too early is refused
    partner: float = 10.0  # before a picture is taken without a sidecar, where the folder's preset has a prompt


@dataclass
class _Watched:
    """A file as it was last seen, since when it stands still, and what was found in it."""

    signature: Signature
    since: float  # monotonic
    judged: bool = False
    problem: FramepackError | None = None
    read: bool = False  # a sidecar, for what it continues
    continues: str | None = None


@dataclass(frozen=True)
class Scan:
    """What a scan found."""

    drops: list[Drop]
    due_seconds: float | None  # until one of the files may be ready; None when only a change can make one so


class Inbox:
    """The watch over one drop folder and its presets."""

    def __init__(self, root: Path, queue: Queue, timing: Timing, *, excluded: tuple[Path, ...] = ()) -> None:
        self.root = root
        self.timing = timing
        self._queue = queue
        self._excluded = {path.resolve() for path in excluded}  # outputs and queue, where they stand inside the inbox
        self._seen: dict[Path, _Watched] = {}  # at the last scan
        self._watched: dict[Path, _Watched] = {}  # at this one
        self._due: list[float] = []
        self._judge_until = math.inf  # monotonic; counted from the first file that this scan looks into

    def folders(self) -> list[Path]:
        """The drop folder itself and the sub-folders that hold a preset."""
        return [self.root, *presets(self.root, self._excluded)]

    def scan(self) -> Scan:
        """Look once; drops come in the order of their names."""
        now = time.monotonic()
        self._seen, self._watched, self._due = self._watched, {}, []
        self._judge_until = math.inf
        drops = []
        for folder in self.folders():
            preset = read_preset(folder)
            if preset.problem:
                continue
            for group in groups(folder, lambda path: self._continues(path, now)):
                drop = self._judge(group, preset, now)
                if drop is not None:
                    drops.append(drop)
        return Scan(drops, max(min(self._due) - now, 0.05) if self._due else None)

    def _judge(self, group: Group, preset: Preset, now: float) -> Drop | None:
        """The drop that the group makes, or None while it has to wait."""
        if missing(group, preset, self._queue):
            return None
        lone = not group.of(Kind.SIDECAR) and not group.of(Kind.PROMPT)
        still = self.timing.partner if lone and not is_conflict(group) else self.timing.settle
        members = []
        for name, _ in group.members:
            watched = self._look(group.folder / name, now)
            if watched is None:
                return None
            members.append(watched)
        since = max(watched.since for watched in members)
        if now < since + still:
            self._due.append(since + still)
            return None
        if time.monotonic() >= self._judge_until and not all(watched.judged for watched in members):
            self._due.append(now)
            return None
        refusal: FramepackError | None = clash(group)
        if refusal is None:
            refusal, patient = self._content(group, now)
            if patient:
                return None
        if refusal is None and wants_end_frame(group, preset):
            return None
        return _drop(group, preset, members, refusal)

    def _continues(self, path: Path, now: float) -> str | None:
        """What a sidecar continues, read again only when it changed."""
        watched = self._look(path, now)
        if watched is not None and not watched.read:
            watched.read, watched.continues = True, continued_by(path)
        return watched.continues if watched else None

    def _look(self, path: Path, now: float) -> _Watched | None:
        if path in self._watched:
            return self._watched[path]
        found = signature(path)
        if found is None:
            return None
        earlier = self._seen.get(path)
        watched = earlier if earlier and earlier.signature == found else _Watched(found, now)
        self._watched[path] = watched
        return watched

    def _content(self, group: Group, now: float) -> tuple[FramepackError | None, bool]:
        """(what is wrong with the files' content, whether to wait for more of it)."""
        for name, read in group.members:
            watched = self._watched[group.folder / name]
            problem = self._problem(group.folder / name, read.kind, watched)
            if problem is None:
                continue
            until = watched.since + self.timing.settle + self.timing.incomplete
            if isinstance(problem, DropUnreadableError):
                return problem, True
            if isinstance(problem, _INCOMPLETE) and now < until:
                self._due.append(until)
                return problem, True
            return problem, False
        return None, False

    def _problem(self, path: Path, kind: Kind, watched: _Watched) -> FramepackError | None:
        """What is wrong with the content; looked at once, but for a file that cannot be read, which is said once."""
        if not watched.judged:
            self._judge_until = min(self._judge_until, time.monotonic() + JUDGE_SECONDS)
            before, watched.problem = watched.problem, judge(path, kind)
            watched.judged = not isinstance(watched.problem, DropUnreadableError)
            if not watched.judged and before is None and watched.problem:
                _log.warning("drop_unreadable", file=str(path), reason=watched.problem.message)
        return watched.problem


def judge(path: Path, kind: Kind) -> FramepackError | None:
    """What is wrong with the content of a file that stands still; None when it is whole and good."""
    try:
        if kind in (Kind.IMAGE, Kind.END_FRAME):
            pictures.check(path)
            return None
        if kind is Kind.VIDEO:
            clip.check(path)
            return None
        size = path.lstat().st_size
        if size > MAX_SIDECAR_BYTES:
            return RequestError(
                f"{path.name}: is {size} bytes long", hint=f"at most {MAX_SIDECAR_BYTES} bytes are read"
            )
        sidecar_fields(path.name, sidecar_bytes(path))
    except FramepackError as error:
        return error
    except OSError as error:
        return DropUnreadableError(
            f"{path.name}: cannot be read: {error.strerror}", hint="let the daemon's user read it"
        )
    return None


def _drop(group: Group, preset: Preset, members: list[_Watched], refusal: FramepackError | None) -> Drop:
    """The group as a drop of files that are to be taken as they were judged."""
    has_sidecar = bool(group.of(Kind.SIDECAR))
    roles = {
        Kind.IMAGE: Role.IMAGE,
        Kind.END_FRAME: Role.END_FRAME,
        Kind.VIDEO: Role.VIDEO,
        Kind.SIDECAR: Role.SIDECAR,
        Kind.PROMPT: Role.ASIDE if has_sidecar else Role.SIDECAR,
    }
    parts = tuple(
        Part(roles[read.kind], name, Source(group.folder / name, stored_name(name), watched.signature))
        for (name, read), watched in zip(group.members, members, strict=True)
    )
    return Drop(group.stem, parts, folder=group.folder, defaults=preset.data, refusal=refusal)
