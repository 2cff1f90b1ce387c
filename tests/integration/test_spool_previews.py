"""Previews: what is shown of a job that is not done, and what becomes of it, whatever comes in between."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spool_bench import Bench
from structlog.testing import capture_logs

from framepack_daemon import atomic
from framepack_daemon.job import OUTCOME_FILE, State, failure
from framepack_daemon.scratch import PREVIEW, STEP_PICTURE
from framepack_daemon.spool import moves
from framepack_daemon.spool.previews import PARTIAL, Previews

VIDEO = b"the whole video"


@pytest.fixture
def job(bench: Bench) -> Iterator[str]:
    """A job that is being rendered, with a preview and a picture in scratch."""
    bench.drop()
    job = bench.take_one()
    bench.keeper.tidy(frozenset())
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    bench.keeper.moved(job, State.PROCESSING)
    (bench.work / job).mkdir()
    render(bench, job, PREVIEW, b"one section")
    render(bench, job, STEP_PICTURE, b"a picture")
    yield job
    bench.previews.close()


def render(bench: Bench, job: str, name: str, content: bytes) -> None:
    atomic.write_bytes(bench.work / job / name, content, durable=False)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def show(bench: Bench, job: str, *names: str) -> None:
    """Offer, and wait until it is there."""
    for name in names:
        bench.previews.offer(job, name)
        content = (bench.work / job / name).read_bytes()
        path = bench.previews.path(job, name)
        until(lambda path=path, content=content: path.exists() and path.read_bytes() == content)


def finish(bench: Bench, job: str) -> None:
    """Publish the job, as the daemon does."""
    (bench.work / job / "video.mp4").write_bytes(VIDEO)
    bench.publisher.record(job, {"video": {"sha256": atomic.digest(bench.work / job / "video.mp4")[1]}})
    bench.publisher.finish(job)
    bench.keeper.moved(job, State.DONE)


def outputs(bench: Bench, job: str) -> set[str]:
    """What is in outputs behind the job's id, the status file excepted."""
    names = {path.name.replace(job, "") for path in bench.outputs.iterdir()}
    return names - {".status.json"}


def cancel(bench: Bench, job: str) -> None:
    moves.cancel(bench.queue, job)
    bench.keeper.tidy(frozenset({job}))  # its worker has not let go of it yet


def test_the_newest_preview_is_the_one_that_is_shown(bench: Bench, job: str) -> None:
    show(bench, job, PREVIEW, STEP_PICTURE)
    assert outputs(bench, job) == {".preview.mp4", ".step.jpg"}
    render(bench, job, PREVIEW, b"one section, another")
    show(bench, job, PREVIEW)
    bench.writer.write(job, State.PROCESSING)
    assert bench.status(job)["preview"] == f"{job}.preview.mp4"


def test_publication_leaves_nothing_but_the_video(bench: Bench, job: str) -> None:
    show(bench, job, PREVIEW, STEP_PICTURE)
    finish(bench, job)
    assert outputs(bench, job) == {".mp4"}
    assert (bench.status(job)["preview"], bench.status(job)["message"]) == (None, "the video is ready")


def test_a_cancelled_job_leaves_its_partial_video(bench: Bench, job: str) -> None:
    show(bench, job, PREVIEW, STEP_PICTURE)
    inode = bench.previews.path(job, PREVIEW).stat().st_ino
    cancel(bench, job)
    assert outputs(bench, job) == {".partial.mp4"}
    assert bench.previews.path(job, PARTIAL).stat().st_ino == inode  # it was renamed, not copied
    status = bench.status(job)
    assert (status["state"], status["outcome"], status["preview"]) == ("failed", "cancelled", f"{job}.partial.mp4")
    assert status["message"] == f"cancelled; what was rendered is in {job}.partial.mp4"


def test_a_cancelled_job_without_a_section_leaves_nothing(bench: Bench, job: str) -> None:
    show(bench, job, STEP_PICTURE)
    cancel(bench, job)
    assert outputs(bench, job) == set()
    assert (bench.status(job)["message"], bench.status(job)["preview"]) == ("cancelled", None)


@pytest.mark.parametrize("by", ["cancel", "remove", "delete"])
def test_an_interrupted_job_keeps_its_preview_until_it_is_cancelled(bench: Bench, job: str, by: str) -> None:
    show(bench, job, PREVIEW)
    moves.interrupt(bench.queue, job)
    bench.keeper.tidy(frozenset())
    assert outputs(bench, job) == {".preview.mp4"}
    if by == "delete":
        bench.queue.path(State.PENDING, job).rename(bench.root / "elsewhere")
    else:
        getattr(moves, by)(bench.queue, job)
    bench.keeper.tidy(frozenset())
    assert outputs(bench, job) == {".partial.mp4"}
    assert bench.status(job)["outcome"] == "cancelled"
    assert bench.status(job)["message"].endswith(f"what was rendered is in {job}.partial.mp4")


def test_a_retry_that_completes_takes_the_partial_video_away(bench: Bench, job: str) -> None:
    show(bench, job, PREVIEW)
    cancel(bench, job)
    moves.retry(bench.queue, job)
    bench.keeper.tidy(frozenset())
    assert outputs(bench, job) == {".partial.mp4"}
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    (bench.work / job).mkdir()
    render(bench, job, PREVIEW, b"another take")
    show(bench, job, PREVIEW)
    assert outputs(bench, job) == {".partial.mp4", ".preview.mp4"}
    finish(bench, job)
    assert outputs(bench, job) == {".mp4"}


@pytest.mark.parametrize(
    ("ending", "left"),
    [
        ("interrupted", {".preview.mp4"}),
        ("cancelled", {".partial.mp4"}),
        ("removed", {".partial.mp4"}),
        ("failed", {".partial.mp4"}),
        ("published", {".mp4"}),
    ],
)
def test_a_copy_that_is_done_when_the_job_is_over_is_called_by_how_it_ended(
    bench: Bench, job: str, ending: str, left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, go_on = threading.Event(), threading.Event()
    real = atomic.copy

    def slow(source: Path, target: Path, *, durable: bool = True) -> None:
        real(source, target, durable=durable)
        if threading.current_thread() is not threading.main_thread():
            copied.set()
            assert go_on.wait(60)

    monkeypatch.setattr(atomic, "copy", slow)
    bench.previews.offer(job, PREVIEW)
    bench.previews.offer(job, STEP_PICTURE)
    assert copied.wait(60)
    match ending:
        case "interrupted":
            moves.interrupt(bench.queue, job)
        case "cancelled":
            cancel(bench, job)
        case "removed":
            moves.remove(bench.queue, job)
            bench.keeper.tidy(frozenset())
        case "failed":
            problem = failure({"message": "its worker died"})
            atomic.write_json(bench.queue.path(State.PROCESSING, job) / OUTCOME_FILE, problem)
        case "published":
            finish(bench, job)
    go_on.set()
    bench.previews.close()
    assert outputs(bench, job) - {".step.jpg"} == left
    (shown,) = (bench.outputs / f"{job}{suffix}" for suffix in left)
    assert shown.read_bytes() == (VIDEO if ending == "published" else b"one section")
    if ending != "interrupted":
        assert ".step.jpg" not in outputs(bench, job)


def test_of_copies_that_wait_only_the_newest_is_made_and_a_slow_share_delays_nobody(
    bench: Bench, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, copies = threading.Event(), threading.Event(), []
    real = atomic.copy

    def slow(source: Path, target: Path, *, durable: bool = True) -> None:
        begun.set()
        assert go_on.wait(60)
        copies.append(source.read_bytes())
        real(source, target, durable=durable)

    monkeypatch.setattr(atomic, "copy", slow)
    bench.previews.offer(job, PREVIEW)
    assert begun.wait(60)
    for section in range(20):
        render(bench, job, PREVIEW, f"{section} sections".encode())
        bench.previews.offer(job, PREVIEW)  # comes back although the share does not answer
    assert bench.previews.keep("another-0123456789ab") is None
    go_on.set()
    bench.previews.close()
    assert copies == [b"19 sections"] * 2
    assert bench.previews.path(job, PREVIEW).read_bytes() == b"19 sections"


def test_a_share_that_cannot_be_written_is_said_once_and_previews_go_on_when_it_can(bench: Bench, job: str) -> None:
    away = bench.outputs.rename(bench.root / "away")
    bench.outputs.write_text("no folder")
    with capture_logs() as logs:
        for _ in range(3):
            bench.previews.offer(job, PREVIEW)
            bench.previews.offer(job, STEP_PICTURE)
            until(lambda: not bench.previews._waiting)
        until(lambda: bench.previews._failing)
        bench.outputs.unlink()
        away.rename(bench.outputs)
        show(bench, job, PREVIEW)
    assert [entry["event"] for entry in logs] == ["preview_not_written"]
    assert ".preview.mp4" in outputs(bench, job)


def test_scratch_that_is_gone_is_no_trouble(bench: Bench, job: str) -> None:
    atomic.remove_tree(bench.work / job)
    bench.previews.offer(job, PREVIEW)
    bench.previews.close()
    assert outputs(bench, job) == set()
    assert not bench.previews._failing


def restart(bench: Bench) -> None:
    """What a daemon that starts does first."""
    bench.keeper.seen.clear()
    bench.recover()


@pytest.mark.parametrize(
    ("place", "left"),
    [
        (State.PENDING, {".preview.mp4", ".step.jpg"}),
        (State.PROCESSING, {".preview.mp4", ".step.jpg"}),
        (State.FAILED, {".partial.mp4"}),
        (None, {".partial.mp4"}),
    ],
)
def test_what_moved_while_no_daemon_ran_is_seen_at_the_next_start(
    bench: Bench, job: str, place: State | None, left: set[str]
) -> None:
    show(bench, job, PREVIEW, STEP_PICTURE)
    bench.writer.write(job, State.PROCESSING)
    folder = bench.queue.path(State.PROCESSING, job)
    if place is not State.PROCESSING:
        folder.rename(bench.queue.path(place, job) if place else bench.root / "elsewhere")
    restart(bench)
    assert outputs(bench, job) == left


def test_a_start_finds_previews_that_a_crash_left(bench: Bench, job: str) -> None:
    show(bench, job, PREVIEW)
    os.link(bench.previews.path(job, PREVIEW), bench.outputs / f".{job}.preview.mp4.0123abcd.tmp")
    foreign = ["holiday.preview.mp4", "a-0123456789ab.preview.mp4", "holiday.step.jpg"]  # of no job of this queue
    for name in foreign:
        (bench.outputs / name).write_bytes(b"")
    finish(bench, job)
    for name in (PREVIEW, STEP_PICTURE):
        bench.previews.path(job, name).write_bytes(b"left over")
    restart(bench)
    assert {path.name for path in bench.outputs.iterdir()} == {*foreign, f"{job}.mp4", f"{job}.status.json"}


def test_pictures_and_latents_go_where_they_belong(bench: Bench, job: str) -> None:
    for name in ("poster.jpg", "animation.webp", "latents.safetensors"):
        (bench.work / job / name).write_bytes(name.encode())
    left = bench.queue.path(State.PROCESSING, job) / ".latents.safetensors.0123abcd.tmp"  # of a copy that a crash cut
    left.write_bytes(b"half")
    finish(bench, job)
    assert outputs(bench, job) == {".mp4", ".poster.jpg", ".webp"}
    assert (bench.outputs / f"{job}.webp").read_bytes() == b"animation.webp"
    assert (bench.queue.path(State.DONE, job) / "latents.safetensors").read_bytes() == b"latents.safetensors"
    assert bench.files(State.DONE, job) == {
        "beach.png", "beach.json", "job.json", "run.json", "outcome.json", "latents.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("videos", [False, True])
def test_prune_takes_what_it_is_asked_to_take(bench: Bench, job: str, videos: bool, forget: bool) -> None:
    for name in ("poster.jpg", "animation.gif", "latents.safetensors"):
        (bench.work / job / name).write_bytes(b"")
    finish(bench, job)
    assert moves.prune(bench.queue, bench.outputs, keep=0, older_than_seconds=None, videos=videos, forget=forget) == [
        job
    ]
    assert outputs(bench, job) == (set() if videos else {".mp4", ".poster.jpg", ".gif"})
    assert (bench.outputs / f"{job}.status.json").exists() is not forget
    if not forget:
        assert bench.files(State.DONE, job) == {"run.json", "outcome.json"}


def test_prune_takes_the_partial_video_of_a_failed_job(bench: Bench, job: str) -> None:
    show(bench, job, PREVIEW)
    cancel(bench, job)
    moves.prune(bench.queue, bench.outputs, keep=0, older_than_seconds=None, videos=True, forget=False)
    assert outputs(bench, job) == set()


def test_a_queue_that_offers_nothing_starts_no_thread(bench: Bench) -> None:
    before = threading.active_count()
    Previews(bench.queue, bench.outputs, bench.work).close()
    assert threading.active_count() == before
