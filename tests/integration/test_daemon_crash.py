"""Kills and stops of a real daemon and its worker: what was rendered stays, nothing is rendered twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import crash
import pytest

from framepack_daemon.job import State

THREE_SECTIONS = {"frames": 100, "num_inference_steps": 4}
PUBLISHED = {".mp4", ".poster.jpg", ".status.json"}  # what is in outputs of a job that is done
MAX_OPERATIONS = 60  # of publishing; the walk ends where there are no more
# Steps between two kills. At every one of them the folders alone are tried in test_spool_crash.py.
STRIDE = 1 if crash.THOROUGH else 6


def _render_undisturbed(lab, **fields):
    """The frames of the same request under another name, which no one disturbs."""
    lab.drop("undisturbed", **fields)
    return lab.frames(lab.ended("undisturbed"))


@pytest.mark.parametrize("sampling", ["inverted_anti_drifting", "vanilla"])
@pytest.mark.parametrize("victim", ["daemon", "worker"])
def test_a_kill_in_section_2_of_3_costs_no_more_than_that_section(running, victim: str, sampling: str) -> None:
    fields = THREE_SECTIONS | {"sampling": sampling}
    running.drop(**fields)
    job = running.ended("beach", State.PROCESSING)
    running.reaches(job, 2, 1)
    worker = running.worker_pid()

    os.kill(running.process.pid if victim == "daemon" else worker, signal.SIGKILL)
    if victim == "daemon":
        running.process.wait()
        running.until(lambda: not Path(f"/proc/{worker}").exists(), "the worker to die with its daemon")
        assert running.jobs(State.PROCESSING) == [job]
        running.start()
    running.until(lambda: len(running.events("job_claimed")) == 2, "the second claim")
    resumed = running.until(lambda: (running.status(job)["progress"] or {}).get("section"), "progress")
    assert resumed >= 2

    running.ended("beach")
    assert (running.frames(job) == _render_undisturbed(running, **fields)).all()


def test_sigterm_stops_cleanly_and_charges_nothing(running) -> None:
    running.drop(**THREE_SECTIONS)
    job = running.ended("beach", State.PROCESSING)
    running.reaches(job, 2, 2)
    assert running.stop() == 0
    assert running.jobs(State.PENDING) == [job]
    assert running.queue.run(State.PENDING, job).attempts == 0
    assert running.status(job)["state"] == "pending"

    running.start()
    running.until(lambda: len(running.events("job_claimed")) == 2, "the second claim")
    progress = running.until(lambda: running.status(job)["progress"], "progress")
    assert (progress["section"], progress["step"]) >= (2, 2)
    running.ended("beach")
    assert (running.frames(job) == _render_undisturbed(running, **THREE_SECTIONS)).all()


def test_a_second_signal_stops_at_once(running) -> None:
    running.drop(frames=37, num_inference_steps=1, width=512, height=512)
    job = running.ended("beach", State.PROCESSING)
    running.process.send_signal(signal.SIGTERM)
    running.until(lambda: running.events("job_stopping"), "the stop")
    worker = running.worker_pid()
    running.stop()
    running.until(lambda: not Path(f"/proc/{worker}").exists(), "the worker's end")
    assert job in running.jobs(State.PENDING) + running.jobs(State.DONE)


def test_a_kill_at_each_step_of_publishing_renders_nothing_twice(lab) -> None:
    lab.start()
    lab.drop(frames=5)
    job = lab.ended("beach")
    first = lab.frames(job)
    lab.stop()
    template = lab.root.with_name("template")
    _unpublish(lab, job)
    (lab.root / "daemon.log").unlink()
    shutil.copytree(lab.root, template)

    for operation in range(0, MAX_OPERATIONS, STRIDE):
        shutil.rmtree(lab.root)
        shutil.copytree(template, lab.root)
        script = Path(__file__).with_name("dying_daemon.py")
        with (lab.root / "daemon.log").open("ab") as log:
            lab.process = subprocess.Popen(
                [sys.executable, str(script), str(operation)], env=lab.environment(), stderr=log
            )
        lab.until(lambda: lab.process.poll() is not None or lab.events("job_done"), "the kill, or the end")
        finished = lab.process.poll() is None
        if not finished:
            assert lab.process.returncode == -signal.SIGKILL
            lab.start()
        lab.ended("beach")
        assert lab.stop() == 0
        assert (lab.frames(job) == first).all()
        assert {path.name.removeprefix(job) for path in lab.outputs.iterdir()} == PUBLISHED
        assert not lab.events("job_claimed"), "it was rendered again"
        if finished:
            break
    assert operation > 8
    assert finished


def _unpublish(lab, job: str) -> None:
    """Bring a done job back to the moment after its outcome was written: video in scratch only, previews in outputs."""
    scratch = lab.work / job
    scratch.mkdir(parents=True)
    (lab.outputs / f"{job}.mp4").rename(scratch / "video.mp4")
    (lab.outputs / f"{job}.poster.jpg").rename(scratch / "poster.jpg")
    for name in ("preview.mp4", "step.jpg", "partial.mp4"):
        (lab.outputs / f"{job}.{name}").write_bytes(b"of while it ran")
    lab.queue.move(job, State.DONE, State.PROCESSING)


def test_a_job_that_kills_its_worker_every_time_fails_and_the_others_run(lab) -> None:
    lab.start(max_attempts=2)
    lab.drop("deadly", frames=37, num_inference_steps=100, width=256, height=256)
    job = lab.ended("deadly", State.PROCESSING)
    for attempt in (1, 2):
        lab.until(lambda: len(lab.events("job_claimed")) == attempt, f"attempt {attempt}")  # noqa: B023
        lab.reaches(job, 1, 1)
        os.kill(lab.worker_pid(), signal.SIGSEGV)
        lab.until(lambda: len(lab.events("job_attempt_failed")) == attempt, "the death")  # noqa: B023
    lab.ended("deadly", State.FAILED)
    status = lab.status(job)
    assert status["error"]["code"] == "worker_died"
    assert "Segmentation fault" in (lab.queue.path(State.FAILED, job) / "outcome.json").read_text()
    lab.drop("good")
    lab.ended("good")


def test_a_worker_that_hangs_is_killed_and_its_job_is_tried_again(lab) -> None:
    lab.start(step_timeout_seconds=10)
    lab.drop(**THREE_SECTIONS)
    job = lab.ended("beach", State.PROCESSING)
    lab.reaches(job, 1, 1)
    os.kill(lab.worker_pid(), signal.SIGSTOP)
    lab.until(lambda: lab.events("job_attempt_failed"), "the kill")
    assert "said nothing" in lab.events("job_attempt_failed")[0]["reason"]
    lab.ended("beach")


def test_missing_weights_leave_the_job_waiting_with_the_command_that_mends_it(running) -> None:
    running.drop("real", model="framepack-i2v")
    job = running.ended("real", State.PENDING)
    running.until(lambda: "models pull framepack-i2v" in running.status(job)["message"], "the reason")
    running.drop("tiny")
    running.ended("tiny")
    assert running.jobs(State.PENDING) == [job]
    assert running.queue.run(State.PENDING, job).attempts == 0
