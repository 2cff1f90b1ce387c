"""The drop folder over time: when the files that belong together are whole.

`Inbox.scan` waits until every file of a complete group has stood still and its content is complete, and gives back
what is ready as drops. It keeps only what it needs to see that a file stands still. Of the queue it asks no more than
whether a job that is to be continued is on its way; it moves nothing.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import structlog

from framepack_daemon.errors import (
    ClipIncompleteError,
    DropUnreadableError,
    FramepackError,
    ImageIncompleteError,
    RequestIncompleteError,
)
from framepack_daemon.job import Role, stored_name
from framepack_daemon.spool.calm import Calm
from framepack_daemon.spool.capture import Signature, Source, signature
from framepack_daemon.spool.content import judge
from framepack_daemon.spool.drop import Drop, Part, continued_by, is_repeat
from framepack_daemon.spool.groups import (
    Group,
    Listing,
    Preset,
    clash,
    groups,
    is_conflict,
    listing,
    missing,
    presets,
    read_preset,
    wants_end_frame,
)
from framepack_daemon.spool.names import Kind
from framepack_daemon.spool.queue import Queue
from framepack_daemon.strict_json import MAX_SIDECAR_BYTES

_INCOMPLETE = (ClipIncompleteError, ImageIncompleteError, RequestIncompleteError)
JUDGE_SHARE = 4.0  # times as long as it took to find the first file, at least, a scan looks into files
MAX_COMING = 5000  # drops that one scan watches settle; those behind them come up when these are taken
MAX_LONE = 1000  # sidecars without a picture that one scan looks at again, for what they continue now

_Turn = tuple[Path, str]  # folder and stem of a group; groups are looked at in this order

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Timing:
    """How long files are given, in seconds."""

    settle: float = 2.0  # of standing still, before a file is looked at
    incomplete: float = 60.0  # more of standing still, before a file that ends too early is refused
    partner: float = 10.0  # before a picture is taken without a sidecar, where the folder's preset has a prompt
    judge: float = 1.0  # of looking into files in one scan: of many pairs the first run while the others come in


@dataclass(slots=True)
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
    folders: list[Path]  # that were looked into


class Inbox:
    """The watch over one drop folder and its presets."""

    def __init__(self, root: Path, queue: Queue, timing: Timing, *, excluded: tuple[Path, ...] = ()) -> None:
        self.root = root
        self.timing = timing
        self._queue = queue
        self._excluded = {path.resolve() for path in excluded}  # outputs and queue, where they stand inside the inbox
        self._seen: dict[Path, dict[str, _Watched]] = {}  # by folder and name, at the last scan
        self._watched: dict[Path, dict[str, _Watched]] = {}  # at this one
        self._due: list[float] = []
        self._coming = 0  # drops that have only to settle
        self._touched: AbstractSet[str] = frozenset()  # names of files that may have been written since the last scan
        self._is_waiting = False  # for more than names or writes, in the folder that is being looked into
        self._turn: _Turn | None = None  # of the first drop that there was no time to look into
        self._calm = Calm()
        self._subfolders: list[str] = []  # of the root, at the last look into it
        self._lone = 0  # sidecars without a picture, in this scan
        self._lone_from = 0  # the first of them to be looked at again
        self._started = 0.0  # monotonic
        self._judge_until = math.inf  # monotonic; counted from the first file that this scan looks into

    def folders(self) -> list[Path]:
        """The drop folder itself and the sub-folders that hold a preset."""
        return [self.root, *presets(self.root, self._excluded)]

    def scan(self, touched: AbstractSet[str] = frozenset()) -> Scan:
        """Look once; drops come in the order of their names.

        Of a file that waits for its partner nothing but the name is asked for, unless it is a sidecar; and a folder
        that holds nothing else is not looked into again before a name comes or goes, or one of its sidecars is
        `touched`. After a scan that ran out of time the next one begins where that one ended, so that drops which come
        again and again do not keep the others waiting.
        """
        self._touched = touched
        self._started = now = time.monotonic()
        turn, self._turn = self._turn, None
        self._judge_until = math.inf
        self._seen, self._watched, self._due, self._coming = self._watched, {}, [], 0
        self._lone = 0
        preset = read_preset(self.root)
        calm = self._is_calm(self.root, preset)
        top = listing(self.root) if not calm else Listing([], self._subfolders)
        self._subfolders = top.folders
        folders = [self.root, *presets(self.root, self._excluded, top.folders)]
        drops = [] if preset.problem or calm else list(self._look_into(self.root, preset, top.files, turn))
        for folder in folders[1:]:
            preset = read_preset(folder)
            if not preset.problem and not self._is_calm(folder, preset):
                drops += self._look_into(folder, preset, None, turn)
        self._lone_from = self._lone_from + MAX_LONE if self._lone_from + MAX_LONE < self._lone else 0
        return Scan(drops, max(min(self._due) - now, 0.05) if self._due else None, folders)

    def _is_calm(self, folder: Path, preset: Preset) -> bool:
        """Whether a look into the folder would bring nothing; what was seen there is kept."""
        seen = self._seen.get(folder, {})
        if not self._calm.holds(folder, preset, doubted=any(name in seen for name in self._touched)):
            return False
        self._watched[folder] = seen
        return True

    def _look_into(self, folder: Path, preset: Preset, files: list[str] | None, turn: _Turn | None) -> Iterator[Drop]:
        """The drops of one folder that are ready."""
        now = self._started
        self._watched[folder] = {}
        self._is_waiting = False
        for group in groups(folder, lambda name: self._continues(folder, name, now), files):
            if turn and (folder, group.stem) < turn:
                self._pass_over(group, now)
                self._is_waiting = True
                continue
            drop = self._judge(group, preset, now)
            if drop is not None:
                yield drop
            if self._coming >= MAX_COMING:
                break
        self._calm.note(folder, watching=self._is_waiting)

    def _judge(self, group: Group, preset: Preset, now: float) -> Drop | None:
        """The drop that the group makes, or None while it has to wait."""
        self._is_waiting |= group.continues is not None  # for a job to end
        if missing(group, preset, self._queue):
            return None
        self._is_waiting = True
        lone = not group.of(Kind.SIDECAR) and not group.of(Kind.PROMPT)
        still = self.timing.partner if lone and not is_conflict(group) else self.timing.settle
        members = []
        for name, _ in group.members:
            watched = self._look(group.folder, name, now)
            if watched is None:
                return None
            members.append(watched)
        since = max(watched.since for watched in members)
        judged = all(watched.judged for watched in members)
        late = time.monotonic() >= self._judge_until and not judged
        if now < since + still or late:
            if late and self._turn is None:
                self._turn = group.folder, group.stem
            self._due.append(since + still)
            self._coming += 1
            return None
        refusal: FramepackError | None = clash(group)
        if refusal is None:
            if not judged:
                self._recognise(group, preset, members)
            refusal, patient = self._content(group, now)
            if patient:
                return None
        if refusal is None and wants_end_frame(group, preset):
            return None
        return _drop(group, preset, members, refusal)

    def _recognise(self, group: Group, preset: Preset, members: list[_Watched]) -> None:
        """Take files for good that came before and were good then: a sync tool's repeats are not looked into again."""
        texts = [self._watched[group.folder][name] for name in group.of(Kind.SIDECAR) + group.of(Kind.PROMPT)]
        if group.continues is not None or any(text.signature.bytes > MAX_SIDECAR_BYTES for text in texts):
            return
        self._begin_judging()
        with contextlib.suppress(OSError):  # whatever it is, a look into the files or the taking of them will say
            if is_repeat(self._queue, _drop(group, preset, members, None)):
                for watched in members:
                    watched.judged = True

    def _pass_over(self, group: Group, now: float) -> None:
        """Leave a group to the next scan, with what was seen of it."""
        earlier = self._seen.get(group.folder, {})
        known = {name: earlier[name] for name, _ in group.members if name in earlier}
        self._watched[group.folder].update(known)
        self._due.append(now)

    def _continues(self, folder: Path, name: str, now: float) -> str | None:
        """What a sidecar continues, read again only when it changed; of very many, some are looked at in each scan."""
        self._lone += 1
        earlier = self._seen.get(folder, {}).get(name)
        if earlier and earlier.read and not self._lone_from < self._lone <= self._lone_from + MAX_LONE:
            self._watched[folder][name] = earlier
            return earlier.continues
        watched = self._look(folder, name, now)
        if watched is not None and not watched.read:
            watched.read, watched.continues = True, continued_by(folder / name)
        return watched.continues if watched else None

    def _look(self, folder: Path, name: str, now: float) -> _Watched | None:
        here = self._watched[folder]
        if name in here:
            return here[name]
        found = signature(folder / name)
        if found is None:
            return None
        earlier = self._seen.get(folder, {}).get(name)
        watched = earlier if earlier and earlier.signature == found else _Watched(found, now)
        here[name] = watched
        return watched

    def _content(self, group: Group, now: float) -> tuple[FramepackError | None, bool]:
        """(what is wrong with the files' content, whether to wait for more of it)."""
        for name, read in group.members:
            watched = self._watched[group.folder][name]
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

    def _begin_judging(self) -> None:
        """Set, with the first file that this scan looks into, the time at which it leaves the others to the next."""
        now = time.monotonic()
        self._judge_until = min(self._judge_until, now + max(self.timing.judge, JUDGE_SHARE * (now - self._started)))

    def _problem(self, path: Path, kind: Kind, watched: _Watched) -> FramepackError | None:
        """What is wrong with the content; looked at once, but for a file that cannot be read, which is said once."""
        if not watched.judged:
            self._begin_judging()
            before, watched.problem = watched.problem, judge(path, kind)
            watched.judged = not isinstance(watched.problem, DropUnreadableError)
            if not watched.judged and before is None and watched.problem:
                _log.warning("drop_unreadable", file=str(path), reason=watched.problem.message)
        return watched.problem


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
