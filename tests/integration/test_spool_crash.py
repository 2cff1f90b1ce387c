"""A crash at every operation of intake, claim, publishing, moves and recovery: what a restart makes of each.

A forked child does the work and dies at one point after the other (`crash.py`); the parent then recovers as a daemon
does at its start. Every test names what it starts from, the work, and what may come out of it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from conftest import paint
from crash import (
    VIDEO,
    Crashes,
    check_jobs,
    check_order,
    claim,
    digest,
    ended,
    lifecycle,
    places,
    recover,
    restarted,
    running,
    waiting,
)
from spool_bench import SIDECAR, Bench
from videos import write_video

from framepack_daemon import atomic
from framepack_daemon.job import LATENTS_FILE, OUTCOME_FILE, RUN_FILE, Role, State
from framepack_daemon.spool import inbox, moves, submit
from framepack_daemon.spool.capture import DropChangedError, Source, capture, signature

OTHER_FILE_SYSTEM = Path("/dev/shm")
AGAIN = 25  # the recovery from every so-many-th crash crashes too
SOME = 4  # every so-many-th point is tried of what goes nearly the way of another
OLDER = b"older video"


@pytest.fixture
def benches(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    """Makes one bench after the other, on a file system in memory; the last one is removed when the next is made.

    What the scan sees in files is tested elsewhere and takes long: here all are taken for good. Syncs are points to die
    at, but do nothing: a process that dies loses nothing that it wrote, and test_power_loss.py is about them.
    """
    monkeypatch.setattr(inbox, "judge", lambda path, kind: None)  # noqa: ARG005  the signature of what it replaces
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # noqa: ARG005
    root = OTHER_FILE_SYSTEM / f"framepack-crash-{os.getpid()}"

    def make(device: str = "same") -> Bench:
        for folder in (root, tmp_path / "bench"):
            shutil.rmtree(folder, ignore_errors=True)
        return Bench(tmp_path / "bench", picture, queue=root) if device == "other" else Bench(root, picture)

    yield make
    shutil.rmtree(root, ignore_errors=True)


# -- intake ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dropped:
    """Something that is dropped, and what becomes of it."""

    put: Callable[[Bench], object]
    jobs: int = 1
    state: State = State.PENDING
    is_own_way: bool = False  # that no other drop goes


def _everything(bench: Bench) -> None:
    bench.put("slow/defaults.json", {"crf": 20})
    bench.put("slow/beach.png")
    bench.put("slow/beach.last.png", paint(bench.root / "last.png", shade=2))
    bench.put("slow/beach.json", SIDECAR)
    bench.put("slow/beach.txt", b"waves")


def _prompt(bench: Bench) -> None:
    bench.put("beach.png")
    bench.put("beach.txt", b"waves")


def _hard_link(bench: Bench) -> None:
    bench.drop()
    (bench.root / "elsewhere").mkdir()
    os.link(bench.inbox / "beach.png", bench.root / "elsewhere" / "mine.png")


def _ambiguous(bench: Bench) -> None:
    bench.drop()
    bench.put("beach.jpg", b"another picture")


def _known(bench: Bench) -> None:
    bench.drop()
    bench.take_one()
    bench.drop()


def _continuing_a_video(bench: Bench) -> None:
    bench.put("more.mp4", write_video(bench.root / "clip.mp4"))
    bench.put("more.json", {"prompt": "on", "continue_from": "more.mp4", "variations": 2})


DROPS = {
    "pair": Dropped(Bench.drop, is_own_way=True),
    "variations": Dropped(partial(Bench.drop, variations=2), jobs=2, is_own_way=True),
    "text prompt": Dropped(_prompt),
    "everything": Dropped(_everything),
    "hard link": Dropped(_hard_link),
    "ambiguous": Dropped(_ambiguous, state=State.FAILED),
    "known": Dropped(_known),
    "video": Dropped(_continuing_a_video, jobs=2),
}


# Across file systems the files go another way, whatever else they are.
WAYS = [
    *(("same", what) for what in DROPS),
    *(("other", what) for what in ("variations", "everything", "ambiguous", "known")),
]


@pytest.mark.parametrize(("device", "what"), WAYS)
def test_intake(benches: Callable[..., Bench], device: str, what: str) -> None:
    dropped = DROPS[what]

    def check(bench: Bench) -> None:
        check_order(bench)
        jobs = bench.jobs(dropped.state)
        assert len(jobs) == dropped.jobs
        assert [state for state in State if bench.jobs(state)] == [dropped.state]
        where = places(bench)
        assert [found for found in where.values() if found != ["defaults.json"]] == [jobs] * _files(what)
        with suppress(FileNotFoundError):
            assert (bench.root / "elsewhere" / "mine.png").read_bytes() == bench.picture.read_bytes()

    def prepare() -> Bench:
        bench = benches(device)
        dropped.put(bench)
        return bench

    Crashes("intake", prepare, Bench.take, check, recover).at_every_point(
        again=AGAIN, every=1 if dropped.is_own_way else SOME
    )


def _files(what: str) -> int:
    """How many files a job of that drop has."""
    return {"everything": 4, "ambiguous": 3}.get(what, 2)


@pytest.mark.parametrize("device", ["same", "other"])
def test_intake_of_what_continues_a_job(benches: Callable[..., Bench], device: str) -> None:
    def prepare() -> Bench:
        bench = benches(device)
        bench.put("more.json", {"prompt": "on", "continue_from": ended(bench, State.DONE), "variations": 2})
        return bench

    def check(bench: Bench) -> None:
        check_order(bench)
        jobs = bench.jobs(State.PENDING)
        assert len(jobs) == 2
        assert jobs in places(bench).values()
        assert all(continues(bench, job) for job in jobs)

    Crashes("intake", prepare, Bench.take, check, recover).at_every_point()


def continues(bench: Bench, job: str) -> bool:
    """Whether a pending job has what it takes of the job that it continues, and the size of that."""
    run = bench.queue.run(State.PENDING, job)
    sized = bench.status(job)["request"]["width"] == 80
    return sized and {item.role for item in run.files} == {Role.SIDECAR, Role.IMAGE, Role.LATENTS}


def test_entering_copies_from_the_command_line(benches: Callable[..., Bench], picture: Path) -> None:
    def work(bench: Bench) -> None:
        fields = SIDECAR | {"variations": 2}
        submit.submit(bench.queue, bench.outputs, image=picture, sidecar=fields, last_image=None, model="tiny")

    def check(bench: Bench) -> None:
        check_order(bench)
        assert len(bench.jobs(State.PENDING)) <= 2
        assert picture.exists()

    Crashes("submit", benches, work, check, recover).at_every_point(again=AGAIN)


def test_a_drop_that_changes_while_it_is_taken_goes_back(benches: Callable[..., Bench], tmp_path: Path) -> None:
    newer = paint(tmp_path / "newer.png", shade=3)
    scanned = []

    def prepare() -> Bench:
        bench = benches()
        bench.drop()
        scanned[:] = bench.scanner.scan().drops
        bench.put("beach.png", newer)
        return bench

    def work(bench: Bench) -> None:
        with suppress(DropChangedError):
            bench.door.add(scanned[0])

    Crashes("intake", prepare, work, partial(check_jobs, contents=2), recover).at_every_point(again=AGAIN)


def test_what_was_taken_goes_back_beside_a_newer_drop_of_its_name(
    benches: Callable[..., Bench], tmp_path: Path
) -> None:
    newer = paint(tmp_path / "newer.png", shade=3)

    def prepare() -> Bench:
        bench = benches()
        bench.drop()
        place = bench.queue.building / "take-0123456789abcdef"
        place.mkdir()
        taken = [bench.inbox / name for name in ("beach.png", "beach.json")]
        capture([Source(path, path.name, signature(path)) for path in taken], bench.inbox, place)
        bench.put("beach.png", newer)
        bench.put("beach.json", SIDECAR | {"seed": 8})
        return bench

    Crashes("recovery", prepare, recover, partial(check_jobs, jobs=2, contents=4), recover).at_every_point(again=AGAIN)


@pytest.mark.parametrize("device", ["same", "other"])
def test_a_drop_whose_last_rename_fails_goes_back(benches: Callable[..., Bench], device: str) -> None:
    bench = benches(device)
    bench.drop()
    bench.queue.folder(State.PENDING).rmdir()
    with pytest.raises(FileNotFoundError):
        bench.take()
    assert {"beach.json", "beach.png"} <= set(bench.left())
    assert not list(bench.queue.building.iterdir())
    recover(bench)
    check_jobs(bench, contents=2)


@pytest.mark.parametrize("continued", [False, True])
def test_taking_a_directory_that_was_put_into_pending(benches: Callable[..., Bench], continued: bool) -> None:
    def prepare() -> Bench:
        bench = benches()
        folder = bench.queue.path(State.PENDING, "mine")
        fields = {"continue_from": ended(bench, State.DONE)} if continued else {}
        folder.mkdir()
        (folder / "mine.json").write_text(json.dumps({"prompt": "on"} | fields))
        if not continued:
            shutil.copyfile(bench.picture, folder / "mine.png")
        return bench

    def take(bench: Bench) -> None:
        for _ in range(2):  # at the first look it may still be being copied
            bench.keeper.tidy(frozenset())

    def check(bench: Bench) -> None:
        take(restarted(bench))
        check_order(bench)
        (job,) = bench.jobs(State.PENDING)
        assert job.startswith("mine-")
        assert [job] in places(bench).values()
        assert not continued or continues(bench, job)

    Crashes("intake by hand", prepare, take, check, recover).at_every_point(again=AGAIN)


# -- claim -------------------------------------------------------------------------------------------------------------


def test_claim(benches: Callable[..., Bench]) -> None:
    def prepare() -> Bench:
        bench = benches()
        waiting(bench, attempts=1)
        return bench

    def check(bench: Bench) -> None:
        check_jobs(bench, contents=2)
        (job,) = bench.jobs(State.PENDING)
        assert bench.queue.run(State.PENDING, job).attempts in (1, 2)

    Crashes("claim", prepare, claim, check, recover).at_every_point(again=4)


def test_claim_of_a_job_that_failed_too_often(benches: Callable[..., Bench]) -> None:
    def prepare() -> Bench:
        bench = benches()
        waiting(bench, attempts=3)
        return bench

    def check(bench: Bench) -> None:
        claim(restarted(bench))
        check_order(bench)
        (job,) = bench.jobs(State.FAILED)
        assert bench.status(job)["error"]["code"] == "too_many_attempts"
        assert list(places(bench).values()) == [[job]] * 2

    Crashes("claim", prepare, claim, check, recover).at_every_point(again=AGAIN)


def test_claim_of_a_job_that_was_changed(benches: Callable[..., Bench]) -> None:
    def prepare() -> Bench:
        bench = benches()
        job = waiting(bench)
        (bench.queue.path(State.PENDING, job) / "beach.json").write_text(json.dumps(SIDECAR | {"seed": 8}))
        return bench

    def check(bench: Bench) -> None:
        (job,) = bench.jobs(State.PENDING)
        if bench.status(job)["request"]["seed"] == 7:
            claim(restarted(bench))
        check_jobs(bench, contents=2)
        (job,) = bench.jobs(State.PENDING)
        assert bench.status(job)["request"]["seed"] == 8

    Crashes("claim", prepare, claim, check, recover).at_every_point(again=AGAIN)


# -- publishing and the other ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["nothing", "its older video", "a stranger's file"])
def test_publishing(benches: Callable[..., Bench], there: str) -> None:
    def prepare() -> Bench:
        bench = benches()
        job = running(bench, videos=(digest(bench, OLDER),) if there == "its older video" else ())
        if there != "nothing":
            (bench.outputs / f"{job}.mp4").write_bytes(OLDER)
        return bench

    def work(bench: Bench) -> None:
        endings = lifecycle(bench).endings
        for job in bench.jobs(State.PROCESSING):
            endings.complete(job, {"video": {"sha256": digest(bench)}})
        endings.settle()

    def check(bench: Bench) -> None:
        (bench.root / "content").unlink(missing_ok=True)
        check_order(bench)
        (job,) = (*bench.jobs(State.PENDING), *bench.jobs(State.DONE))
        videos = {path.name.removeprefix(job): path.read_bytes() for path in bench.outputs.glob("*.mp4")}
        if there == "a stranger's file":
            assert videos.pop(".mp4") == OLDER
        if bench.jobs(State.PENDING):
            # It died before the outcome was written: the video is still in scratch, for the worker to give it back.
            assert (bench.work / job / "video.mp4").read_bytes() == VIDEO
            assert videos in ({".preview.mp4": b"of while it ran"}, {".preview.mp4": b"of while it ran", ".mp4": OLDER})
            return
        assert videos == {".2.mp4" if there == "a stranger's file" else ".mp4": VIDEO}
        assert bench.status(job)["video"]["file"] == f"{job}{next(iter(videos))}"
        assert (bench.queue.path(State.DONE, job) / LATENTS_FILE).read_bytes() == VIDEO
        assert (bench.outputs / f"{job}.poster.jpg").read_bytes() == VIDEO
        assert (bench.outputs / f"{job}.gif").exists() or (bench.outputs / f"{job}.animation.gif").exists()
        assert not (bench.outputs / f"{job}.step.jpg").exists()

    Crashes("publish and finish", prepare, work, check, recover).at_every_point(again=AGAIN)


def test_failing(benches: Callable[..., Bench]) -> None:
    def prepare() -> Bench:
        bench = benches()
        running(bench)
        return bench

    def work(bench: Bench) -> None:
        endings = lifecycle(bench).endings
        for job in bench.jobs(State.PROCESSING):
            endings.fail(job, {"message": "its worker died", "traceback": "deep"})
        endings.settle()

    def check(bench: Bench) -> None:
        check_order(bench)
        (job,) = (*bench.jobs(State.PENDING), *bench.jobs(State.FAILED))
        assert list(places(bench).values()) == [[job]] * 2
        shown = bench.outputs / f"{job}.{'preview' if bench.jobs(State.PENDING) else 'partial'}.mp4"
        assert shown.read_bytes() == b"of while it ran"
        assert bench.status(job)["preview"] == shown.name

    Crashes("publish and finish", prepare, work, check, recover).at_every_point(again=AGAIN)


# -- moves -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """What is done to a job, and in which states that may leave it."""

    job: Callable[[Bench], str]
    act: Callable[[Bench, str], object]
    may_stand: frozenset[State]


def _acting(act: Callable[..., object]) -> Callable[[Bench, str], object]:
    return lambda bench, job: act(bench.queue, job)


def _interrupted(bench: Bench) -> str:
    job = running(bench)
    bench.queue.requeue(job, State.PROCESSING)
    bench.keeper.tidy(frozenset())
    return job


STAYS = {state: frozenset({state}) for state in State}
DONE, FAILED = partial(ended, state=State.DONE), partial(ended, state=State.FAILED)
MOVES = {
    "cancel a waiting job": Move(waiting, _acting(moves.cancel), frozenset({State.PENDING, State.FAILED})),
    "cancel an interrupted job": Move(_interrupted, _acting(moves.cancel), frozenset({State.PENDING, State.FAILED})),
    "cancel a running job": Move(running, _acting(moves.cancel), frozenset({State.PENDING, State.FAILED})),
    "interrupt": Move(running, _acting(moves.interrupt), STAYS[State.PENDING]),
    "retry a done job": Move(DONE, _acting(moves.retry), frozenset({State.DONE, State.PENDING})),
    "retry a failed job": Move(FAILED, _acting(moves.retry), frozenset({State.FAILED, State.PENDING})),
    "move a done job to failed": Move(
        DONE, lambda bench, job: bench.queue.move(job, State.DONE, State.FAILED), frozenset({State.DONE, State.FAILED})
    ),
    "requeue": Move(running, lambda bench, job: bench.queue.requeue(job, State.PROCESSING), STAYS[State.PENDING]),
    "uncharge": Move(running, lambda bench, job: bench.keeper.uncharge(job), STAYS[State.PENDING]),
}


@pytest.mark.parametrize("what", MOVES)
def test_moves(benches: Callable[..., Bench], what: str) -> None:
    move = MOVES[what]

    def prepare() -> Bench:
        bench = benches()
        move.job(bench)
        (bench.root / "content").unlink(missing_ok=True)
        return bench

    def work(bench: Bench) -> None:
        (job,) = (job for state in State for job in bench.jobs(state))
        move.act(bench, job)
        bench.keeper.tidy(frozenset())

    def check(bench: Bench) -> None:
        check_order(bench)
        ((state, job),) = ((state, job) for state in State for job in bench.jobs(state))
        assert state in move.may_stand
        assert list(places(bench).values()) == [[job]] * 2
        video = bench.outputs / f"{job}.mp4"
        assert move.job is not DONE or video.read_bytes() == VIDEO
        assert (bench.status(job)["outcome"] == "completed") == (state is State.DONE)

    Crashes("moves", prepare, work, check, recover).at_every_point(again=AGAIN)


@pytest.mark.parametrize("job", [waiting, _interrupted, running, DONE, FAILED])
def test_remove(benches: Callable[..., Bench], job: Callable[[Bench], str]) -> None:
    removed = []

    def prepare() -> Bench:
        bench = benches()
        removed[:] = [job(bench)]
        return bench

    def work(bench: Bench) -> None:
        moves.remove(bench.queue, removed[0])
        bench.keeper.tidy(frozenset())

    def check(bench: Bench) -> None:
        check_order(bench)
        if standing := [job for state in State for job in bench.jobs(state)]:
            assert standing == removed
            assert list(places(bench).values()) == [removed] * 2
        else:
            status = bench.status(removed[0])
            assert status["state"] in ("done", "failed")
            assert (bench.outputs / f"{removed[0]}.mp4").exists() == (status["state"] == "done")

    Crashes("moves", prepare, work, check, recover).at_every_point(again=AGAIN)


@pytest.mark.parametrize("forget", [False, True])
def test_prune(benches: Callable[..., Bench], forget: bool) -> None:
    def work(bench: Bench) -> None:
        moves.prune(bench.queue, bench.outputs, keep=0, older_than_seconds=None, videos=True, forget=forget)

    def prepare() -> Bench:
        bench = benches()
        ended(bench, State.DONE)
        return bench

    def check(bench: Bench) -> None:
        check_order(bench)
        assert bench.jobs(State.DONE) or forget
        work(bench)  # whoever asks once more gets what was asked for
        left = [path.name.partition(".")[2] for path in bench.outputs.iterdir()]
        assert left == ([] if forget else ["status.json"])
        for job in bench.jobs(State.DONE):
            assert bench.files(State.DONE, job) == {RUN_FILE, OUTCOME_FILE}

    Crashes("moves", prepare, work, check, recover).at_every_point(again=AGAIN)


def test_setting_a_conflict_aside(benches: Callable[..., Bench]) -> None:
    def prepare() -> Bench:
        bench = benches()
        job = ended(bench, State.DONE)
        shutil.copytree(bench.queue.path(State.DONE, job), bench.queue.path(State.PENDING, job))
        (bench.queue.path(State.PENDING, job) / OUTCOME_FILE).unlink()
        return bench

    def check(bench: Bench) -> None:
        check_order(bench)
        (job,) = bench.jobs(State.DONE)
        assert bench.jobs(State.FAILED) == [f"{job}.conflict-1"]
        assert bench.status(f"{job}.conflict-1")["error"]["code"] == "conflict"
        assert bench.jobs(State.PENDING) == []

    Crashes("moves", prepare, lambda bench: bench.keeper.tidy(frozenset()), check, recover).at_every_point(again=AGAIN)


def test_a_pruned_job_that_is_moved_to_pending(benches: Callable[..., Bench]) -> None:
    def prepare() -> Bench:
        bench = benches()
        job = ended(bench, State.FAILED)
        folder = bench.queue.path(State.FAILED, job)
        for path in folder.iterdir():
            if path.name not in (RUN_FILE, OUTCOME_FILE):
                path.unlink()
        bench.queue.move(job, State.FAILED, State.PENDING)
        return bench

    def work(bench: Bench) -> None:
        for _ in range(2):
            bench.keeper.tidy(frozenset())

    def check(bench: Bench) -> None:
        work(restarted(bench))
        check_order(bench)
        (job,) = bench.jobs(State.FAILED)
        assert bench.status(job)["error"]["code"] == "pruned"

    Crashes("moves", prepare, work, check, recover).at_every_point()


# -- the first start ---------------------------------------------------------------------------------------------------


def test_the_first_start(benches: Callable[..., Bench]) -> None:
    def prepare() -> Bench:
        bench = benches()
        shutil.rmtree(bench.queue.root)
        return bench

    def start(bench: Bench) -> None:
        bench.recover()

    def check(bench: Bench) -> None:
        check_order(bench)
        for state in State:
            assert stat.S_IMODE(bench.queue.folder(state).stat().st_mode) == atomic.FOLDER_MODE

    Crashes("recovery", prepare, start, check, start).at_every_point(again=AGAIN)
