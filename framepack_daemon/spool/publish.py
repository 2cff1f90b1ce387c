"""Publishing: from a finished video in scratch to `outputs/` and `done/`, so that a crash anywhere goes on from there.

In this order: `outcome.json` (from here on the job is completed and is never rendered again), the video as a hidden
copy that is verified and renamed without replacing, its pictures, the latents that are kept, the end of the previews,
the status, the move to `done/`. The outcome is on disk before the rest, and all of that before the move. Running it
again does only what is still missing.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.errors import VideoError
from framepack_daemon.job import LATENTS_FILE, OUTCOME_FILE, Outcome, Run, State, now
from framepack_daemon.scratch import ANIMATIONS, LATENTS, POSTER, VIDEO
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter

# Pictures in scratch that go beside the video, and what is put behind `<job>.` there.
PICTURES = {POSTER: POSTER, **{name: suffix for suffix, name in ANIMATIONS.items()}}
MAX_NAMES = 1000  # tried when strangers' files have a video's name

_log = structlog.get_logger(__name__)


class LostVideoError(VideoError):
    """A completed job's video is neither in scratch nor published: it has to be rendered again."""

    code = "lost_video"


@dataclass(frozen=True)
class Publisher:
    """Publishes the videos of one queue."""

    queue: Queue
    outputs: Path
    work_dir: Path
    writer: StatusWriter
    previews: Previews

    def record(self, job: str, result: dict[str, Any]) -> None:
        """Write down that the job is completed; `result` becomes part of `outcome.json`.

        The video gets its usual name there. Raises FileNotFoundError when the job has left `processing/`: then it was
        stopped in time.
        """
        if isinstance(result.get("video"), dict):
            result = result | {"video": {"file": _usual(job), **result["video"]}}
        outcome = {"outcome": Outcome.COMPLETED, "message": "the video is ready", "finished_at": now()} | result
        atomic.write_json(self.queue.path(State.PROCESSING, job) / OUTCOME_FILE, outcome)

    def finish(self, job: str) -> str:
        """Publish what `record` wrote down; the name of the video in `outputs/`.

        Raises `LostVideoError` when the video is nowhere, OSError when `outputs/` or the queue cannot be written; it
        can be called again when that is mended.
        """
        folder = self.queue.path(State.PROCESSING, job)
        outcome = atomic.read_json(folder / OUTCOME_FILE)
        run = self.queue.run(State.PROCESSING, job)
        if outcome is None or run is None:
            raise FileNotFoundError(f"{job} has no outcome in {folder.parent}")
        video = outcome.get("video")
        if not isinstance(video, dict) or "sha256" not in video:
            raise LostVideoError(f"{job}: its outcome names no video", hint="the job is rendered again")
        started = time.monotonic()
        name = self._publish_video(run, video["sha256"])
        timings = outcome.setdefault("timings", {})
        if video.get("file") != name or "publish" not in timings:
            is_news = video.get("file") != name  # a time alone may be taken by a power loss
            video["file"], timings["publish"] = name, time.monotonic() - started
            atomic.write_json(folder / OUTCOME_FILE, outcome, sync_parent=is_news)
        self._publish_pictures(job)
        self._keep_latents(job, folder)
        self.previews.discard(job)
        self.writer.write(job, State.PROCESSING, sync_folder=False, state=State.DONE)
        atomic.sync_folder(self.outputs)  # once, with all that was put there
        self.queue.move(job, State.PROCESSING, State.DONE)
        atomic.remove_tree(self.work_dir / job)
        return name

    def _publish_pictures(self, job: str) -> None:
        for name, suffix in PICTURES.items():
            picture = self.work_dir / job / name
            if picture.exists():
                atomic.write_bytes(self.outputs / f"{job}.{suffix}", picture.read_bytes(), sync_parent=False)

    def _keep_latents(self, job: str, folder: Path) -> None:
        """Bring what another job needs to continue this one into its directory, where it is kept."""
        for left in folder.glob(f".{LATENTS_FILE}.*.tmp"):
            left.unlink(missing_ok=True)
        latents = self.work_dir / job / LATENTS
        if latents.exists():
            hidden = folder / atomic.hidden_name(LATENTS_FILE)
            atomic.copy(latents, hidden)
            hidden.replace(folder / LATENTS_FILE)
            atomic.sync_folder(folder)

    def _publish_video(self, run: Run, sha256: str) -> str:
        """Bring the video under a name that is free or was this job's own; the name."""
        source = self.work_dir / run.job / VIDEO
        for number in range(1, MAX_NAMES):
            target = self.outputs / (_usual(run.job) if number == 1 else f"{run.job}.{number}.mp4")
            there = _digest(target)
            if there == sha256:
                return target.name
            if there is None or there in run.videos:
                self._place(source, target, sha256, replacing=there is not None)
                return target.name
            _log.warning("video_name_taken", job=run.job, file=str(target))
        raise VideoError(f"{run.job}.mp4: the name is taken by other files", hint="move them out of the outputs folder")

    def _place(self, source: Path, target: Path, sha256: str, *, replacing: bool) -> None:
        if not source.is_file():
            raise LostVideoError(f"{source}: is no longer there", hint="the job is rendered again")
        hidden = target.with_name(atomic.hidden_name(target.name))
        try:
            atomic.copy(source, hidden)
            _expect(hidden, sha256)
            if replacing:
                hidden.replace(target)
            else:
                atomic.move(hidden, target, sync_parents=False)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise


def _usual(job: str) -> str:
    """The name of a job's video, unless it is taken."""
    return f"{job}.mp4"


def _digest(path: Path) -> str | None:
    """SHA-256 of the file there; None when the name is free, empty for what is no plain file that we may read."""
    if not os.path.lexists(path):
        return None
    try:
        return atomic.digest(path)[1] if path.is_file() and not path.is_symlink() else ""
    except PermissionError:
        return ""


def _expect(path: Path, sha256: str) -> None:
    if atomic.digest(path)[1] != sha256:
        raise LostVideoError(f"{path}: is not what was rendered", hint="the job is rendered again")
