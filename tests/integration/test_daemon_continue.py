"""Continuing a job or a video with a real daemon, and a drop of several seeds."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from lab import QUICK, Lab
from PIL import Image
from videos import shade, write_video

from framepack_daemon.job import State
from framepack_daemon.media import clip

SIZE = {"width": 80, "height": 64}
UNSIZED = {name: value for name, value in QUICK.items() if name not in SIZE}


@pytest.fixture(scope="module")
def settings() -> dict[str, float]:
    """No drop is taken because of a timer."""
    return {"rescan_seconds": 3600}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference, in steps of 255."""
    return float(np.sqrt(((one.astype(float) - other) ** 2).mean()))


def put(lab: Lab, stem: str, **fields: Any) -> None:
    """A sidecar in the inbox, without a picture and a size."""
    (lab.inbox / f"{stem}.json").write_text(json.dumps(UNSIZED | fields))


def continued(lab: Lab, sampling: str) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a job, and of one that continues it in that order of the sections."""
    lab.drop("one", keep_latents=True, sampling=sampling, **SIZE)
    one = lab.ended("one")
    put(lab, "two", continue_from=one, sampling=sampling)
    before, after = lab.frames(one), lab.frames(lab.ended("two"))
    assert after.shape[1:] == before.shape[1:] == (64, 80, 3)
    return before, after


def test_forwards_a_job_goes_on_where_another_ended(running: Lab) -> None:
    before, after = continued(running, "vanilla")
    assert distance(after[0], before[-1]) < 8
    assert distance(after[0], before[0]) > 50, "the test would show nothing"


def test_backwards_it_goes_on_from_the_last_frame_as_from_a_picture(running: Lab) -> None:
    before, after = continued(running, "inverted_anti_drifting")
    Image.fromarray(before[-1]).save(running.inbox / "same.png")
    put(running, "same", sampling="inverted_anti_drifting", **SIZE)
    same = running.frames(running.ended("same"))
    assert distance(after[0], same[0]) < 8
    assert distance(after[0], before[-1]) < distance(after[0], before[0])


def test_a_drop_that_waits_for_a_job_is_taken_as_soon_as_that_is_done(running: Lab) -> None:
    running.queue.pause_file.touch()
    running.drop("one", keep_latents=True)
    one = running.ended("one", State.PENDING)
    put(running, "two", continue_from=one)
    listed = json.loads(running.command("status", "--json").stdout)
    assert listed["halves"] == [{"name": "two.json", "waits_for": f"{one} to be done: it is pending"}]
    running.queue.pause_file.unlink()
    assert running.status(running.ended("two"))["request"]["continue_from"] == one


def test_a_video_beside_its_sidecar_is_gone_on_from(running: Lab) -> None:
    write_video(running.inbox / "more.mp4", size=(80, 64), frames=30)
    put(running, "more", continue_from="more.mp4", **SIZE)
    job = running.ended("more")
    (first,) = running.frames(job)[:1]
    last = np.asarray(clip.last_frame(running.queue.path(State.DONE, job) / "more.mp4"))
    assert distance(first, last) < 20
    assert distance(first, np.full_like(last, shade(0))) > 50, "the test would show nothing"
    assert not list(running.inbox.glob("more*"))


def test_each_seed_of_a_drop_is_a_video(running: Lab) -> None:
    shutil.copyfile(running.picture, running.inbox / "beach.png")
    fields = {name: value for name, value in QUICK.items() if name != "seed"}
    (running.inbox / "beach.json").write_text(json.dumps(fields | {"seeds": [4, 3]}))
    jobs = running.until(lambda: len(running.jobs(State.DONE)) == 2 and running.jobs(State.DONE), "both videos")
    statuses = sorted((running.status(job) for job in jobs), key=lambda status: status["started_at"])
    assert [status["request"]["seed"] for status in statuses] == [4, 3]
    one, other = (running.frames(job) for job in jobs)
    assert (one != other).any()
