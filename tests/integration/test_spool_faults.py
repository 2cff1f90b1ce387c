"""Faults of file systems, of people and of other programs, and what the spool makes of them, on real folders."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from spool_bench import AT_ONCE, SIDECAR, Bench

from framepack_daemon import atomic
from framepack_daemon.errors import DropError, QueueHeldError, StateError, UnknownJobError
from framepack_daemon.job import Role, State, stored_name
from framepack_daemon.spool import capture, inbox, moves, status, submit
from framepack_daemon.spool import lock as locks
from framepack_daemon.spool.drop import Drop, Part, known_as
from framepack_daemon.spool.groups import halves
from framepack_daemon.spool.inbox import Inbox
from framepack_daemon.spool.intake import RETRY_SECONDS, Intake
from framepack_daemon.spool.lock import FolderLock
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter

NOTHING: frozenset[str] = frozenset()
OTHER_FILE_SYSTEM = Path("/dev/shm")


@pytest.fixture
def job(bench: Bench) -> str:
    """A pending job that the keeper knows."""
    bench.drop()
    name = bench.take_one()
    bench.recover()
    return name


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` gives in a forked child, whose limits and user are its own; AssertionError when it raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer: Any = [True, work()]
        except BaseException as error:  # noqa: BLE001  told to the parent
            answer = [False, repr(error)]
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        good, value = json.load(stream)
    os.waitpid(child, 0)
    assert good, value
    return value


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for a condition; what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    assert value
    return value


# -- the drop folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def intake(bench: Bench) -> Iterator[Intake]:
    """The intake thread, at work."""
    thread = Intake(bench.scanner, bench.door, lambda _: None, rescan_seconds=0.05, poll_seconds=0.05)
    thread.start()
    yield thread
    thread.stop()


def test_an_inbox_that_is_deleted_and_made_anew_is_noticed(bench: Bench, intake: Intake) -> None:
    for stem in ("first", "second"):
        bench.drop(stem)
        until(lambda: any(job.startswith(stem) for job in bench.queue.names(State.PENDING)))  # noqa: B023
        shutil.rmtree(bench.inbox)
        time.sleep(0.2)  # several scans meet a folder that is not there
        assert intake.is_alive()
        bench.inbox.mkdir()


def _as_anybody() -> None:
    """Give up root's right to read everything, where this is root."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0


def test_what_cannot_be_read_is_left_and_keeps_nothing_else(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.drop("secret")
    bench.put("closed/defaults.json", {"prompt": "waves"})
    bench.put("sub/defaults.json", {"prompt": "waves"})
    bench.put("sub/held.png")
    bench.drop("good")
    for closed in ("secret.png", "closed", "sub/defaults.json"):
        (bench.inbox / closed).chmod(0)

    def look() -> list[list[str]]:
        _as_anybody()
        return [added.jobs for _ in range(3) for added in bench.take()]

    ((taken,),) = in_child(look)
    assert taken.startswith("good-")
    left = ["closed/defaults.json", "secret.json", "secret.png", "sub/defaults.json", "sub/held.png"]
    assert bench.left() == left
    assert capfd.readouterr().out.count("drop_unreadable") == 1
    (bench.inbox / "secret.png").chmod(0o644)
    assert "secret" in str(bench.take())


def test_a_job_whose_directory_is_closed_is_listed_and_keeps_none_from_its_place(bench: Bench) -> None:
    jobs = {}
    for stem in ("closed", "open"):
        bench.drop(stem)
        jobs[stem] = bench.take_one()
    (bench.outputs / f"{jobs['closed']}.status.json").unlink()
    bench.queue.path(State.PENDING, jobs["closed"]).chmod(0)

    def look() -> list[object]:
        _as_anybody()
        shown = [status.current(bench.queue, bench.outputs, State.PENDING, job) for job in jobs.values()]
        return [bench.queue.waiting(), *(each["message"] for each in shown)]

    assert in_child(look) == [[jobs["open"]], "its directory is closed to this user", "waits for its turn"]


@pytest.mark.parametrize("move", [moves.cancel, moves.remove])
def test_a_job_whose_directory_is_closed_is_not_moved_and_the_answer_says_the_mend(
    bench: Bench, move: Callable[[Queue, str], str]
) -> None:
    bench.drop()
    job = bench.take_one()
    bench.queue.path(State.PENDING, job).chmod(0)

    def attempt() -> list[str]:
        _as_anybody()
        with pytest.raises(StateError) as refused:
            move(bench.queue, job)
        return [refused.value.message, refused.value.hint]

    message, hint = in_child(attempt)
    assert message.endswith("may not be moved or written")
    assert hint.endswith(f"chmod -R g+rwX {bench.queue.path(State.PENDING, job)}")
    assert bench.queue.state_of(job) is State.PENDING


@pytest.mark.parametrize("content", [b'{"prompt": "wav', None])
def test_a_sidecar_that_changes_during_the_scan_does_not_end_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    bench.drop()
    assert bench.scanner.scan().drops, "looked at, and good"
    clash = inbox.clash

    def meanwhile(group: inbox.Group) -> DropError | None:
        path = bench.inbox / "beach.json"
        path.unlink() if content is None else path.write_bytes(content)
        return clash(group)

    monkeypatch.setattr(inbox, "clash", meanwhile)
    for drop in bench.scanner.scan().drops:
        with pytest.raises(capture.DropChangedError):
            bench.door.add(drop)
    assert "beach.png" in bench.left()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_a_preset_is_a_plain_file(bench: Bench, kind: str) -> None:
    path = bench.inbox / "defaults.json"
    outside = bench.root / "outside.json"
    outside.write_text('{"prompt": "outside"}')
    match kind:
        case "symlink":
            path.symlink_to(outside)
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    bench.put("lone.png")
    assert bench.take() == []
    assert [name for name, _ in halves(bench.inbox, bench.queue)] == ["lone.png"]


def test_a_hard_link_whose_name_is_no_utf8_is_copied(bench: Bench) -> None:
    stem = os.fsdecode(b"caf\xe9")
    bench.drop(stem)
    (bench.root / "other").hardlink_to(bench.inbox / f"{stem}.png")
    job = bench.take_one()
    (bench.root / "other").write_bytes(b"changed")
    assert (bench.queue.path(State.PENDING, job) / f"{stem}.png").read_bytes() == bench.picture.read_bytes()


def test_outputs_in_the_inbox_are_never_taken(bench: Bench) -> None:
    bench.drop()
    bench.take_one()
    outputs = bench.inbox / "videos"
    outputs.mkdir()
    (outputs / "defaults.json").write_text('{"prompt": "waves"}')
    (outputs / "beach.png").write_bytes(bench.picture.read_bytes())
    assert Inbox(bench.inbox, bench.queue, AT_ONCE, excluded=(outputs,)).scan().drops == []
    assert len(Inbox(bench.inbox, bench.queue, AT_ONCE).scan().drops) == 1, "the test would show nothing"


def test_a_tool_that_pushes_again_and_again_starts_each_job_once(bench: Bench) -> None:
    source = bench.root / "source"
    bench.drop("one")
    bench.drop("two", seed=8)
    shutil.copytree(bench.inbox, source)
    first = sorted(job for added in bench.take() for job in added.jobs)
    moves.cancel(bench.queue, first[0])
    moves.remove(bench.queue, first[1])
    for turn in range(3):
        shutil.copytree(source, bench.inbox, dirs_exist_ok=True)  # with its old times, as mirrors do
        started = [job for added in bench.take() for job in added.jobs]
        assert started == ([first[1]] if turn == 0 else []), "what was removed is not known any more, all else is"
    assert bench.jobs(State.FAILED) == [first[0]]
    assert bench.left() == []


def test_two_who_enter_the_same_at_the_same_moment_make_one_job(bench: Bench, picture: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(3), context.Queue()

    def enter() -> None:
        gate.wait()
        for seed in range(5):
            sidecar = SIDECAR | {"seed": seed}
            answers.put(
                submit.submit(bench.queue, bench.outputs, image=picture, sidecar=sidecar, last_image=None, model="tiny")
            )

    racers = [context.Process(target=enter, daemon=True) for _ in range(3)]
    for racer in racers:
        racer.start()
    entered = {job for _ in range(15) for job in answers.get(timeout=60)}
    for racer in racers:
        racer.join()
    bench.recover()
    assert set(bench.jobs(State.PENDING)) == entered
    assert len(entered) == 5
    assert not list(bench.queue.building.iterdir())


# -- taking and giving back --------------------------------------------------------------------------------------------


def test_a_full_disk_beyond_a_file_system_s_border_gives_everything_back(tmp_path: Path, picture: Path) -> None:
    queue = OTHER_FILE_SYSTEM / f"framepack-faults-{os.getpid()}"
    try:
        Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(picture)  # of more than 10,000 bytes
        bench = Bench(tmp_path / "b", picture, queue=queue)
        bench.drop()
        (drop,) = bench.scanner.scan().drops
        before = bench.left()

        def add() -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as good as a full disk
            with pytest.raises(OSError, match="File too large"):
                bench.door.add(drop)
            return "refused"

        assert in_child(add) == "refused"
        assert bench.left() == before
        assert not list(queue.joinpath(".building").iterdir())
        assert not list((bench.inbox / capture.HIDDEN_FOLDER).iterdir())
        assert bench.take_one()
    finally:
        shutil.rmtree(queue, ignore_errors=True)


def _captured(bench: Bench) -> Path:
    """A pair in a folder under `.building`, as a crash leaves it."""
    bench.drop()
    place = bench.queue.building / "take-0123"
    place.mkdir()
    sources = []
    for name in ("beach.png", "beach.json"):
        look = capture.signature(bench.inbox / name)
        assert look is not None
        sources.append(capture.Source(bench.inbox / name, stored_name(name), look))
    capture.capture(sources, bench.inbox, place)
    return place


def test_what_comes_back_to_a_folder_that_is_gone_finds_it_again(bench: Bench) -> None:
    _captured(bench)
    shutil.rmtree(bench.inbox)
    bench.recover()
    assert bench.left() == ["beach.json", "beach.png"]


def test_what_a_queue_that_went_away_kept_is_taken_when_it_is_back(bench: Bench) -> None:
    """The pair was on its way into the queue; what was taken of it could not be put back then."""
    place, building = _captured(bench), bench.queue.building
    thread = Intake(bench.scanner, bench.door, lambda _: None, rescan_seconds=0.05, poll_seconds=0.05)

    def fail_with(stem: str) -> None:
        bench.drop(stem)
        away = building.rename(bench.root / "away")
        building.touch()  # nothing can be built there
        assert thread._try_to_look() == RETRY_SECONDS
        building.unlink()
        away.rename(building)

    with atomic.locked(place):  # it is being worked on
        fail_with("other")
        thread._try_to_look()
    assert [job[:5] for job in bench.jobs(State.PENDING)] == ["other"]
    fail_with("third")
    thread._try_to_look()
    thread._try_to_look()
    assert [job[:5] for job in bench.jobs(State.PENDING)] == ["beach", "other", "third"]
    assert bench.left() == []


def test_what_comes_back_replaces_nothing_and_stays_together(bench: Bench) -> None:
    place = _captured(bench)
    bench.put("beach.png", b"newer")

    def die_after_one() -> None:
        move, count = atomic.move, [0]

        def once(source: Path, target: Path) -> None:
            if count[0]:
                os._exit(0)
            count[0] += 1
            move(source, target)

        atomic.move = once
        capture.give_back(place)

    child = os.fork()
    if child == 0:
        die_after_one()
    os.waitpid(child, 0)
    bench.recover()
    assert bench.left() == ["beach (restored 1).json", "beach (restored 1).png", "beach.png"]
    assert bench.take_one().startswith("beach-restored-1-")


def test_what_stood_in_the_way_of_a_new_job_is_named_after_it(bench: Bench) -> None:
    bench.drop()
    (drop,) = bench.scanner.scan().drops
    run = bench.queue.path(State.PENDING, "x")
    bench.drop("probe")
    probe = bench.door.add(bench.scanner.scan().drops[-1]).jobs[0]
    content = probe.rpartition("-")[2]
    run = bench.queue.path(State.PENDING, f"beach-{content}")
    run.mkdir()
    (run / "somebody's").touch()
    bench.door.add(drop)
    assert f"beach-{content}.conflict-1" in bench.jobs(State.FAILED)
    assert (run / "somebody's").exists()


# -- jobs and their records --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", ".", "..", "../outputs", "pending/x", ".hidden", "a\0b", "x" * 300, "\ud800"])
def test_a_path_is_never_a_job(bench: Bench, job: str, text: str) -> None:
    precious = bench.root / "precious"
    precious.mkdir()
    for name in (text, str(precious), f"../pending/{job}", f"{job}/."):
        assert bench.queue.state_of(name) is None
        for act in (moves.remove, moves.cancel, moves.interrupt, moves.retry, moves.resolve):
            with pytest.raises(UnknownJobError):
                act(bench.queue, name)
    assert precious.is_dir()
    assert bench.jobs(State.PENDING) == [job]


class Busy(Queue):
    """A queue in which a job is claimed at the moment when it is looked for in `pending/`."""

    def path(self, state: State, job: str) -> Path:
        """As ever; the first look at `pending/` comes too late."""
        here = super().path(state, job)
        if state is State.PENDING and here.is_dir():
            here.rename(super().path(State.PROCESSING, job))
        return here


def test_a_job_that_is_claimed_while_it_is_looked_for_is_found(bench: Bench, job: str) -> None:
    assert Busy(bench.queue.root).state_of(job) is State.PROCESSING
    run = bench.queue.run(State.PROCESSING, job)
    assert run is not None
    bench.queue.move(job, State.PROCESSING, State.PENDING)
    assert known_as(Busy(bench.queue.root), run) is State.PROCESSING
    bench.queue.move(job, State.PROCESSING, State.PENDING)
    assert "is not running" in moves.interrupt(bench.queue, job)
    assert "cancelled" in moves.cancel(Busy(bench.queue.root), job)


def test_a_priority_edited_in_place_counts(bench: Bench) -> None:
    for stem in ("a", "b"):
        bench.drop(stem)
        bench.take()
    first, second = bench.queue.waiting()
    record = bench.queue.path(State.PENDING, second) / "run.json"
    inode = record.stat().st_ino
    record.write_text(json.dumps(json.loads(record.read_text()) | {"priority": 5}))
    assert record.stat().st_ino == inode
    assert bench.queue.waiting() == [second, first]


@pytest.mark.parametrize(
    "record", [b"", b"{", b"[]", b"{}", b"[" * 100_000, {"priority": "high"}, {"attempts": None}, {"queued_at": 5}]
)
def test_a_record_that_is_none_stops_neither_the_queue_nor_the_job(
    bench: Bench, job: str, record: bytes | dict[str, Any]
) -> None:
    bench.drop("other")
    other = bench.take_one()
    path = bench.queue.path(State.PENDING, job) / "run.json"
    text = json.loads(path.read_text())
    path.write_bytes(record if isinstance(record, bytes) else json.dumps(text | record).encode())
    assert bench.queue.waiting() == [other]
    bench.keeper.seen.clear()
    for _ in range(4):
        bench.keeper.tidy(NOTHING)
    assert sorted(bench.queue.waiting()) == sorted([job, other])


def test_a_record_cannot_lead_out_of_its_folder(bench: Bench, job: str) -> None:
    path = bench.queue.path(State.PENDING, job) / "run.json"
    (bench.queue.root / "secret.png").write_bytes(b"secret")
    text = path.read_text().replace('"name": "beach.png"', '"name": "../../secret.png"')
    assert "secret" in text
    path.write_text(text)
    assert bench.queue.run(State.PENDING, job) is None


def test_a_link_in_a_job_s_folder_is_not_followed(bench: Bench, job: str) -> None:
    picture = bench.queue.path(State.PENDING, job) / "beach.png"
    picture.unlink()
    picture.symlink_to(bench.picture)
    bench.keeper.seen.clear()
    for _ in range(4):
        bench.keeper.tidy(NOTHING)
    assert bench.jobs(State.PENDING) == []
    (refused,) = bench.jobs(State.FAILED)
    assert "0 pictures" in bench.status(refused)["message"]


@pytest.mark.parametrize("name", ["defaults.json", "run.json", "sea.json"])
def test_a_pipe_in_a_folder_put_into_pending_keeps_nobody_waiting(bench: Bench, picture: Path, name: str) -> None:
    folder = bench.queue.path(State.PENDING, "by hand")
    folder.mkdir()
    shutil.copyfile(picture, folder / "sea.png")
    (folder / "sea.txt").write_text("waves")
    os.mkfifo(folder / name)
    for _ in range(4):
        bench.keeper.tidy(NOTHING)
    (job,) = bench.jobs(State.PENDING)
    assert bench.status(job)["request"]["prompt"] == "waves"


def test_a_pruned_job_put_into_pending_by_hand_goes_back_and_stays_known(bench: Bench, job: str) -> None:
    moves.cancel(bench.queue, job)
    bench.keeper.tidy(NOTHING)
    moves.prune(bench.queue, bench.outputs, keep=0, older_than_seconds=None, videos=False, forget=False)
    bench.queue.move(job, State.FAILED, State.PENDING)
    for _ in range(4):
        bench.keeper.tidy(NOTHING)
    assert (bench.jobs(State.PENDING), bench.jobs(State.FAILED)) == ([], [job])
    assert "was pruned" in bench.status(job)["message"]
    assert "remove" in bench.status(job)["error"]["hint"]
    bench.drop()
    (added,) = bench.take()
    assert (added.jobs, added.known) == ([], [job])
    with pytest.raises(StateError, match="was pruned"):
        moves.retry(bench.queue, job)


def test_a_copied_job_is_set_aside_and_both_statuses_tell_their_own_story(bench: Bench, job: str) -> None:
    bench.keeper.tidy(NOTHING)
    shutil.copytree(bench.queue.path(State.PENDING, job), bench.queue.path(State.PENDING, "copy of it"))
    for _ in range(3):
        bench.keeper.tidy(NOTHING)
    assert bench.jobs(State.PENDING) == [job]
    assert bench.jobs(State.FAILED) == ["copy of it.conflict-1"]
    assert bench.status(job)["state"] == "pending"
    aside = bench.status("copy of it.conflict-1")
    assert (aside["job"], aside["state"], aside["outcome"]) == ("copy of it.conflict-1", "failed", "failed")
    assert aside["error"]["hint"]


def test_a_name_as_long_as_names_can_be_is_set_aside_too(bench: Bench, job: str) -> None:
    name = "é" * 127
    shutil.copytree(bench.queue.path(State.PENDING, job), bench.queue.path(State.PENDING, name))
    for _ in range(3):
        bench.keeper.tidy(NOTHING)
    (aside,) = bench.jobs(State.FAILED)
    assert bench.status(aside)["state"] == "failed"


@pytest.mark.parametrize("state", State)
def test_a_folder_whose_name_leaves_no_room_may_come_and_go(bench: Bench, state: State) -> None:
    strange = bench.queue.path(state, "x" * 255)
    strange.mkdir()
    bench.recover()
    bench.keeper.tidy(NOTHING)
    for path in (strange, *bench.queue.folder(State.FAILED).glob("x*")):
        shutil.rmtree(path, ignore_errors=True)
    bench.keeper.tidy(NOTHING, {strange.name})
    bench.keeper.tidy(NOTHING)


@pytest.mark.parametrize(("source", "target"), [(State.DONE, State.FAILED), (State.FAILED, State.DONE)])
def test_the_status_follows_an_ended_job_that_is_moved(bench: Bench, job: str, source: State, target: State) -> None:
    bench.queue.move(job, State.PENDING, source)
    bench.keeper.tidy(NOTHING)
    bench.queue.move(job, source, target)
    bench.keeper.tidy(NOTHING)
    assert bench.status(job)["state"] == target


def test_a_job_that_left_while_it_is_pruned_is_let_go(bench: Bench, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moves.cancel(bench.queue, job)
    bench.keeper.tidy(NOTHING)
    ended_at = moves._ended_at

    def retried_meanwhile(queue: Queue, state: State, name: str) -> float | None:
        when = ended_at(queue, state, name)
        moves.retry(queue, name)
        return when

    monkeypatch.setattr(moves, "_ended_at", retried_meanwhile)
    for forget in (False, True):
        assert (
            moves.prune(bench.queue, bench.outputs, keep=0, older_than_seconds=None, videos=True, forget=forget) == []
        )
        assert bench.files(State.PENDING, job) >= {"beach.png", "beach.json", "job.json", "run.json"}
        bench.keeper.tidy(NOTHING)
        moves.cancel(bench.queue, job)
        bench.keeper.tidy(NOTHING)


def test_an_end_frame_that_is_named_must_be_there(bench: Bench) -> None:
    folder = bench.queue.path(State.PENDING, "by hand")
    folder.mkdir()
    shutil.copyfile(bench.picture, folder / "sea.png")
    (folder / "sea.json").write_text(json.dumps(SIDECAR | {"last_image": "sea.last.png"}))
    for _ in range(4):
        bench.keeper.tidy(NOTHING)
    (job,) = bench.jobs(State.FAILED)
    assert "no end frame" in bench.status(job)["message"]


def test_a_huge_sidecar_beside_a_drop_is_not_read_by_status_either(bench: Bench) -> None:
    bench.put("beach.png")
    with (bench.inbox / "beach.json").open("wb") as stream:
        stream.truncate(1 << 32)
    _, limit = resource.getrlimit(resource.RLIMIT_AS)

    def look() -> list[tuple[str, str]]:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, limit))
        return halves(bench.inbox, bench.queue)

    assert in_child(look) == []


# -- statuses, publishing, the lock ------------------------------------------------------------------------------------


def test_an_older_status_never_comes_back(bench: Bench, job: str) -> None:
    writers = [StatusWriter(bench.queue, bench.outputs) for _ in range(2)]
    stop = threading.Event()

    def amend() -> None:
        while not stop.is_set():
            writers[1].amend(job, message="dropped again")

    thread = threading.Thread(target=amend)
    thread.start()
    for state in ("processing", "done") * 100:
        writers[0].write(job, State.PENDING, state=state)
        assert bench.status(job)["state"] == state
    stop.set()
    thread.join()
    assert bench.status(job)["state"] == "done"


def test_a_status_that_cannot_be_written_stops_nothing(bench: Bench, job: str) -> None:
    shutil.rmtree(bench.outputs)
    bench.writer.write(job, State.PENDING)
    bench.writer.amend(job, message="x")
    assert bench.writer.failing
    bench.drop("other")
    assert bench.take_one()
    bench.outputs.mkdir()
    bench.writer.write(job, State.PENDING)
    assert bench.status(job)["state"] == "pending"
    assert not bench.writer.failing


@pytest.mark.parametrize("stranger", ["folder", "dangling link", "link", "pipe", "file"])
def test_whatever_has_the_video_s_name_is_left_alone(bench: Bench, job: str, stranger: str) -> None:
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    (bench.work / job).mkdir()
    (bench.work / job / "video.mp4").write_bytes(b"video")
    taken = bench.outputs / f"{job}.mp4"
    (bench.outputs / "else").write_bytes(b"else")
    match stranger:
        case "folder":
            taken.mkdir()
        case "dangling link":
            taken.symlink_to("nowhere")
        case "link":
            taken.symlink_to("else")
        case "pipe":
            os.mkfifo(taken)
        case "file":
            taken.write_bytes(b"video?")
    before = taken.lstat()
    bench.publisher.record(job, {"video": {"sha256": atomic.digest(bench.work / job / "video.mp4")[1]}})
    assert bench.publisher.finish(job) == f"{job}.2.mp4"
    assert (bench.outputs / f"{job}.2.mp4").read_bytes() == b"video"
    assert os.path.samestat(before, taken.lstat())
    assert (bench.outputs / "else").read_bytes() == b"else"


def _elsewhere(path: Path, count: int) -> None:
    path.write_text(json.dumps({"host": "elsewhere", "boot": "b", "pid": 1, "count": count}))


def test_a_lock_whose_count_goes_on_is_held_by_another_host(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    _elsewhere(path, 1)
    timer = threading.Timer(0.2, _elsewhere, (path, 2))
    timer.start()
    with pytest.raises(QueueHeldError, match="elsewhere"):
        FolderLock(path, "the queue")
    timer.join()


def test_a_lock_whose_count_stands_still_was_left_by_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.6)
    path = tmp_path / "lock"
    _elsewhere(path, 1)
    lock = FolderLock(path, "the queue")
    before = json.loads(path.read_text())
    lock.beat()
    after = json.loads(path.read_text())
    assert after["count"] == before["count"] + 1
    assert after["pid"] == os.getpid()
    lock.release()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("content", [b"garbage", b"[]", b"\xff\xfe", b"{}", b"x" * 10_000])
def test_a_lock_file_of_any_content_can_be_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    lock = FolderLock(tmp_path / "lock", "the queue")
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    lock.release()


def test_a_drop_by_copies_and_bytes_leaves_its_sources(bench: Bench, picture: Path) -> None:
    sidecar = atomic.encode_json(SIDECAR)
    parts = (Part(Role.IMAGE, "run.json.png", picture), Part(Role.SIDECAR, os.fsdecode(b"\xe9.json"), sidecar))
    added = bench.door.add(Drop(os.fsdecode(b"\xe9"), parts))
    assert added.jobs
    assert picture.exists()


def test_a_lock_file_that_a_mirroring_tool_deletes_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "inbox" / ".framepack-daemon" / "lock"
    lock = FolderLock(path, "the inbox")
    shutil.rmtree(path.parent)
    lock.beat()
    with pytest.raises(QueueHeldError):
        FolderLock(path, "the inbox")
    shutil.rmtree(path.parent.parent)
    lock.beat()
    assert not path.parent.parent.exists(), "a drop folder that is away is not made by its lock"
    path.parent.parent.mkdir()
    lock.beat()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_who_lost_its_lock_file_to_another_daemon_is_told(tmp_path: Path) -> None:
    first = FolderLock(tmp_path / "lock", "the inbox")
    (tmp_path / "lock").unlink()
    second = FolderLock(tmp_path / "lock", "the inbox")
    with pytest.raises(QueueHeldError):
        first.beat()
    second.release()
    first.release()
