"""Faults that a real daemon meets on a whole machine: names, other users, lost file events, clocks, signals.

What the spool alone can show is in `test_spool_faults.py`; disks that fail are in `system/test_disks.py`. A line of a
table is a test, and one daemon serves all tests of a table.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import PATIENCE_SECONDS, Lab
from spool_bench import Bench
from tools import require, require_root

from framepack_daemon.endings import Endings
from framepack_daemon.job import State
from framepack_daemon.lifecycle import Lifecycle
from framepack_daemon.reasons import BREAKER_JOBS
from framepack_daemon.spool.capture import HIDDEN_FOLDER, Source, capture, signature
from framepack_daemon.spool.intake import Intake

SHARE_USER, GROUP = 64124, 64125  # of nobody else
# A daemon in that group to which permissions apply as to anybody: root without its rights, who can read this Python.
POWERLESS = ("setpriv", f"--regid={GROUP}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")


class Wrapped(Lab):
    """A lab whose daemon is started by another program, which becomes it."""

    def __init__(self, root: Path, models_dir: Path, picture: Path, *words: str) -> None:
        super().__init__(root, models_dir, picture)
        self.words = words

    def start(self, **settings: Any) -> None:
        """Start the daemon and wait until it serves."""
        command = [*self.words, sys.executable, "-m", "framepack_daemon", "run"]
        with (self.root / "daemon.log").open("ab") as log:
            before = len(self.events("daemon_started"))
            self.process = subprocess.Popen(command, env=self.environment(**settings), stderr=log)
        self.until(lambda: len(self.events("daemon_started")) > before, "the daemon to start")

    def end(self) -> None:
        """End the daemon, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def counts(self, name: str, word: str) -> int:
        """How often an event that speaks of something was logged."""
        return sum(word in json.dumps(event, ensure_ascii=False) for event in self.events(name))


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = {
    "not UTF-8": os.fsdecode(b"caf\xe9"),
    "control": "red\x1b[31m\x07",
    "newline": "two\nlines",
    "right to left": "photo\u202egnp",
    "long": "x" * 250,
    "long in bytes": "é" * 125,
    "dash": "-rf",
    "dots": "a..",
    "emoji": "🏖️",
    "reserved on Windows": "CON",
    "forbidden on Windows": 'a:b*?"<>|\\',
    "blank at its end": "beach ",
    "percent": "%s%n%2e%2e",
    "decomposed": unicodedata.normalize("NFD", "été"),
    "a bracket of markup": "[red]x",
}
RENDERED = 2  # of them


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path) -> Iterator[Wrapped]:
    """A daemon into whose inbox a pair of each of the names has come, each with a seed; the first are rendered."""
    lab = Wrapped(tmp_path_factory.mktemp("names"), models_dir, still)
    try:
        lab.start()
        for seed, stem in enumerate(NAMES.values()):
            if seed == RENDERED:
                lab.until(lambda: len(lab.jobs(State.DONE)) == RENDERED, "their videos")
                lab.queue.pause_file.touch()
            lab.drop(stem, frames=5, seed=seed)
        lab.until(lambda: len(lab.jobs(State.PENDING)) == len(NAMES) - RENDERED, "the others to be taken")
        yield lab
    finally:
        lab.end()


@pytest.mark.parametrize("what", NAMES)
def test_a_pair_of_any_name_becomes_a_job_of_a_plain_name(named: Wrapped, what: str) -> None:
    seed = list(NAMES).index(what)
    state = State.DONE if seed < RENDERED else State.PENDING
    (job,) = [job for job in named.jobs(state) if named.status(job)["request"]["seed"] == seed]
    assert job.isprintable()
    assert not set(job) & set('/\\:*?"<>|')
    assert (named.queue.path(state, job) / f"{NAMES[what]}.png").read_bytes() == named.picture.read_bytes()
    assert not (named.inbox / f"{NAMES[what]}.png").exists()
    if state is State.DONE:
        assert named.frames(job).shape[0] == 5


def test_nothing_of_a_name_drives_a_terminal(named: Wrapped) -> None:
    log = (named.root / "daemon.log").read_bytes().decode()
    shown = [log, named.command("status", "--rows", "99").stdout]
    shown += [named.command("status", job).stdout for job in named.jobs(State.DONE)]
    for text in shown:
        assert all(character.isprintable() or character in "\n\u200d\ufe0f" for character in text)


def test_what_was_published_is_no_drop_when_it_is_copied_back(named: Wrapped) -> None:
    published = sorted(path for path in named.outputs.iterdir() if path.is_file())
    assert {"".join(path.suffixes) for path in published} >= {".mp4", ".poster.jpg", ".status.json"}
    for path in published:
        shutil.copyfile(path, named.inbox / path.name)
    named.drop("after", seed=99)
    named.ended("after", State.PENDING)
    left = sorted(path.name for path in named.inbox.iterdir() if not path.name.startswith("."))
    assert left == [path.name for path in published]
    assert json.loads(named.command("status", "--json").stdout)["halves"] == []
    assert len(named.jobs(State.PENDING)) == len(NAMES) - RENDERED + 1


# -- users -------------------------------------------------------------------------------------------------------------


def _as(user: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    who = ["setpriv", f"--reuid={user}", f"--regid={GROUP}", "--clear-groups"]
    return subprocess.run([*who, *map(str, words)], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def share(models_dir: Path, still: Path) -> Iterator[Wrapped]:
    """A daemon without root's rights, and a group whose other members share its folders; the queue is paused."""
    require_root()
    require("setpriv")
    root = Path(tempfile.mkdtemp(prefix="framepack-users-"))  # pytest's own folders are closed to other users
    lab = Wrapped(root, models_dir, still, *POWERLESS)
    try:
        lab.queue.root.mkdir()
        lab.queue.pause_file.touch()
        for path in (root, *root.iterdir()):
            os.chown(path, 0, GROUP)
            path.chmod(0o2775)
        lab.start(rescan_seconds=0.5)
        yield lab
    finally:
        lab.end()
        shutil.rmtree(root)


def _put(lab: Lab, folder: Path, stem: str, mode: int = 0o644, **fields: Any) -> None:
    """A pair of the other user's."""
    lab.drop(stem, folder=lab.root, **fields)
    for path in (lab.root / f"{stem}.png", lab.root / f"{stem}.json"):
        os.chown(path, SHARE_USER, SHARE_USER)
        path.chmod(mode)
        path.rename(folder / path.name)


def test_a_file_that_cannot_be_read_is_said_once_and_taken_once_when_it_can(share: Wrapped) -> None:
    _put(share, share.inbox, "secret", 0o600)
    share.until(lambda: share.counts("drop_unreadable", "secret"), "the warning")
    for stem in ("one", "two", "three"):  # each is taken by a later scan
        _put(share, share.inbox, stem)
        share.ended(stem, State.PENDING)
    assert share.counts("drop_unreadable", "secret") == 1
    assert (share.inbox / "secret.png").exists()
    for suffix in ("png", "json"):
        (share.inbox / f"secret.{suffix}").chmod(0o644)
    share.ended("secret", State.PENDING)
    assert not (share.inbox / "secret.png").exists()
    assert len(share.jobs(State.PENDING, "secret")) == 1


def test_a_drop_folder_that_cannot_be_written_is_said_once_and_keeps_no_other_drop(share: Wrapped) -> None:
    folder = share.inbox / "closed"
    folder.mkdir()
    _put(share, folder, "held")
    os.chown(folder, SHARE_USER, SHARE_USER)
    folder.chmod(0o755)
    (folder / "defaults.json").write_text("{}")
    share.until(lambda: share.counts("intake_failed", "closed"), "the error")
    for stem in ("four", "five"):
        _put(share, share.inbox, stem)
        share.ended(stem, State.PENDING)
    assert share.counts("intake_failed", "closed") == 1
    assert sorted(path.name for path in folder.iterdir() if path.suffix) == ["defaults.json", "held.json", "held.png"]
    assert share.jobs(State.PENDING, "held") == []
    told = json.loads(share.command("status", "--json").stdout)["troubles"]
    assert "closed" in str(told)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (State.PENDING, State.FAILED, "cancelled"),
        (State.FAILED, State.PENDING, "waits for its turn"),
        (State.PENDING, State.DONE, "the video is ready"),
        (State.DONE, State.PENDING, "waits for its turn"),
    ],
)
def test_another_member_of_the_group_moves_jobs(share: Wrapped, source: State, target: State, said: str) -> None:
    stem = f"moved-{source}-{target}"
    _put(share, share.inbox, stem, seed=10 + list(State).index(target) * 4 + list(State).index(source))
    job = share.ended(stem, State.PENDING)
    if source is not State.PENDING:
        _as(SHARE_USER, "mv", share.queue.path(State.PENDING, job), share.queue.folder(source))
        share.until((share.queue.path(source, job) / "outcome.json").exists, "the outcome")
    _as(SHARE_USER, "mv", share.queue.path(source, job), share.queue.folder(target))
    share.until(lambda: share.status(job)["state"] == target, f"the status to say {target}")
    assert share.queue.state_of(job) is target
    if target is State.PENDING:
        assert share.status(job)["message"] == said


@pytest.mark.parametrize("mask", ["0002", "0022", "0077"])
def test_a_folder_that_another_user_makes_in_pending_becomes_a_job(share: Wrapped, mask: str) -> None:
    stem = f"by-hand-{mask}"
    share.drop(stem, folder=share.root, seed=int(mask, 8) + 100)
    folder = share.queue.folder(State.PENDING) / stem
    script = f'umask {mask}; mkdir "$1"; cp "$2" "$3" "$1"'
    _as(SHARE_USER, "sh", "-c", script, "sh", folder, share.root / f"{stem}.png", share.root / f"{stem}.json")
    share.until(lambda: share.jobs(State.PENDING, f"{stem}-"), "a job")
    share.until(lambda: not _troubles(share), "no trouble to be left")


@pytest.mark.parametrize("mode", ["755", "700"])
def test_a_folder_of_another_user_in_pending_keeps_no_other_job(share: Wrapped, mode: str) -> None:
    """One that the daemon may not write, as a copy that keeps its permissions, is said once; the other jobs go on."""
    stem, seed = f"closed-{mode}", int(mode, 8) + 100
    share.drop(stem, folder=share.root, seed=seed)
    aside, folder = share.root / stem, share.queue.folder(State.PENDING) / stem
    script = f'mkdir "$1"; cp "$2" "$3" "$1"; chmod {mode} "$1"; cp -r "$1" "$4"'
    files = (share.root / f"{stem}.png", share.root / f"{stem}.json")
    _as(SHARE_USER, "sh", "-c", script, "sh", aside, *files, folder)
    share.until(lambda: share.counts("job_barred", stem), "the warning")
    _renders_another(share, f"after-{mode}", seed + 1000)
    assert share.counts("job_barred", stem) == 1
    assert sorted(path.name for path in folder.iterdir()) == [f"{stem}.json", f"{stem}.png"]
    assert f"pending/{stem}" in str(_troubles(share))
    shutil.rmtree(folder)
    share.until(lambda: not _troubles(share), "no trouble to be left")


@pytest.mark.parametrize("mode", ["go-w", "go-rwx"])
@pytest.mark.parametrize("target", [State.PENDING, State.PROCESSING, State.DONE])
def test_a_job_that_another_user_copied_keeps_no_other_job(share: Wrapped, mode: str, target: State) -> None:
    """A copy that the daemon may neither move nor write."""
    stem, seed = f"copied-{target}-{mode}", len(mode) + 200 + list(State).index(target)
    _put(share, share.inbox, stem, seed=seed, priority=99)  # tried before any other
    job = share.ended(stem, State.PENDING)
    assert share.command("cancel", job).returncode == 0
    share.until((share.queue.path(State.FAILED, job) / "outcome.json").exists, "the outcome")
    aside = share.root / job
    share.queue.path(State.FAILED, job).rename(aside)
    share.until(lambda: share.counts("job_removed", job), "it to be gone")
    (aside / "outcome.json").unlink()
    folder = share.queue.path(target, job)
    aside.chmod(0o755)
    script = f'cp -r "$1" "$2"; chmod {mode} "$2"; mv "$2" "$3"'
    _as(SHARE_USER, "sh", "-c", script, "sh", aside, share.root / f"{job}.copy", folder)
    _renders_another(share, f"beside-{target}-{mode}", seed + 1000)
    assert share.counts("job_barred", job) == 1
    assert f"{target}/{job}" in str(_troubles(share))
    if target is not State.DONE:  # what a start does with those that wait or run is another matter
        assert share.stop() == 0
        share.start(rescan_seconds=0.5)
        _renders_another(share, f"again-{target}-{mode}", seed + 2000)
    folder.chmod(0o2775)
    for path in folder.iterdir():
        path.chmod(0o664)
    os.chown(folder, -1, GROUP)
    share.until(lambda: not _troubles(share), "no trouble to be left")
    if target is State.PROCESSING:
        share.until(lambda: share.queue.state_of(job) is State.PENDING, "it to wait")
    assert share.command("cancel", job).returncode == 0
    share.until(lambda: share.status(job)["outcome"] == "cancelled", "the end")


def _renders_another(share: Wrapped, stem: str, seed: int) -> None:
    """See that a pair that is dropped now is rendered, though something else stands in the way."""
    share.queue.pause_file.unlink()
    try:
        _put(share, share.inbox, stem, seed=seed, frames=5, num_inference_steps=1, priority=90)
        job = share.ended(stem)
    finally:
        share.queue.pause_file.touch()
    share.until(lambda: share.status(job)["state"] == "done", "the status to say so")
    assert share.process is not None
    assert share.process.poll() is None


def _troubles(share: Wrapped) -> list[Any]:
    return json.loads(share.command("status", "--json").stdout)["troubles"]


# -- shares ------------------------------------------------------------------------------------------------------------


def test_what_was_half_taken_when_a_share_went_away_is_taken_when_it_is_back(bench: Bench) -> None:
    away = bench.root / "away"
    bench.drop()
    place = bench.inbox / HIDDEN_FOLDER / "0123456789abcdef"
    place.mkdir(parents=True)
    looks = {path.name: signature(path) for path in bench.inbox.iterdir() if path.is_file()}
    capture([Source(bench.inbox / name, name, look) for name, look in looks.items() if look], bench.inbox, place)
    bench.inbox.rename(away)  # in the middle, before the daemon could copy the files or put them back
    intake = Intake(bench.scanner, bench.door, lambda *_: None, rescan_seconds=0.05, poll_seconds=0.05)
    intake.start()
    try:
        bench.inbox.mkdir()
        bench.drop("beneath")
        _until(lambda: bench.jobs(State.PENDING))
        shutil.rmtree(bench.inbox)
        away.rename(bench.inbox)
        _until(lambda: len(bench.jobs(State.PENDING)) == 2)
        assert bench.left() == []
    finally:
        intake.stop()


def _until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- file events -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_without_file_events_the_timer_scans_and_a_warning_says_so(
    tmp_path: Path, models_dir: Path, still: Path, limit: str
) -> None:
    require("unshare")
    script = f'echo 0 > /proc/sys/user/{limit} && exec "$@"'
    lab = Wrapped(tmp_path, models_dir, still, "unshare", "--user", "--map-root-user", "sh", "-c", script, "sh")
    try:
        lab.start(rescan_seconds=0.5)
        for stem in ("one", "two"):
            lab.drop(stem)
            job = lab.ended(stem)
        assert len(lab.events("no_file_events")) <= 2  # of the inbox and of the queue
        assert lab.events("no_file_events")
        lab.command("retry", job)
        lab.until(lambda: len([each for each in lab.events("job_claimed") if each["job"] == job]) == 2, "the retry")
        lab.ended("two")
    finally:
        lab.end()


def test_events_that_are_lost_cost_nothing_but_time(tmp_path: Path, models_dir: Path, still: Path) -> None:
    require_root()
    setting = Path("/proc/sys/fs/inotify/max_queued_events")
    before = setting.read_text()
    lab = Lab(tmp_path / "lab", models_dir, still)
    lab.queue.root.mkdir()
    lab.queue.pause_file.touch()
    try:
        setting.write_text("1")
        lab.start(rescan_seconds=1)
        setting.write_text(before)
        for number in range(20):
            lab.drop(f"many{number}", seed=number)
        lab.until(lambda: len(lab.jobs(State.PENDING)) == 20, "all of them")
    finally:
        setting.write_text(before)
        assert lab.process is not None
        lab.process.kill()
        lab.process.wait()


# -- time --------------------------------------------------------------------------------------------------------------


YEAR = 365 * 86400  # seconds


def test_a_clock_that_jumps_has_no_effect(
    tmp_path: Path, models_dir: Path, still: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("gcc")
    clock, library = tmp_path / "clock", tmp_path / "clock.so"
    source = Path(__file__).with_name("jumping_clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_OFFSET", str(clock))
    lab = Wrapped(tmp_path / "lab", models_dir, still)
    try:
        lab.start(settle_seconds=2)
        ended = []
        for number, years in enumerate((10, -40, 0)):
            clock.write_text(str(years * YEAR))
            lab.drop(f"clock{number}", frames=37, num_inference_steps=2, seed=number)
            time.sleep(0.5)  # the daemon has seen the files, and waits for them to settle
            clock.write_text(str(-years * YEAR))
            lab.ended(f"clock{number}", State.PROCESSING)
            clock.write_text(str(years * YEAR))  # and once more, in the middle
            ended.append(lab.ended(f"clock{number}"))
        assert [event["attempt"] for event in lab.events("job_claimed")] == [1] * 3
        assert len({lab.status(job)["submitted_at"][:4] for job in ended}) == 3, "the clock did not jump"
        assert lab.stop() == 0
    finally:
        lab.end()


# -- signals -----------------------------------------------------------------------------------------------------------

STOPS = [
    ("SIGTERM", "idle"),
    ("SIGINT", "idle"),
    ("SIGHUP", "idle"),
    ("SIGTERM", "loading"),
    ("SIGINT", "running"),
    ("SIGHUP", "running"),
    ("SIGTERM", "publishing"),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path) -> Iterator[Wrapped]:
    lab = Wrapped(tmp_path_factory.mktemp("signals"), models_dir, still)
    yield lab
    lab.end()


@pytest.mark.parametrize(("name", "stage"), STOPS)
def test_a_signal_stops_in_good_order_at_every_stage(stopped: Wrapped, name: str, stage: str) -> None:
    lab, stem = stopped, f"{name}-{stage}"
    (lab.root / "daemon.log").touch()
    loaded, claimed = len(lab.events("model_loaded")), len(lab.events("job_claimed"))
    lab.start()
    if stage != "loading":
        lab.until(lambda: len(lab.events("model_loaded")) > loaded, "the model")
    if stage in {"running", "publishing"}:
        lab.drop(stem, frames=37, num_inference_steps=30 if stage == "running" else 1, seed=claimed)
        lab.until(lambda: len(lab.events("job_claimed")) > claimed, "the job to start")
    if stage == "publishing":
        taken = lab.root / "aside"
        lab.outputs.rename(taken)  # it can be published nowhere
        lab.until(lambda: lab.events("publishing_failed"), "the video to wait")
    assert lab.stop(getattr(signal, name)) == 0
    if stage == "running":
        (job,) = lab.jobs(State.PENDING, stem)
        assert lab.queue.run(State.PENDING, job).attempts == 0
        assert lab.command("cancel", job).returncode == 0
    if stage == "publishing":
        taken.rename(lab.outputs)
        lab.start()
        lab.ended(stem)
        assert len(lab.events("job_claimed")) == claimed + 1, "it was rendered again"
        assert lab.stop() == 0


# -- workers -----------------------------------------------------------------------------------------------------------


def test_a_worker_dies_with_its_daemon_also_while_it_imports_torch(
    tmp_path: Path, models_dir: Path, still: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Wrapped(tmp_path / "lab", models_dir, still)
    reached = tmp_path / "reached"
    (tmp_path / "torch.py").write_text(f"import pathlib, time; pathlib.Path('{reached}').touch(); time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    try:
        lab.start()
        lab.until(reached.exists, "the worker to import it")
        worker = lab.worker_pid()
    finally:
        lab.end()
    lab.until(lambda: not Path(f"/proc/{worker}").exists(), "the worker to die with its daemon")


class Idle:
    """A worker that has nothing to do and notes what it is given."""

    job = None
    stopping = False
    device = "cpu"

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, job: str, **fields: Any) -> None:
        """Take a job."""
        assert fields["request"]
        self.started.append(job)


def test_when_every_job_makes_its_worker_fail_it_is_not_the_jobs(bench: Bench) -> None:
    endings = Endings(bench.queue, bench.keeper, bench.publisher, bench.writer, bench.previews, bench.work)
    course = Lifecycle(bench.queue, bench.keeper, endings, bench.writer, bench.previews, bench.work, max_attempts=1)
    for seed in range(BREAKER_JOBS + 1):
        bench.drop(f"job{seed}", seed=seed)
        bench.take()
    bench.recover()
    worker = Idle()
    for count in range(1, BREAKER_JOBS + 1):
        course.start_next(worker, [])
        assert len(worker.started) == count
        course.handle({"event": "died", "job": worker.started[-1], "message": "the device is gone"}, worker)
        endings.settle()
    course.start_next(worker, [])
    assert len(worker.started) == BREAKER_JOBS
    (waits,) = bench.jobs(State.PENDING)
    assert "the last jobs all made their worker fail" in bench.status(waits)["message"]
    course.reasons.start_at = 0.0  # a minute later
    course.start_next(worker, [])
    assert worker.started[-1] == waits
