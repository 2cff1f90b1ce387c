"""What lies in a drop folder: files by their stem, the values that the folder gives, and what is still missing.

Looks at names, at presets and at what a sidecar says that it continues. Keeps nothing between two looks and knows
nothing of time; `inbox.py` decides when a group is ready.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framepack_daemon.errors import DropError, RequestError
from framepack_daemon.request import Request, build
from framepack_daemon.spool import continuation, names
from framepack_daemon.spool.capture import signature
from framepack_daemon.spool.drop import continued_by, sidecar_bytes
from framepack_daemon.spool.names import Kind, Name
from framepack_daemon.spool.queue import Queue
from framepack_daemon.strict_json import parse_json, shorten

MAX_GLANCE = 1000  # names of a sub-folder that is no drop folder, of which one may be a picture's


@dataclass
class Group:
    """The files of one folder that share a stem."""

    folder: Path
    stem: str
    members: list[tuple[str, Name]] = field(default_factory=list)  # (file name, what it says)
    continues: str | None = None  # what the sidecar says in continue_from

    def of(self, kind: Kind) -> list[str]:
        """Names of the files of that kind."""
        return [name for name, read in self.members if read.kind is kind]


@dataclass(frozen=True)
class Preset:
    """What `defaults.json` of a folder gives."""

    data: bytes | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""  # why drops of this folder wait


@dataclass(frozen=True)
class Listing:
    """The names in a drop folder, from one look at it that asked for nothing but names and kinds."""

    files: list[str]
    folders: list[str]


def listing(folder: Path) -> Listing:
    """What lies in a folder: plain files, and folders that may hold drops; links and pipes are left out."""
    found = Listing([], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    found.files.append(entry.name)
                elif entry.is_dir(follow_symlinks=False) and names.may_hold_drops(entry.name):
                    found.folders.append(entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return Listing([], [])
    return found


def groups(
    folder: Path, continues: Callable[[str], str | None] | None = None, files: list[str] | None = None
) -> Iterator[Group]:
    """The files of a folder by stem, in the order of the stems; foreign names are left alone.

    So is a video, unless a sidecar of its stem names it: `continues` gives what the sidecar of a name continues, which
    is read unless the caller knows it. `files` are the folder's, when it was listed already.
    """
    continues = continues or (lambda name: continued_by(folder / name))
    named = [
        (read.stem, name, read)
        for name in (listing(folder).files if files is None else files)
        if (read := names.read(name)) is not None
    ]
    named.sort(key=operator.itemgetter(0, 1))
    for stem, members in itertools.groupby(named, key=operator.itemgetter(0)):
        group = Group(folder, stem, [(name, read) for _, name, read in members])
        videos = group.of(Kind.VIDEO)
        if videos or not group.of(Kind.IMAGE):  # of a pair, that can wait until it is taken
            group.continues = next((continues(name) for name in group.of(Kind.SIDECAR)), None)
        if videos:
            group.members = [
                (name, read)
                for name, read in group.members
                if read.kind is not Kind.VIDEO or (group.continues and names.is_same(name, group.continues))
            ]
        if group.members:
            yield group


def presets(root: Path, excluded: set[Path] | None = None, folders: list[str] | None = None) -> list[Path]:
    """The sub-folders that hold a `defaults.json`, sorted; `folders` are the root's, when it was listed already."""
    found = [root / name for name in (listing(root).folders if folders is None else folders)]
    return sorted(path for path in found if path.resolve() not in (excluded or ()) and _is_preset(path))


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
        preset_request(fields)
    except OSError as error:
        return Preset(problem=f"{names.DEFAULTS_NAME} cannot be read: {error.strerror}")
    except RequestError as error:
        return Preset(problem=f"{names.DEFAULTS_NAME} is wrong: {error.message} ({error.hint})")
    return Preset(data, fields)


def preset_request(fields: dict[str, Any]) -> Request:
    """The request that a preset alone asks for; RequestError when one of its fields is wrong."""
    request = build({"prompt": "(the sidecar's)"} | fields)
    if request.continue_from is not None:
        raise RequestError("continue_from: belongs to one drop", hint="write it into the sidecar beside the video")
    return request


def missing(group: Group, preset: Preset, queue: Queue) -> str:
    """What a group still waits for, in words; empty when nothing is missing."""
    images, texts = group.of(Kind.IMAGE), group.of(Kind.SIDECAR) + group.of(Kind.PROMPT)
    if is_conflict(group):
        return ""
    if group.continues is not None:
        return "" if clash(group) else _missing_beginning(group, group.continues, queue)
    if not images:
        return f"a picture called {group.stem}.jpg (or .png, .webp, …)"
    if not texts and "prompt" not in preset.fields:
        return f"{group.stem}.json or {group.stem}.txt"
    return ""


def _missing_beginning(group: Group, named: str, queue: Queue) -> str:
    if not names.is_video(named):
        return continuation.waits_for(queue, named)
    return "" if group.of(Kind.VIDEO) else f"the video {named}"


def is_conflict(group: Group) -> bool:
    """Whether a file of it is a sync tool's conflict copy."""
    return any(read.conflict for _, read in group.members)


def clash(group: Group) -> DropError | None:
    """Why the files of a complete group cannot be one job, by their names alone."""
    if is_conflict(group):
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
    if group.continues is None:
        return None
    if images := group.of(Kind.IMAGE):
        return DropError(
            f"{images[0]}: stands beside a sidecar that continues {shorten(group.continues)}",
            hint="what is continued gives the beginning; remove the picture, or continue_from, and drop again",
        )
    return continuation.misnamed(group.stem, group.continues)


def wants_end_frame(group: Group, preset: Preset) -> bool:
    """Whether the sidecar speaks of an end frame that has not come yet."""
    if group.of(Kind.END_FRAME):
        return False
    sidecar = group.of(Kind.SIDECAR)
    try:
        fields = parse_json(sidecar_bytes(group.folder / sidecar[0])) if sidecar else {}
    except (RequestError, OSError):
        return False  # it has other faults, or is being replaced
    return (preset.fields | fields).get("last_image") is not None


def halves(root: Path, queue: Queue, excluded: Iterable[Path] = ()) -> list[tuple[str, str]]:
    """What waits in the drop folder and for what, as (name within the folder, what is missing).

    Sub-folders with pictures that are no drop folders are in it too, but for those `excluded`.
    """
    waiting = []
    top = listing(root)
    looked_into = [root, *presets(root, folders=top.folders)]
    for folder in looked_into:
        preset = read_preset(folder)
        found = list(groups(folder, files=top.files if folder == root else None))
        spellings: dict[str, list[str]] = {}
        for group in found:
            spellings.setdefault(group.stem.casefold(), []).append(group.stem)
        for group in found:
            reason = f"a valid preset: {preset.problem}" if preset.problem else missing(group, preset, queue)
            if not reason and wants_end_frame(group, preset):
                reason = f"the end frame, {group.stem}.last.jpg"
            if reason:
                others = [stem for stem in spellings[group.stem.casefold()] if stem != group.stem]
                reason += f"; the name {others[0]} differs in upper and lower case" if others else ""
                waiting += [(str((folder / name).relative_to(root)), reason) for name, _ in group.members]
    beside = [root / name for name in top.folders if root / name not in looked_into]
    aside = {path.resolve() for path in excluded}
    reason = f"a {names.DEFAULTS_NAME} in it, which makes it a drop folder; {{}} is enough"
    return waiting + [
        (f"{path.name}/", reason) for path in beside if path.resolve() not in aside and _has_picture(path)
    ]


def _has_picture(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            found = (names.read(entry.name) for entry in itertools.islice(entries, MAX_GLANCE))
            return any(read is not None and read.kind is Kind.IMAGE for read in found)
    except OSError:
        return False
