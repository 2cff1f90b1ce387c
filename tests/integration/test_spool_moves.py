"""What people and the keeper do to job directories, on real folders and without a daemon."""

from __future__ import annotations

import errno
import json
import multiprocessing
from itertools import pairwise, permutations
from pathlib import Path

import pytest
from crash import lifecycle, restarted
from spool_bench import Bench

from framepack_daemon import atomic
from framepack_daemon.errors import QueueHeldError, StateError, UnknownJobError
from framepack_daemon.job import Run, State
from framepack_daemon.spool import moves
from framepack_daemon.spool.lock import FolderLock
from framepack_daemon.spool.publish import LostVideoError
from framepack_daemon.spool.queue import Queue

NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def job(bench: Bench) -> str:
    """A pending job that the keeper knows."""
    bench.drop()
    name = bench.take_one()
    bench.recover()
    return name


def test_cancel_in_every_state_and_twice(bench: Bench, job: str) -> None:
    assert moves.cancel(bench.queue, job).endswith("cancelled")
    bench.keeper.tidy(NOTHING)
    assert bench.status(job)["outcome"] == "cancelled"
    assert "already cancelled" in moves.cancel(bench.queue, job)
    bench.queue.move(job, State.FAILED, State.DONE)
    assert "already completed" in moves.cancel(bench.queue, job)


def test_a_cancel_after_the_last_step_comes_too_late(bench: Bench, job: str) -> None:
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    bench.publisher.record(job, {"video": {"sha256": "0" * 64}})
    assert "already completed" in moves.cancel(bench.queue, job)
    assert "already completed" in moves.interrupt(bench.queue, job)
    assert bench.queue.state_of(job) is State.PROCESSING


def test_a_waiting_job_whose_directory_was_renamed_gets_its_name_back(bench: Bench, job: str) -> None:
    bench.queue.path(State.PENDING, job).rename(bench.queue.path(State.PENDING, "my favourite"))
    bench.keeper.tidy(NOTHING, {job, "my favourite"})
    bench.keeper.tidy(NOTHING)
    assert bench.jobs(State.PENDING) == [job]
    assert bench.jobs(State.FAILED) == []
    assert bench.status(job)["state"] == "pending"
    assert bench.keeper.line.first() == job


def test_interrupt_only_what_runs(bench: Bench, job: str) -> None:
    assert "it waits" in moves.interrupt(bench.queue, job)
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    assert "interrupted" in moves.interrupt(bench.queue, job)
    bench.queue.move(job, State.PENDING, State.FAILED)
    with pytest.raises(StateError, match="is not running"):
        moves.interrupt(bench.queue, job)


def test_retry_only_what_ended(bench: Bench, job: str) -> None:
    assert "waits already" in moves.retry(bench.queue, job)
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    with pytest.raises(StateError, match="is running"):
        moves.retry(bench.queue, job)
    bench.queue.move(job, State.PROCESSING, State.FAILED)
    bench.keeper.tidy(NOTHING)
    assert "waits to run again" in moves.retry(bench.queue, job)
    bench.keeper.tidy(NOTHING)
    run = bench.queue.run(State.PENDING, job)
    assert run is not None
    assert (run.attempts, run.started_at) == (0, None)
    assert bench.status(job)["state"] == "pending"


def test_a_pruned_job_is_not_retried(bench: Bench, job: str) -> None:
    moves.cancel(bench.queue, job)
    bench.keeper.tidy(NOTHING)
    moves.prune(bench.queue, bench.outputs, keep=0, older_than_seconds=None, videos=False, forget=False)
    with pytest.raises(StateError, match="was pruned"):
        moves.retry(bench.queue, job)


@pytest.mark.parametrize("state", list(State))
def test_remove_takes_a_job_out_of_every_state(bench: Bench, job: str, state: State) -> None:
    if state is not State.PENDING:
        bench.queue.move(job, State.PENDING, state)
    assert "removed" in moves.remove(bench.queue, job)
    assert bench.queue.state_of(job) is None
    with pytest.raises(UnknownJobError):
        moves.remove(bench.queue, job)


def test_a_job_is_named_by_its_beginning(bench: Bench, job: str) -> None:
    bench.drop("beacon")
    bench.take()
    assert moves.resolve(bench.queue, "beach") == job
    with pytest.raises(UnknownJobError, match="names 2 jobs"):
        moves.resolve(bench.queue, "bea")
    with pytest.raises(UnknownJobError) as caught:
        moves.resolve(bench.queue, "baech")
    assert job in caught.value.hint


def test_pause_and_resume_twice(bench: Bench) -> None:
    assert "paused" in moves.pause(bench.queue)
    assert moves.pause(bench.queue) == "already paused"
    assert bench.queue.paused
    assert moves.resume(bench.queue) == "resumed"
    assert moves.resume(bench.queue) == "not paused"


def _race(act: str, root: Path, job: str, gate: multiprocessing.Barrier, answers: multiprocessing.Queue) -> None:  # type: ignore[valid-type]
    gate.wait()
    try:
        answers.put(getattr(moves, act)(Queue(root), job))
    except (StateError, UnknownJobError) as error:
        answers.put(error.message)


@pytest.mark.parametrize(("one", "other"), [("cancel", "cancel"), ("cancel", "remove"), ("interrupt", "cancel")])
def test_of_two_at_the_same_moment_one_wins_and_nothing_is_lost(bench: Bench, job: str, one: str, other: str) -> None:
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(2), context.Queue()
    racers = [
        context.Process(target=_race, args=(act, bench.queue.root, job, gate, answers), daemon=True)
        for act in (one, other)
    ]
    for racer in racers:
        racer.start()
    said = [answers.get(timeout=30) for _ in racers]
    for racer in racers:
        racer.join()
    places = [state for state in State if job in bench.queue.names(state)]
    assert len(places) == (0 if "remove" in (one, other) else 1)
    assert all(job in answer for answer in said)


@pytest.mark.parametrize(("source", "target"), list(permutations(State, 2)))
def test_a_move_by_hand_between_any_two_states_leaves_sane_records(
    bench: Bench, job: str, source: State, target: State
) -> None:
    if source is not State.PENDING:
        bench.queue.move(job, State.PENDING, source)
        if source in (State.DONE, State.FAILED):
            atomic.write_json(
                bench.queue.path(source, job) / "outcome.json",
                {"outcome": "completed" if source is State.DONE else "failed", "video": {"sha256": "ab"}},
            )
        bench.keeper.tidy(frozenset({job}))
    bench.queue.path(source, job).rename(bench.queue.path(target, job))
    for _ in range(2):  # what a pass moves itself, the next one sees
        bench.keeper.tidy(NOTHING)
    found = bench.queue.state_of(job)
    run = bench.queue.run(found, job) if found else None
    assert found is not None
    assert run is not None
    if target is State.PENDING:
        assert found is State.PENDING
        assert not (bench.queue.path(found, job) / "outcome.json").exists()
        assert run.videos == (("ab",) if source in (State.DONE, State.FAILED) else ())
        assert bench.status(job)["state"] == "pending"
    elif target is State.PROCESSING and source is State.PENDING:
        assert found is State.PENDING, "nothing claimed it"
    elif target is State.FAILED and source is not State.DONE:
        assert bench.status(job)["state"] == "failed"


def test_a_vanished_job_is_said_to_be_cancelled(bench: Bench, job: str) -> None:
    bench.queue.path(State.PENDING, job).rename(bench.root / "elsewhere")
    bench.keeper.tidy(NOTHING)
    assert bench.status(job)["outcome"] == "cancelled"


def test_a_job_that_vanished_while_no_daemon_ran_is_noticed(bench: Bench, job: str) -> None:
    bench.queue.path(State.PENDING, job).rename(bench.root / "elsewhere")
    bench.keeper.seen.clear()
    bench.recover()
    assert bench.status(job)["outcome"] == "cancelled"


def test_a_share_that_is_away_does_not_mean_that_every_job_was_removed(bench: Bench, job: str) -> None:
    away = bench.root / "away"
    bench.queue.root.rename(away)
    bench.keeper.tidy(NOTHING)
    assert bench.status(job)["state"] == "pending"
    bench.queue.make()  # an empty mount point in its place
    bench.keeper.tidy(NOTHING)
    assert bench.status(job)["state"] == "pending"


@pytest.mark.parametrize(
    ("first", "second"), [(State.PROCESSING, State.PENDING), (State.DONE, State.FAILED), (State.FAILED, State.PENDING)]
)
def test_the_same_id_twice_sets_the_second_aside(bench: Bench, job: str, first: State, second: State) -> None:
    bench.drop()
    (drop,) = bench.scanner.scan().drops
    hidden = bench.root / "hidden"
    bench.queue.path(State.PENDING, job).rename(hidden)
    bench.door.add(drop)
    hidden.rename(bench.queue.path(first, job))
    if second is not State.PENDING:
        bench.queue.path(State.PENDING, job).rename(bench.queue.path(second, job))
    for _ in range(2):
        bench.keeper.tidy(frozenset({job}))
    assert bench.queue.state_of(job) is first
    assert f"{job}.conflict-1" in bench.jobs(State.FAILED)
    outcome = json.loads((bench.queue.path(State.FAILED, f"{job}.conflict-1") / "outcome.json").read_text())
    assert outcome["error"]["hint"]


def test_a_folder_of_files_put_into_pending_becomes_a_job(bench: Bench, picture: Path) -> None:
    bench.recover()
    folder = bench.queue.path(State.PENDING, "by hand")
    folder.mkdir()
    (folder / "sea.png").write_bytes(picture.read_bytes())
    (folder / "sea.json").write_text('{"prompt": "waves"}')
    for _ in range(4):
        bench.keeper.tidy(NOTHING)
    (job,) = bench.jobs(State.PENDING)
    assert job.startswith("by-hand-")
    assert bench.status(job)["request"]["prompt"] == "waves"


def test_jobs_run_by_priority_and_then_by_how_long_they_wait(bench: Bench) -> None:
    for stem, priority in (("c", 0), ("a", 0), ("urgent", 5), ("idle", -5)):
        bench.drop(stem, priority=priority)
        bench.take()
    assert [job.split("-")[0] for job in bench.queue.waiting()] == ["urgent", "c", "a", "idle"]


def test_one_holder_of_a_lock_at_a_time(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "queue" / ".lock", "the queue")
    with pytest.raises(QueueHeldError, match="held by another daemon"):
        FolderLock(tmp_path / "queue" / ".lock", "the queue")
    lock.release()
    FolderLock(tmp_path / "queue" / ".lock", "the queue").release()


# -- publishing --------------------------------------------------------------------------------------------------------


def _rendered(bench: Bench, job: str, content: bytes = b"video") -> None:
    """Bring a pending job to where its worker has rendered it."""
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    scratch = bench.work / job
    scratch.mkdir(exist_ok=True)
    (scratch / "video.mp4").write_bytes(content)
    (scratch / "poster.jpg").write_bytes(b"poster")
    size, sha256 = atomic.digest(scratch / "video.mp4")
    bench.publisher.record(job, {"video": {"sha256": sha256, "bytes": size}})


def test_a_stranger_s_file_is_never_overwritten(bench: Bench, job: str) -> None:
    (bench.outputs / f"{job}.mp4").write_bytes(b"a stranger's")
    _rendered(bench, job)
    assert bench.publisher.finish(job) == f"{job}.2.mp4"
    assert (bench.outputs / f"{job}.mp4").read_bytes() == b"a stranger's"
    assert bench.status(job)["video"]["file"] == f"{job}.2.mp4"


def test_a_job_s_own_earlier_video_is_replaced(bench: Bench, job: str) -> None:
    _rendered(bench, job, b"first")
    bench.publisher.finish(job)
    bench.keeper.tidy(NOTHING)
    bench.queue.move(job, State.DONE, State.PENDING)
    bench.keeper.tidy(NOTHING)
    _rendered(bench, job, b"second")
    assert bench.publisher.finish(job) == f"{job}.mp4"
    assert (bench.outputs / f"{job}.mp4").read_bytes() == b"second"


@pytest.mark.parametrize("way", [(State.FAILED,), (State.PENDING, State.FAILED)], ids=["straight", "after a retry"])
@pytest.mark.parametrize("seen", ["at the bell", "at the next start"])
def test_a_done_job_that_is_moved_to_failed_is_cancelled(
    bench: Bench, job: str, way: tuple[State, ...], seen: str
) -> None:
    _rendered(bench, job, b"first")
    bench.publisher.finish(job)
    bench.keeper.tidy(NOTHING)
    for source, target in pairwise((State.DONE, *way)):
        bench.queue.move(job, source, target)
    assert "already cancelled" in moves.cancel(bench.queue, job), "before the daemon has seen it"
    if seen == "at the bell":
        bench.keeper.tidy(NOTHING, {job})
    else:
        restarted(bench).recover()
    status = bench.status(job)
    assert (status["state"], status["outcome"], status["video"]) == ("failed", "cancelled", None)
    assert "already cancelled" in moves.cancel(bench.queue, job)
    assert (bench.outputs / f"{job}.mp4").read_bytes() == b"first"

    moves.retry(bench.queue, job)
    bench.keeper.tidy(NOTHING)
    _rendered(bench, job, b"second")
    assert bench.publisher.finish(job) == f"{job}.mp4", "its own earlier video is replaced"


def test_a_video_that_is_nowhere_any_more_is_said_to_be_lost(bench: Bench, job: str) -> None:
    _rendered(bench, job)
    atomic.remove_tree(bench.work / job)
    with pytest.raises(LostVideoError):
        bench.publisher.finish(job)


def test_a_video_that_changed_in_scratch_is_not_published(bench: Bench, job: str) -> None:
    _rendered(bench, job)
    (bench.work / job / "video.mp4").write_bytes(b"torn")
    with pytest.raises(LostVideoError):
        bench.publisher.finish(job)
    assert [path.name for path in bench.outputs.iterdir()] == [f"{job}.status.json"]


class Idle:
    """A worker that has nothing to do, and remembers what it was asked for."""

    job = None

    def __init__(self) -> None:
        self.device = "cpu"
        self.asked: list[str] = []

    def start(self, job: str, **_: object) -> None:
        self.asked.append(job)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_job_that_is_cancelled_in_the_moment_of_its_claim_is_not_started(
    bench: Bench, job: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    bench.drop("other", seed=9)
    other = bench.take_one()
    bench.recover()
    charge = bench.queue.charge

    def cancelled(claimed: str, when: str) -> Run | None:
        if claimed == job and moment == "before":
            moves.cancel(bench.queue, job)
        run = charge(claimed, when)
        if claimed == job and moment == "after":
            moves.cancel(bench.queue, job)
        return run

    monkeypatch.setattr(bench.queue, "charge", cancelled)
    worker = Idle()
    lifecycle(bench).start_next(worker, [worker])
    assert worker.asked == [other]
    bench.keeper.tidy(frozenset())
    assert bench.status(job)["outcome"] == "cancelled"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_claim_that_a_broken_disk_ends_charges_nothing(
    bench: Bench, job: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    charge = bench.queue.charge

    def broken(claimed: str, when: str) -> Run | None:
        if moment == "after":
            charge(claimed, when)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(bench.queue, "charge", broken)
    worker = Idle()
    with pytest.raises(OSError, match="broken"):
        lifecycle(bench).start_next(worker, [worker])
    for _ in range(2):  # what a pass moves itself, the next one sees
        bench.keeper.tidy(NOTHING)
    run = bench.queue.run(State.PENDING, job)
    assert run is not None
    assert run.attempts == 0
