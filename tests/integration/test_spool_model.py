"""The spool against a model: whatever people, sync tools, workers and crashes do, in whatever order, nothing is lost.

Hypothesis draws the order. People drop, rewrite, move, copy, remove; the daemon's parts take, start, end and tidy; any
of it may die at any durable operation, and a new daemon goes on. After each step the model says what must hold of all
that lies around. `FRAMEPACK_TEST_THOROUGH=1` tries many more orders.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import paint
from crash import THOROUGH, dies_at
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from spool_bench import SIDECAR, Bench
from spool_world import IMAGES, SIDECARS, STEMS, Contents, Spool, View, is_own_name, look_around

from framepack_daemon.errors import StateError, UnknownJobError
from framepack_daemon.job import State
from framepack_daemon.media import helper
from framepack_daemon.media import image as pictures
from framepack_daemon.spool import moves
from framepack_daemon.spool.capture import DropChangedError

EXAMPLES, STEPS = (3000, 50) if THOROUGH else (80, 30)
MEMORY = Path("/dev/shm")
MAX_POINTS = 100  # durable operations, after which a drawn crash no longer comes
PEACE = 12  # rounds of everything, after which nothing more may happen
VIDEO_NAME = re.compile(r"(.+?)(?:\.\d+)?\.mp4")

stems, images, sidecars = (st.sampled_from(names) for names in (STEMS, IMAGES, SIDECARS))
numbers = st.integers(0, 30)  # of one among what is there
with_jobs = precondition(lambda self: self.spool.placed())
with_busy_slots = precondition(lambda self: any(slot.job for slot in self.spool.slots))
points = st.integers(0, MAX_POINTS)

# Where the daemon may bring a job that stood somewhere; None is nowhere.
WAYS: dict[State | None, set[State | None]] = {
    None: {None, State.PENDING, State.FAILED},
    State.PENDING: {State.PENDING, State.PROCESSING, State.FAILED, None},
    State.PROCESSING: {State.PENDING, State.PROCESSING, State.DONE, State.FAILED},
    State.DONE: {State.DONE},
    State.FAILED: {State.FAILED},
}


class SpoolMachine(RuleBasedStateMachine):
    """The world of one spool."""

    contents: ClassVar[Contents]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="framepack-model-", dir=MEMORY))
        self.contents.written.clear()
        self.spool = Spool(self.root, self.root / "unused.png")
        self.spool.recover()
        self.dropped: list[tuple[str, str, str]] = []  # pairs that a mirror holds
        self.published: dict[str, bytes] = {}  # videos and strangers' files in outputs
        self.takes = 0
        self.stood: set[tuple[State, str]] = set()  # when the bell was last looked at
        self.heard: set[str] = set()  # names of what came and went since the daemon's last look

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _daemon_step(self) -> Iterator[None]:
        """Whatever the daemon does: what was dropped stays, and jobs go only where they may."""
        before = self._look()
        yield
        after = self._look()
        self._nothing_is_lost(before, after)
        for job in before.states.keys() | after.states.keys():
            was, now = before.states.get(job, {None}), after.states.get(job, {None})
            if len(was) == 1 and is_own_name(job):  # in two places, or under another's name, one is set aside
                allowed = {target for state in was for target in WAYS[state]}
                assert now <= allowed, f"{job}: {was} -> {now}"

    @contextlib.contextmanager
    def _gentle_step(self) -> Iterator[None]:
        """What people do without destroying anything."""
        before = self._look()
        yield
        self._nothing_is_lost(before, self._look())

    def _look(self) -> View:
        return look_around(self.spool, self.contents)

    def _nothing_is_lost(self, before: View, after: View) -> None:
        for group in before.groups:
            there = any(group <= other for other in after.groups)
            assert there or group in after.known, f"lost: {set(group)}"

    @invariant()
    def no_job_is_invented(self) -> None:
        for _, job in self.spool.placed():
            assert self.contents.explains(job), job

    @invariant()
    def videos_stay_what_they_are(self) -> None:
        videos = self._look().videos
        for name, content in self.published.items():
            assert name in videos, f"{name} is gone"
            assert videos[name] == content or _is_newer(videos[name], content), name
        for name, content in videos.items():
            if name not in self.published:
                assert content.startswith(f"video of {VIDEO_NAME.fullmatch(name)[1]}, take ".encode()), name
        self.published = videos

    @invariant()
    def the_bell_rings(self) -> None:
        """Hear, as the daemon's bell does, of every directory that came or went."""
        stands = set(self.spool.placed())
        self.heard |= {job for _, job in stands ^ self.stood}
        self.stood = stands

    def _tidied(self, *, everything: bool = True) -> None:
        """After a look at everything, or at what was heard of: each job is in one place, which its status tells."""
        for _ in range(3):  # what looks strange is looked at again before anything is done about it
            self.the_bell_rings()
            heard, self.heard = self.heard, set()
            with self._daemon_step():
                self.spool.tidy(heard)
                if everything:
                    self.spool.tidy()
        states = self._look().states
        for job, places in states.items():
            assert len(places) == 1, f"{job}: {places}"
            (state,) = places
            if self.spool.queue.run(state, job) and not self.spool.queue.has_outcome(State.PROCESSING, job):
                status = self.spool.status(job)
                assert status["state"] == state, f"{job} in {state}"
                assert state is not State.FAILED or status["outcome"] != "completed", job
        for path in self.spool.outputs.glob("*.status.json"):
            job = path.name.removesuffix(".status.json")
            if job not in states:
                assert self.spool.status(job)["state"] in ("done", "failed"), f"{job} is gone"

    # -- people and sync tools -----------------------------------------------------------------------------------------

    def _write(self, path: Path, label: str, *, in_place: bool) -> None:
        content = self.contents.by_label[label]
        if in_place:
            path.write_bytes(content)
        else:
            aside = self.root / "aside"
            aside.write_bytes(content)
            aside.rename(path)
        self.contents.written.add((path.name[0], label))

    @rule(stem=stems, image=images, sidecar=sidecars, in_place=st.booleans(), taken=st.booleans())
    def drop_pair(self, stem: str, image: str, sidecar: str, in_place: bool, taken: bool) -> None:
        self._write(self.spool.inbox / f"{stem}.png", image, in_place=in_place)
        self._write(self.spool.inbox / f"{stem}.json", sidecar, in_place=in_place)
        self.dropped.append((stem, image, sidecar))
        if taken:
            self.take()

    @rule(stem=stems, label=images | sidecars, in_place=st.booleans())
    def drop_half(self, stem: str, label: str, in_place: bool) -> None:
        self._write(self.spool.inbox / f"{stem}.{_extension(label)}", label, in_place=in_place)

    @with_jobs
    @rule(number=numbers, label=images | sidecars)
    def rewrite_in_a_job(self, number: int, label: str) -> None:
        state, job = self._place(number)
        if state in (State.PENDING, State.FAILED):
            for path in sorted(self.spool.queue.path(state, job).glob(f"[ab]*.{_extension(label)}"))[:1]:
                self._write(path, label, in_place=True)

    @precondition(lambda self: self.dropped)
    @rule()
    def mirror(self) -> None:
        """Push everything that was ever dropped, once more."""
        for stem, image, sidecar in self.dropped:
            self._write(self.spool.inbox / f"{stem}.png", image, in_place=False)
            self._write(self.spool.inbox / f"{stem}.json", sidecar, in_place=False)
            self.take()

    @with_jobs
    @rule(number=numbers, goal=st.sampled_from(State))
    def move_by_hand(self, number: int, goal: State) -> None:
        state, job = self._place(number)
        if not self.spool.queue.path(goal, job).exists():
            with self._gentle_step():
                self.spool.queue.path(state, job).rename(self.spool.queue.path(goal, job))

    @with_jobs
    @rule(number=numbers, goal=st.sampled_from(State), renamed=st.booleans())
    def copy_by_hand(self, number: int, goal: State, renamed: bool) -> None:
        state, job = self._place(number)
        name = f"{job.partition('.')[0].removesuffix('-copy')}-copy" if renamed else job
        if not self.spool.queue.path(goal, name).exists():
            with self._gentle_step():
                shutil.copytree(self.spool.queue.path(state, job), self.spool.queue.path(goal, name))

    @rule(stem=stems, image=images, sidecar=sidecars)
    def make_a_job_by_hand(self, stem: str, image: str, sidecar: str) -> None:
        folder = self.spool.queue.path(State.PENDING, stem)
        if not folder.exists():
            folder.mkdir()
            self._write(folder / f"{stem}.png", image, in_place=True)
            self._write(folder / f"{stem}.json", sidecar, in_place=True)

    @with_jobs
    @rule(number=numbers, act=st.sampled_from([moves.cancel, moves.interrupt, moves.retry]))
    def command(self, number: int, act: Callable[..., str]) -> None:
        _, job = self._place(number)
        with self._gentle_step():
            _answered(lambda: act(self.spool.queue, job))

    @with_jobs
    @rule(number=numbers)
    def remove(self, number: int) -> None:
        _, job = self._place(number)
        _answered(lambda: moves.remove(self.spool.queue, job))
        self._tidied()  # else, dropped again and moved to where it was at once, it is taken for what it was

    @with_jobs
    @rule(keep=st.integers(0, 2), videos=st.booleans(), forget=st.booleans())
    def prune(self, keep: int, videos: bool, forget: bool) -> None:
        self._prune(keep, videos=videos, forget=forget)
        if videos:
            self.published = self._look().videos
        self._tidied()

    def _prune(self, keep: int, **flags: bool) -> None:
        moves.prune(self.spool.queue, self.spool.outputs, keep=keep, older_than_seconds=None, **flags)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        (moves.pause if paused else moves.resume)(self.spool.queue)

    @with_jobs
    @rule(number=numbers)
    def put_a_stranger_into_outputs(self, number: int) -> None:
        path = self.spool.outputs / f"{self._place(number)[1]}.mp4"
        if not path.exists():
            path.write_bytes(b"a stranger's")
            self.published[path.name] = b"a stranger's"

    def _place(self, number: int) -> tuple[State, str]:
        there = self.spool.placed()
        return there[number % len(there)]

    # -- the daemon ----------------------------------------------------------------------------------------------------

    @rule()
    def take(self) -> None:
        whole = [
            stem for stem in STEMS if all((self.spool.inbox / f"{stem}{end}").exists() for end in (".png", ".json"))
        ]
        with self._daemon_step():
            self.spool.take()
        for stem in whole:
            assert not (self.spool.inbox / f"{stem}.png").exists(), f"{stem} was not taken"

    @rule(stem=stems, label=images | sidecars, in_place=st.booleans())
    def take_what_changes_meanwhile(self, stem: str, label: str, in_place: bool) -> None:
        drops = self.spool.scanner.scan().drops
        self.drop_half(stem, label, in_place)
        with self._daemon_step():
            for drop in drops:
                with contextlib.suppress(DropChangedError):
                    self.spool.door.add(drop)

    @rule(everything=st.booleans())
    def tidy(self, everything: bool) -> None:
        self._tidied(everything=everything)

    @rule(first_tidy=st.booleans())
    def start(self, first_tidy: bool) -> None:
        if first_tidy:
            self._tidied(everything=False)
        with self._daemon_step():
            self.spool.start()

    @with_busy_slots
    @rule(
        number=numbers,
        word=st.sampled_from(["rendered", "rendered", "section", "failed", "failed for good", "stopped"]),
    )
    def hear(self, number: int, word: str) -> None:
        """What a worker says."""
        busy = [slot for slot in self.spool.slots if slot.job]
        slot = busy[number % len(busy)]
        with self._daemon_step():
            match word:
                case "rendered":
                    self.spool.hear(slot, self._rendered(slot))
                case "section":
                    facts = {"section": 1, "frames_ready": 5, "seconds": 1.0, "preview": False}
                    self.spool.hear(slot, {"event": "section", "job": slot.job, **facts})
                case "stopped" if slot.stopping:
                    self.spool.hear(slot, {"event": "stopped", "job": slot.let_go()})
                case "failed" | "failed for good":
                    self.spool.hear(slot, slot.failed("model", retryable=word == "failed"))

    @rule()
    def end(self) -> None:
        with self._daemon_step():
            self.spool.endings.settle()

    @rule()
    def turn(self) -> None:
        """A day like any other."""
        self.take()
        self.start(first_tidy=True)
        while any(slot.job for slot in self.spool.slots):
            self.hear(0, "rendered")
        self.end()

    def _rendered(self, slot: Any) -> dict[str, Any]:
        self.takes += 1
        return slot.rendered(self.takes)

    # -- crashes -------------------------------------------------------------------------------------------------------

    @rule(point=points, work=st.sampled_from(["take", "tidy", "start", "settle", "render", "recover"]))
    def daemon_dies(self, point: int, work: str) -> None:
        """The daemon dies in the middle of something; the next one begins."""
        acts: dict[str, Callable[[], object]] = {
            "take": self.spool.take,
            "tidy": lambda: [self.spool.tidy() for _ in range(3)],
            "start": self.spool.start,
            "settle": self.spool.endings.settle,
            "render": self._render_all,
            "recover": lambda: Spool(self.root, self.spool.picture).recover(),
        }
        with self._daemon_step():
            dies_at(point, acts[work])
            self._restart()

    def _render_all(self) -> None:
        for slot in self.spool.slots:
            if slot.job:
                self.spool.hear(slot, slot.rendered(self.takes + 1))
        self.spool.endings.settle()

    @with_jobs
    @rule(point=points, number=numbers, act=st.sampled_from([moves.cancel, moves.interrupt, moves.retry]))
    def command_dies(self, point: int, number: int, act: Callable[..., str]) -> None:
        _, job = self._place(number)
        with self._gentle_step():
            dies_at(point, lambda: _answered(lambda: act(self.spool.queue, job)))

    @with_jobs
    @rule(point=points, number=numbers, prune=st.booleans())
    def removing_dies(self, point: int, number: int, prune: bool) -> None:
        _, job = self._place(number)

        def act() -> None:
            if prune:
                self._prune(0, videos=False, forget=number % 2 == 0)
            else:
                _answered(lambda: moves.remove(self.spool.queue, job))

        dies_at(point, act)
        act()  # who was cut off does it again
        self._tidied()

    @rule()
    def restart(self) -> None:
        with self._daemon_step():
            self._restart()

    def _restart(self) -> None:
        self.takes += 2
        self.spool = Spool(self.root, self.spool.picture)
        self.spool.recover()

    # -- peace ---------------------------------------------------------------------------------------------------------

    @rule()
    def peace(self) -> None:
        """With nobody disturbing it, everything that can run ends, and nothing is left half done."""
        self.restart()
        self.pause(paused=False)
        spool = self.spool
        for _ in range(PEACE):
            self.turn()
            if not spool.jobs(State.PENDING) + spool.jobs(State.PROCESSING):
                break
        self._tidied()
        assert spool.jobs(State.PENDING) + spool.jobs(State.PROCESSING) == []
        assert not [*spool.queue.building.iterdir(), *spool.queue.trash.iterdir(), *spool.work.iterdir()]
        assert not list(spool.outputs.glob(".*"))


def _extension(label: str) -> str:
    return "png" if label in IMAGES else "json"


def _is_newer(video: bytes, before: bytes) -> bool:
    """Whether both are videos of the same job, the second of an earlier rendering."""
    (job, _, take), (job_before, _, take_before) = (content.partition(b", take ") for content in (video, before))
    return job == job_before and before.startswith(b"video of ") and int(take) > int(take_before)


def _answered(act: Callable[[], object]) -> None:
    with contextlib.suppress(StateError, UnknownJobError):
        act()


def _check_at_once(path: Path) -> pictures.ImageFacts:
    """Look into a picture in this process: that it is done in another is tested elsewhere, and takes long."""
    with helper.open_plain(path, pictures._ERRORS) as file:
        return pictures._examine(file, pictures.MAX_PIXELS)[1]


@pytest.mark.timeout(7200 if THOROUGH else 300)
def test_nothing_is_lost_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "check", _check_at_once)
    set_hypothesis_home_dir(tmp_path)
    one, other = (paint(tmp_path / f"{shade}.png", width=64, shade=shade).read_bytes() for shade in (0, 3))
    SpoolMachine.contents = Contents.of(one, other)
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=not THOROUGH,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# What the model has found, plainly.


def test_a_repeat_of_a_pending_job_that_was_rewritten_is_a_job_of_its_own(bench: Bench) -> None:
    bench.drop(seed=7)
    first = bench.take_one()
    (bench.queue.path(State.PENDING, first) / "beach.json").write_text(json.dumps(SIDECAR | {"seed": 8}))
    bench.drop(seed=7)
    bench.take()
    (other,) = set(bench.jobs(State.PENDING)) - {first}
    assert {bench.status(job)["request"]["seed"] for job in (first, other)} == {7, 8}
    assert bench.jobs(State.FAILED) == []


def test_a_job_moved_between_its_ends_while_no_daemon_ran_has_its_status_put_right(bench: Bench) -> None:
    bench.put("beach.png")
    bench.put("beach.json", b"{}")
    job = bench.take_one()
    bench.queue.move(job, State.FAILED, State.DONE)
    bench.recover()
    assert bench.status(job)["state"] == "done"


def test_a_job_that_goes_on_under_another_name_does_not_seem_to_wait(bench: Bench) -> None:
    bench.drop()
    job = bench.take_one()
    bench.recover()
    folder = bench.queue.path(State.PENDING, job)
    (folder / "beach.json").write_text(json.dumps(SIDECAR | {"seed": 8}))
    (other,) = bench.door.add_again(folder).jobs
    bench.keeper.tidy(frozenset())
    assert bench.status(job)["state"] == "failed"
    assert other in bench.status(job)["message"]


def test_a_job_that_is_removed_before_it_was_seen_does_not_seem_to_wait(bench: Bench) -> None:
    bench.recover()
    bench.drop()
    job = bench.take_one()
    moves.remove(bench.queue, job)
    bench.keeper.tidy(frozenset(), {job})
    assert bench.status(job)["outcome"] == "cancelled"
