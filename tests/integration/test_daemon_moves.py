"""Moves of job directories by hand while a real daemon runs: each is a command."""

from __future__ import annotations

import signal

import pytest

from framepack_daemon.job import State

LONG = {"frames": 400, "num_inference_steps": 12}


def _move(lab, job: str, source: State, target: State) -> None:
    lab.queue.path(source, job).rename(lab.queue.path(target, job))


def _interrupt_by_hand(lab, job: str) -> None:
    _move(lab, job, State.PROCESSING, State.PENDING)


def _interrupt_by_command(lab, job: str) -> None:
    assert "interrupted" in lab.command("interrupt", job).stdout


@pytest.mark.parametrize("interrupt", [_interrupt_by_hand, _interrupt_by_command])
def test_back_to_pending_interrupts_and_the_other_job_runs_next(running, interrupt) -> None:
    running.drop("long", **LONG)
    job = running.ended("long", State.PROCESSING)
    running.reaches(job, 1, 1)
    running.drop("short")
    running.ended("short", State.PENDING)

    interrupt(running, job)

    other = running.ended("short")
    claims = [event["job"] for event in running.events("job_claimed")]
    assert claims[:2] == [job, other]
    stopped = next(event for event in running.events("job_stopped") if event["job"] == job)
    asked = next(event for event in running.events("job_stopping") if event["job"] == job)
    assert asked["timestamp"] <= stopped["timestamp"]
    # It kept what it had: when its turn comes again, it goes on where it was.
    running.until(lambda: len(running.events("job_claimed")) == 3, "the long job again")
    running.until(lambda: running.status(job)["progress"], "its progress")
    progress = running.status(job)["progress"]
    assert (progress["section"], progress["step"]) >= (1, 1)
    assert running.queue.run(State.PROCESSING, job).attempts == 1


def test_with_the_queue_paused_an_interrupted_job_waits(running) -> None:
    running.drop("long", **LONG)
    job = running.ended("long", State.PROCESSING)
    running.reaches(job, 1, 1)
    running.queue.pause_file.touch()
    _move(running, job, State.PROCESSING, State.PENDING)
    running.until(lambda: running.events("job_stopped"), "the stop")
    running.until(lambda: running.status(job)["state"] == "pending", "the status")
    running.drop("short")
    running.ended("short", State.PENDING)
    assert running.jobs(State.PROCESSING) == []
    assert len(running.events("job_claimed")) == 1


def test_a_retry_that_is_cancelled_before_it_is_seen(running) -> None:
    running.drop()
    job = running.ended("beach")
    running.until(lambda: running.status(job)["state"] == "done", "its status")
    running.process.send_signal(signal.SIGSTOP)
    _move(running, job, State.DONE, State.PENDING)
    _move(running, job, State.PENDING, State.FAILED)
    running.process.send_signal(signal.SIGCONT)
    running.until(lambda: running.events("job_cancelled"), "the daemon to see it")
    running.until(lambda: running.status(job)["outcome"] == "cancelled", "its status")
    assert running.status(job)["state"] == "failed"


def test_failed_to_pending_runs_again(running) -> None:
    running.drop()
    job = running.ended("beach")
    first = running.frames(job)
    _move(running, job, State.DONE, State.PENDING)
    running.until(lambda: len(running.events("job_done")) == 2, "the second run")
    assert (running.frames(job) == first).all()
    assert sorted(path.name for path in running.outputs.glob("*.mp4")) == [f"{job}.mp4"]

    running.drop("bad", seconds=1000, frames=None)
    bad = running.ended("bad", State.FAILED)
    (running.queue.path(State.FAILED, bad) / "bad.json").write_text(
        '{"prompt": "mended", "width": 64, "height": 64, "frames": 5, "num_inference_steps": 1}'
    )
    _move(running, bad, State.FAILED, State.PENDING)
    mended = running.ended("bad")  # the mended sidecar is another content, hence another id
    assert running.status(mended)["request"]["prompt"] == "mended"


@pytest.mark.parametrize("by_command", [False, True])
def test_removing_a_pending_job_cancels_it(running, by_command: bool) -> None:
    running.queue.pause_file.touch()
    running.drop()
    job = running.ended("beach", State.PENDING)
    running.until((running.outputs / f"{job}.status.json").exists, "the status")
    if by_command:
        assert running.command("remove", job).returncode == 0
    else:
        running.queue.path(State.PENDING, job).rename(running.root / "elsewhere")
    running.until(lambda: running.status(job)["outcome"] == "cancelled", "the cancellation")
    running.queue.pause_file.unlink()
    running.drop("other")
    running.ended("other")
    assert running.queue.state_of(job) is None


@pytest.mark.parametrize("by_command", [False, True])
def test_to_failed_cancels_a_running_job(running, by_command: bool) -> None:
    running.drop("long", **LONG)
    job = running.ended("long", State.PROCESSING)
    running.reaches(job, 1, 1)
    if by_command:
        assert "cancelled" in running.command("cancel", job).stdout
    else:
        _move(running, job, State.PROCESSING, State.FAILED)
    running.until(lambda: running.events("job_stopped"), "the stop")
    running.until(lambda: running.status(job)["outcome"] == "cancelled", "the status")
    assert running.status(job)["state"] == "failed"
    assert "already cancelled" in running.command("cancel", job).stdout
    running.drop("short")
    running.ended("short")
    assert running.jobs(State.FAILED) == [job]


def test_a_repeated_drop_starts_nothing_in_any_state(running) -> None:
    running.drop("long", **LONG)
    job = running.ended("long", State.PROCESSING)
    running.queue.pause_file.touch()

    def again(state: State) -> None:
        before = len(running.events("job_known"))
        running.drop("long", **LONG)
        running.until(lambda: len(running.events("job_known")) > before, "the repeat to be consumed")
        assert not list(running.inbox.glob("long.*"))
        assert running.queue.state_of(job) is state

    again(State.PROCESSING)
    _move(running, job, State.PROCESSING, State.FAILED)
    running.until(lambda: running.status(job)["outcome"] == "cancelled", "the cancellation")
    again(State.FAILED)
    assert "dropped again" in running.status(job)["message"]
    _move(running, job, State.FAILED, State.PENDING)
    running.until(lambda: running.status(job)["state"] == "pending", "the retry")
    again(State.PENDING)
    running.queue.pause_file.unlink()
    running.drop("short")
    short = running.ended("short") if running.command("cancel", job).returncode == 0 else ""
    running.drop("short")
    running.until(lambda: running.events("job_known")[-1]["job"] == short, "the done one to be known")
    assert len([event for event in running.events("job_done") if event["job"] == short]) == 1


def test_a_file_swapped_for_a_link_keeps_no_other_job_from_running(running) -> None:
    running.queue.pause_file.touch()
    running.drop("swapped")
    job = running.ended("swapped", State.PENDING)
    running.drop("other")
    running.ended("other", State.PENDING)
    # The keeper has seen both: what comes now, only the claim can find out.
    running.until(lambda: running.status(job)["state"] == "pending", "the status")
    picture = running.queue.path(State.PENDING, job) / "swapped.png"
    picture.unlink()
    picture.symlink_to(running.picture)
    running.queue.pause_file.unlink()
    running.ended("other")
    running.until(lambda: running.queue.state_of(job) is not State.PENDING, "the swapped one to be refused or entered")


def test_an_outcome_without_a_video_is_set_aside_and_the_job_runs(lab) -> None:
    outcomes = ['{"outcome": "completed"}', '{"outcome": "completed", "video": 5}', "{", "[]"]
    lab.queue.make()
    lab.queue.pause_file.touch()
    lab.start()
    jobs = []
    for seed in range(len(outcomes)):
        lab.drop(f"beach{seed}", seed=seed, frames=5)
        jobs.append(lab.ended(f"beach{seed}", State.PENDING))
    lab.stop()
    for job, outcome in zip(jobs, outcomes, strict=True):
        folder = lab.queue.path(State.PENDING, job).rename(lab.queue.path(State.PROCESSING, job))
        (folder / "outcome.json").write_text(outcome)
    lab.queue.pause_file.unlink()
    lab.start()
    assert [lab.ended(f"beach{seed}") for seed in range(len(outcomes))] == jobs
    assert [lab.status(job)["outcome"] for job in jobs] == ["completed"] * len(outcomes)
    assert sorted(event["job"] for event in lab.events("video_lost")) == jobs
