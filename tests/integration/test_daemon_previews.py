"""Previews with a real daemon: they grow, always play, and end as the job ends."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from lab import Lab
from PIL import Image

from framepack_daemon.job import State
from framepack_daemon.media import video

FRAMES = 150  # five sections
FIELDS = {"frames": FRAMES, "height": 112}  # of this height torch decodes the tiny model's frames in its fast way


@pytest.fixture(scope="module")
def settings() -> dict[str, int]:
    """The worker leaves a core to the test."""
    return {"threads": 1}


def names(lab: Lab, job: str) -> set[str]:
    """What is in outputs behind the job's id."""
    return {path.name.removeprefix(job) for path in lab.outputs.iterdir()}


def frames_in(path: Path) -> int:
    """Frames of a preview, every one decoded; 0 when there is none at this moment."""
    try:
        return video.probe(path).frames
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("sampling", ["inverted_anti_drifting", "vanilla"])
def test_a_preview_grows_with_every_section_and_plays_whenever_it_is_seen(running: Lab, sampling: str) -> None:
    running.drop(**FIELDS, sampling=sampling, step_preview=True, animation="webp")
    job = running.until(lambda: running.jobs(State.PROCESSING), "the start")[0]
    preview, step = running.outputs / f"{job}.preview.mp4", running.outputs / f"{job}.step.jpg"
    seen: list[int] = []
    pictures: set[tuple[int, int]] = set()

    def done() -> bool:
        frames = frames_in(preview)  # raises for one that does not play
        if frames and frames not in seen:
            seen.append(frames)
        with contextlib.suppress(FileNotFoundError), Image.open(step) as picture:
            picture.load()
            pictures.add(picture.size)
        return bool(running.jobs(State.DONE))

    running.until(done, "the video")
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert seen[-1] <= FRAMES
    assert pictures
    assert names(running, job) == {".mp4", ".poster.jpg", ".webp", ".status.json"}
    status = running.status(job)
    assert status["preview"] is None
    assert "torch" in status["versions"]


def test_cancel_leaves_what_was_rendered(running: Lab) -> None:
    running.drop(**FIELDS, step_preview=True)
    job = running.until(lambda: running.jobs(State.PROCESSING), "the start")[0]
    preview = running.outputs / f"{job}.preview.mp4"
    running.until(preview.exists, "a preview")
    running.queue.path(State.PROCESSING, job).rename(running.queue.path(State.FAILED, job))
    running.until(lambda: running.status(job)["outcome"] == "cancelled", "the cancellation")
    running.until(lambda: not running.work.joinpath(job).exists(), "its scratch to be cleared")
    assert names(running, job) == {".partial.mp4", ".status.json"}
    status = running.status(job)
    assert status["preview"] == f"{job}.partial.mp4"
    assert f"{job}.partial.mp4" in status["message"]
    assert 0 < frames_in(running.outputs / f"{job}.partial.mp4") < FRAMES

    assert running.command("retry", job).returncode == 0
    running.ended("beach")
    assert names(running, job) == {".mp4", ".poster.jpg", ".status.json"}


def test_a_stop_and_a_kill_keep_the_preview(running: Lab) -> None:
    running.drop(**FIELDS)
    job = running.until(lambda: running.jobs(State.PROCESSING), "the start")[0]
    preview = running.outputs / f"{job}.preview.mp4"
    running.until(preview.exists, "a preview")
    first = frames_in(preview)
    assert running.stop() == 0
    assert running.jobs(State.PENDING) == [job]
    assert frames_in(preview) >= first > 0

    running.start(threads=1)
    running.reaches(job, 2)
    running.stop(signal.SIGKILL)
    assert frames_in(preview) >= first
    running.start(threads=1)
    running.ended("beach")
    assert names(running, job) == {".mp4", ".poster.jpg", ".status.json"}


def test_a_job_that_fails_for_good_leaves_what_was_rendered(lab: Lab) -> None:
    lab.start(max_attempts=1, threads=1)
    lab.drop(**FIELDS)
    job = lab.until(lambda: lab.jobs(State.PROCESSING), "the start")[0]
    preview = lab.outputs / f"{job}.preview.mp4"
    lab.until(preview.exists, "a preview")
    killed = 0  # the first death is forgiven, for it made headway before; the next, at the start, is not

    def failed() -> bool:
        nonlocal killed
        pid = lab.worker_pid()
        if pid != killed and lab.jobs(State.PROCESSING):
            killed = pid
            os.kill(pid, signal.SIGKILL)
        return bool(lab.jobs(State.FAILED))

    lab.until(failed, "the failure")
    assert names(lab, job) == {".partial.mp4", ".status.json"}
    assert lab.status(job)["message"].endswith(f"what was rendered is in {job}.partial.mp4")
    assert frames_in(lab.outputs / f"{job}.partial.mp4") > 0


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_a_job_in_another_codec_has_previews_and_a_video_in_it(running: Lab, codec: str) -> None:
    running.drop(frames=80, height=112, codec=codec, crf=30)
    job = running.until(lambda: running.jobs(State.PROCESSING), "the start")[0]
    preview = running.outputs / f"{job}.preview.mp4"
    running.until(lambda: preview.exists() or running.jobs(State.DONE), "a preview")
    if not running.jobs(State.DONE):
        assert video.probe(preview).codec == codec
    running.ended("beach")
    facts = video.verify(running.outputs / f"{job}.mp4", frames=80, width=64, height=112, codec=codec)
    assert running.status(job)["video"]["codec"] == facts.codec


def test_a_codec_that_cannot_be_written_here_fails_the_job_with_the_mend(running: Lab) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is an NVIDIA driver here")
    running.drop(codec="h264_nvenc")
    job = running.ended("beach", State.FAILED)
    error = running.status(job)["error"]
    assert error["code"] == "no_encoder"
    assert "codec: h264_nvenc" in error["message"]
    assert "use codec h264" in error["hint"]
    assert len(running.events("job_claimed")) == 1
