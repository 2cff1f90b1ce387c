"""The drop folder: which files belong together, when they are whole, and what is still missing.

`Inbox.scan` lists names, groups them by stem, waits until every file of a complete group has stood still and its
content is complete, and gives back what is ready as drops. It keeps only what it needs to see that a file stands
still. Decides nothing about the queue and moves nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon.errors import (
    DropError,
    DropUnreadableError,
    FramepackError,
    ImageIncompleteError,
    RequestError,
    RequestIncompleteError,
)
from framepack_daemon.job import Role, stored_name
from framepack_daemon.media import image as pictures
from framepack_daemon.request import build
from framepack_daemon.spool import names
from framepack_daemon.spool.capture import Signature, Source, signature
from framepack_daemon.spool.drop import Drop, Part, sidecar_bytes, sidecar_fields
from framepack_daemon.spool.names import Kind, Name
from framepack_daemon.strict_json import MAX_SIDECAR_BYTES, parse_json

JUDGE_SECONDS = 1.0  # of looking into files in one scan: of many pairs the first shall run while the others come in

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Timing:
    """How long files are given, in seconds."""

    settle: float = 2.0  # of standing still, before a file is looked at
    incomplete: float = 60.0  # more of standing still, before a file that ends too early is refused
    partner: float = 10.0  # before a picture is taken without a sidecar, where the folder's preset has a prompt


@dataclass
class Group:
    """The files of one folder that share a stem."""

    folder: Path
    stem: str
    members: list[tuple[str, Name]] = field(default_factory=list)  # (file name, what it says)

    def of(self, kind: Kind) -> list[str]:
        """Names of the files of that kind."""
        return [name for name, read in self.members if read.kind is kind]


@dataclass(frozen=True)
class Preset:
    """What `defaults.json` of a folder gives."""

    data: bytes | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""  # why drops of this folder wait


@dataclass
class _Watched:
    """A file as it was last seen, since when it stands still, and what was found in it."""

    signature: Signature
    since: float  # monotonic
    judged: bool = False
    problem: FramepackError | None = None


@dataclass(frozen=True)
class Scan:
    """What a scan found."""

    drops: list[Drop]
    due_seconds: float | None  # until one of the files may be ready; None when only a change can make one so


class Inbox:
    """The watch over one drop folder and its presets."""

    def __init__(self, root: Path, timing: Timing, *, excluded: tuple[Path, ...] = ()) -> None:
        self.root = root
        self.timing = timing
        self._excluded = {path.resolve() for path in excluded}  # outputs and queue, where they stand inside the inbox
        self._watched: dict[Path, _Watched] = {}
        self._due: list[float] = []
        self._judge_until = math.inf  # monotonic; counted from the first file that this scan looks into

    def folders(self) -> list[Path]:
        """The drop folder itself and the sub-folders that hold a preset."""
        return [self.root, *presets(self.root, self._excluded)]

    def scan(self) -> Scan:
        """Look once; drops come in the order of their names."""
        now = time.monotonic()
        seen, self._watched, self._due = self._watched, {}, []
        self._judge_until = math.inf
        drops = []
        for folder in self.folders():
            preset = read_preset(folder)
            if preset.problem:
                continue
            for group in groups(folder):
                drop = self._judge(group, preset, seen, now)
                if drop is not None:
                    drops.append(drop)
        return Scan(drops, max(min(self._due) - now, 0.05) if self._due else None)

    def _judge(self, group: Group, preset: Preset, seen: dict[Path, _Watched], now: float) -> Drop | None:
        """The drop that the group makes, or None while it has to wait."""
        if missing(group, preset):
            return None
        lone = not group.of(Kind.SIDECAR) and not group.of(Kind.PROMPT)
        still = self.timing.partner if lone and not _conflict(group) else self.timing.settle
        members = []
        for name, _ in group.members:
            watched = self._look(group.folder / name, seen, now)
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
        if refusal is None and _wants_end_frame(group, preset):
            return None
        return _drop(group, preset, members, refusal)

    def _look(self, path: Path, seen: dict[Path, _Watched], now: float) -> _Watched | None:
        found = signature(path)
        if found is None:
            return None
        earlier = seen.get(path)
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
            if isinstance(problem, ImageIncompleteError | RequestIncompleteError) and now < until:
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


def groups(folder: Path) -> Iterator[Group]:
    """The files of a folder by stem, in the order of the stems; links, pipes and foreign names are left alone."""
    found: dict[str, Group] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                read = names.read(entry.name)
                if read is not None and entry.is_file(follow_symlinks=False):
                    group = found.setdefault(read.stem, Group(folder, read.stem))
                    group.members.append((entry.name, read))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for stem in sorted(found):
        found[stem].members.sort(key=lambda member: member[0])
        yield found[stem]


def presets(root: Path, excluded: set[Path] | None = None) -> list[Path]:
    """The sub-folders that hold a `defaults.json`, sorted."""
    try:
        with os.scandir(root) as entries:
            folders = [
                root / entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and names.may_hold_drops(entry.name)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(path for path in folders if path.resolve() not in (excluded or ()) and _is_preset(path))


def _is_preset(folder: Path) -> bool:
    try:
        return signature(folder / names.DEFAULTS_NAME) is not None
    except PermissionError:
        return False


def read_preset(folder: Path) -> Preset:
    """The preset of a folder; one that does not parse holds the folder's drops back, so that none runs without it."""
    path = folder / names.DEFAULTS_NAME
    try:
        if signature(path) is None:
            return Preset()
        data = sidecar_bytes(path)
        fields = parse_json(data, names.DEFAULTS_NAME)
        build({"prompt": "-"} | fields)
    except OSError as error:
        return Preset(problem=f"{names.DEFAULTS_NAME} cannot be read: {error.strerror}")
    except RequestError as error:
        return Preset(problem=f"{names.DEFAULTS_NAME} is wrong: {error.message} ({error.hint})")
    return Preset(data, fields)


def missing(group: Group, preset: Preset) -> str:
    """What a group still waits for, in words; empty when nothing is missing."""
    images, texts = group.of(Kind.IMAGE), group.of(Kind.SIDECAR) + group.of(Kind.PROMPT)
    if _conflict(group):
        return ""
    if not images:
        return f"a picture called {group.stem}.jpg (or .png, .webp, …)"
    if not texts and "prompt" not in preset.fields:
        return f"{group.stem}.json or {group.stem}.txt"
    return ""


def _conflict(group: Group) -> bool:
    return any(read.conflict for _, read in group.members)


def clash(group: Group) -> DropError | None:
    """Why the files of a complete group cannot be one job, by their names alone."""
    if _conflict(group):
        return DropError(
            f"{group.members[0][0]}: is a sync tool's conflict copy",
            hint="decide which version is right and drop that one under a plain name",
        )
    for kind in Kind:
        rivals = group.of(kind)
        if len(rivals) > 1:
            return DropError(
                f"{' and '.join(rivals)}: more than one {kind} for {group.stem}",
                hint="keep one of them, or give each pair a name of its own, and drop again",
            )
    return None


def judge(path: Path, kind: Kind) -> FramepackError | None:
    """What is wrong with the content of a file that stands still; None when it is whole and good."""
    try:
        if kind in (Kind.IMAGE, Kind.END_FRAME):
            pictures.check(path)
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


def _wants_end_frame(group: Group, preset: Preset) -> bool:
    """Whether the sidecar speaks of an end frame that has not come yet."""
    if group.of(Kind.END_FRAME):
        return False
    sidecar = group.of(Kind.SIDECAR)
    try:
        fields = parse_json(sidecar_bytes(group.folder / sidecar[0])) if sidecar else {}
    except (RequestError, OSError):
        return False  # it has other faults, or is being replaced
    return (preset.fields | fields).get("last_image") is not None


def _drop(group: Group, preset: Preset, members: list[_Watched], refusal: FramepackError | None) -> Drop:
    """The group as a drop of files that are to be taken as they were judged."""
    has_sidecar = bool(group.of(Kind.SIDECAR))
    roles = {
        Kind.IMAGE: Role.IMAGE,
        Kind.END_FRAME: Role.END_FRAME,
        Kind.SIDECAR: Role.SIDECAR,
        Kind.PROMPT: Role.ASIDE if has_sidecar else Role.SIDECAR,
    }
    parts = tuple(
        Part(roles[read.kind], name, Source(group.folder / name, stored_name(name), watched.signature))
        for (name, read), watched in zip(group.members, members, strict=True)
    )
    return Drop(group.stem, parts, folder=group.folder, defaults=preset.data, refusal=refusal)


def halves(root: Path) -> list[tuple[str, str]]:
    """What waits in the drop folder and for what, as (name within the folder, what is missing)."""
    waiting = []
    for folder in [root, *presets(root)]:
        preset = read_preset(folder)
        for group in groups(folder):
            reason = f"a valid preset: {preset.problem}" if preset.problem else missing(group, preset)
            if not reason and _wants_end_frame(group, preset):
                reason = f"the end frame, {group.stem}.last.jpg"
            if reason:
                waiting += [(str((folder / name).relative_to(root)), reason) for name, _ in group.members]
    return waiting
