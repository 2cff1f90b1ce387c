"""The main job with a real daemon: a pair becomes a video, in every way in which a pair can come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import pytest

from framepack_daemon.job import State


@pytest.fixture(scope="module")
def settings() -> dict[str, float]:
    """A picture alone does not wait long for a sidecar."""
    return {"partner_seconds": 0.3}


def test_a_dropped_pair_becomes_the_video_that_it_asked_for(running) -> None:
    running.drop(frames=50, width=80, height=64)
    job = running.ended("beach")

    with av.open(str(running.outputs / f"{job}.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.pix_fmt) == (80, 64, "yuv420p")
        assert stream.average_rate == 30
        assert sum(1 for _ in container.decode(stream)) == 50
        assert json.loads(container.metadata["comment"])["prompt"] == "waves"
    assert not list(running.inbox.glob("beach.*"))
    assert (running.outputs / f"{job}.poster.jpg").read_bytes().startswith(b"\xff\xd8")
    status = running.status(job)
    assert (status["state"], status["outcome"]) == ("done", "completed")
    assert status["video"]["file"] == f"{job}.mp4"
    assert status["video"]["frames"] == 50
    running.until(lambda: not list(running.work.glob("beach*")), "its scratch to be cleared")


@pytest.mark.parametrize("first", ["png", "json"])
def test_the_two_files_may_come_in_either_order_and_far_apart(running, first: str) -> None:
    running.drop("whole")
    running.drop("half")
    late = "json" if first == "png" else "png"
    (running.inbox / f"half.{late}").rename(running.root / "aside")
    running.ended("whole")  # the daemon has had every occasion to take the lone half

    assert (running.inbox / f"half.{first}").exists()
    listed = json.loads(running.command("status", "--json").stdout)
    assert any(f"half.{first}" in str(item) for item in listed["halves"])

    shutil.copyfile(running.root / "aside", running.inbox / f"half.{late}")
    running.ended("half")


def test_the_status_file_goes_through_the_states(running) -> None:
    running.queue.pause_file.touch()
    running.drop(frames=110, num_inference_steps=3)
    job = running.ended("beach", State.PENDING)
    running.until((running.outputs / f"{job}.status.json").exists, "the status file")
    assert running.status(job)["state"] == "pending"

    running.queue.pause_file.unlink()
    running.until(lambda: running.status(job)["progress"], "progress")
    begun = running.status(job)
    assert begun["state"] == "processing"
    assert begun["progress"]["sections"] == 4

    running.until(lambda: (running.status(job)["progress"] or {}).get("eta_seconds"), "an estimate")
    running.ended("beach")
    done = running.status(job)
    assert done["state"] == "done"
    assert done["submitted_at"] < done["started_at"] < done["finished_at"]
    assert done["timings"]["sample"] > 0


def test_submit_waits_and_prints_the_video(running) -> None:
    picture = shutil.copyfile(running.picture, running.root / "my beach.png")
    words = [f"--set={name}={value}" for name, value in
             {"width": 64, "height": 64, "frames": 10, "num_inference_steps": 1}.items()]  # fmt: skip
    result = running.command("submit", str(picture), "--prompt", "waves", *words, "--wait")
    assert result.returncode == 0, result.stderr
    job = running.jobs(State.DONE)[0]
    assert job.startswith("my-beach-")
    assert str(running.outputs / f"{job}.mp4") in result.stdout
    assert picture.exists()


def test_an_end_frame_goes_into_the_video(running) -> None:
    shutil.copyfile(running.picture, running.inbox / "ends.last.png")
    running.drop("ends", frames=50)
    job = running.ended("ends")
    assert running.status(job)["request"]["last_image"] == "ends.last.png"
    assert running.status(job)["video"]["frames"] == 37  # both ends are anchored: the nearest 36n + 1


def test_a_bad_pair_is_refused_whole_and_the_queue_goes_on(running) -> None:
    running.drop("bad", seconds=1000, frames=None)
    running.drop("good")
    bad, good = running.ended("bad", State.FAILED), running.ended("good")
    assert running.jobs(State.DONE) == [good]
    assert {path.name for path in running.queue.path(State.FAILED, bad).iterdir()} >= {"bad.png", "bad.json"}
    error = running.status(bad)["error"]
    assert error["code"] == "bad_request"
    assert "seconds" in error["message"]
    assert "120" in error["hint"]


def test_a_preset_folder_takes_a_picture_alone(running) -> None:
    folder = running.inbox / "slow zoom"
    running.drop(folder=running.root)
    folder.mkdir()
    (running.root / "beach.json").rename(folder / "defaults.json")
    (running.root / "beach.png").rename(folder / "beach.png")
    job = running.ended("beach")
    assert running.status(job)["request"]["prompt"] == "waves"
    assert (folder / "defaults.json").exists()


def test_variations_are_jobs_of_their_own(running) -> None:
    running.drop(variations=2)
    running.until(lambda: len(running.jobs(State.DONE)) == 2, "both variations")
    seeds = {running.status(job)["request"]["seed"] for job in running.jobs(State.DONE)}
    assert seeds == {7, 8}


def test_the_request_of_a_done_job_makes_the_same_video_again(running) -> None:
    running.drop("one", seed=-1)
    first = running.ended("one")
    shutil.copyfile(running.picture, running.inbox / "two.png")
    shutil.copyfile(running.queue.path(State.DONE, first) / "job.json", running.inbox / "two.json")
    second = running.ended("two")
    assert running.status(first)["request"] == running.status(second)["request"]
    assert (running.frames(first) == running.frames(second)).all()


def test_the_daemon_itself_never_imports_torch(running) -> None:
    running.drop()
    running.ended("beach")
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "libtorch" in Path(f"/proc/{running.worker_pid()}/maps").read_text()


def test_a_second_daemon_on_the_queue_stops_with_its_reason(running) -> None:
    result = running.command("run")
    assert result.returncode == 69
    assert "another daemon" in result.stderr
    assert str(running.process.pid) in result.stderr
