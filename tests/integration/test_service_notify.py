"""What a real daemon tells a service manager over a real socket: that it starts, works, waits, reloads and stops."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from disks import disks
from lab import QUICK, Lab
from spool_bench import Bench
from tools import require, require_root

from framepack_daemon import atomic, weights
from framepack_daemon.job import State
from framepack_daemon.reload import RELOADED
from framepack_daemon.spool import mounts
from framepack_daemon.spool.queue import Queue

WATCHDOG_SECONDS = 2.0  # within which the manager wants to hear that the daemon lives
GLANCE_SECONDS = 0.3  # between two looks at a thread
SILENCE_SECONDS = 2.5  # in which a daemon that lives would have said so
LONG = QUICK | {"frames": 3600, "num_inference_steps": 8}  # 100 sections: it outlives its test
MODEL = "framepack-i2v"  # tiny would be made on the spot
PROGRESS = re.compile(r"beach \d+ %( · \d+:\d\d left)?$")
# The daemon, that looks again for what is missing as soon as that can be seen.
HASTY = """
from framepack_daemon import reasons
from framepack_daemon.cli import main
from framepack_daemon.workers import pool
reasons.MODEL_SECONDS = pool.DEVICE_SECONDS = 0.5
raise SystemExit(main())
"""


class Word(NamedTuple):
    """One datagram."""

    at: datetime
    fields: dict[str, str]


class Manager:
    """What listens at `NOTIFY_SOCKET`: a path, or `@` and an abstract name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.words: list[Word] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 16):
                fields = dict(line.split("=", 1) for line in data.decode().splitlines())
                self.words.append(Word(datetime.now(UTC), fields))

    def close(self) -> None:
        """Hear no more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def said(self, name: str, since: int = 0) -> list[str]:
        """Every value of that name, in the words from that number on."""
        return [word.fields[name] for word in self.words[since:] if name in word.fields]

    @property
    def status(self) -> str:
        """The status line."""
        return (self.said("STATUS") or [""])[-1]


class Served(Lab):
    """A daemon under a manager, with a file of settings."""

    def __init__(self, root: Path, models_dir: Path, picture: Path, manager: Manager) -> None:
        super().__init__(root, models_dir, picture)
        self.manager = manager
        self._config = root / "config.toml"
        del self.settings["settle_seconds"]
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Write the file, beside what every test of this kind has in it."""
        lines = {"settle_seconds": 0.2} | settings
        self._config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))

    def environment(self, **settings: Any) -> dict[str, str]:
        return super().environment(**settings) | {
            "FRAMEPACK_CONFIG": str(self._config),
            "NOTIFY_SOCKET": self.manager.address,
            "WATCHDOG_USEC": str(round(WATCHDOG_SECONDS * 1e6)),
        }

    def reload(self, **settings: Any) -> int:
        """Have other settings read, and wait until that is done; the number of the first word about it."""
        self.configure(**settings)
        mark = len(self.manager.words)
        self.process.send_signal(signal.SIGHUP)
        self.until(lambda: self.manager.said("READY", mark), "the end of the reload")
        return mark

    def says(self, what: str | re.Pattern[str]) -> str:
        """Wait until the status line has that in it; the line."""
        return self.until(lambda: self.manager.status if re.search(what, self.manager.status) else "", f"{what!r}")

    def fed(self, since: int) -> None:
        """Wait until the watchdog was fed again."""
        self.until(lambda: self.manager.said("WATCHDOG", since), "the watchdog to be fed")

    def goes_on(self, job: str) -> None:
        """Wait until a running job is a section further."""
        progress = self.status(job)["progress"] or {}
        self.reaches(job, progress.get("section", 0) + 1)

    def takes(self, stem: str) -> None:
        """Wait until a drop waits in the queue, then take it out of the running job's way."""
        job = self.ended(stem, State.PENDING)
        self.queue.discard(self.queue.path(State.PENDING, job))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path) -> Iterator[Served]:
    """A daemon that has found a long job in `processing/`, where the one before it died, and renders that."""
    root = tmp_path_factory.mktemp("served")
    manager = Manager(str(root / "notify"))
    lab = Served(root / "lab", models_dir, still, manager)
    lab.configure(settle_seconds=3600, heartbeat_timeout_seconds=86400)  # too long for any test, until it is reloaded
    bench = Bench(lab.root, still)
    bench.drop(**LONG)
    bench.queue.move(bench.take_one(), State.PENDING, State.PROCESSING)
    lab.start()
    lab.until(lambda: manager.said("READY"), "the daemon to be ready")
    yield lab
    lab.end()
    manager.close()


@pytest.fixture
def job(served: Served) -> str:
    """The long job, which is being rendered."""
    name = served.ended("beach", State.PROCESSING)
    served.reaches(name, 1, 1)
    return name


@pytest.fixture
def waiting(tmp_path: Path, still: Path) -> Iterator[Callable[[str], Served]]:
    """Makes folders of a daemon whose model files are not there, with inbox, outputs and queue on one share."""
    with contextlib.ExitStack() as held:

        def make(address: str) -> Served:
            manager = Manager(address)
            held.callback(manager.close)
            lab = Served(tmp_path / "lab", tmp_path / "models", still, manager)
            held.callback(lab.end)
            share = lab.root / "share"
            lab.inbox, lab.outputs, lab.queue = share / "inbox", share / "outputs", Queue(share / "queue")
            lab.settings |= {"inbox": lab.inbox, "outputs": lab.outputs, "model": MODEL, "memory": "resident"}
            return lab

        yield make


def begun(lab: Lab, event: str) -> datetime:
    """When that was first logged."""
    return datetime.fromisoformat(lab.events(event)[0]["timestamp"])


def pull(tiny: Path, models_dir: Path) -> None:
    """Bring the files of `MODEL`, which are those of the model `tiny`, into the folder of the model files."""
    parts = ("transformer", "components", "image_encoder")
    for part, repository in zip(parts, weights.repositories(MODEL), strict=True):
        shutil.copytree(tiny / "tiny" / part, repository.folder(models_dir))


def hangs(pid: int) -> bool:
    """Whether a thread of the process waits where no signal reaches it, and does so a moment later too."""

    def stuck() -> set[str]:
        states = set()
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # the thread has ended
                number, _, state = stat.read_text().partition(" (")
                states |= {number} if state.rpartition(") ")[2].startswith("D") else set()
        return states

    before = stuck()
    time.sleep(GLANCE_SECONDS)
    return bool(before & stuck())


@contextlib.contextmanager
def frozen(disk: Path) -> Iterator[None]:
    """Whoever writes to the disk waits, and cannot even be killed: as on a share that hangs."""
    subprocess.run(["fsfreeze", "--freeze", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)


def test_it_is_ready_when_the_queue_is_recovered_and_the_worker_answers(served: Served) -> None:
    words = served.manager.words
    first = next(number for number, word in enumerate(words) if "READY" in word.fields)
    ready = words[first]
    assert begun(served, "job_recovered") < begun(served, "model_loaded") < ready.at
    before = [word.fields for word in words[:first]]
    assert {"STATUS": "looking through the queue"} in before
    assert any("EXTEND_TIMEOUT_USEC" in fields for fields in before)


@pytest.mark.usefixtures("job")
def test_the_status_line_says_how_far_the_job_is(served: Served) -> None:
    assert PROGRESS.match(served.says(PROGRESS))
    first = served.says(r"\d+:\d\d left$")
    served.until(lambda: served.manager.status != first and "beach" in served.manager.status, "another status")


def test_settings_are_reloaded_under_a_running_job(served: Served, job: str) -> None:
    pids = served.process.pid, served.worker_pid()
    served.drop("calm", **LONG)
    start = time.monotonic_ns() // 1000
    mark = served.reload(heartbeat_timeout_seconds=3)
    words = [word.fields for word in served.manager.words[mark:] if word.fields.keys() & {"RELOADING", "READY"}]
    assert [set(fields) for fields in words] == [{"RELOADING", "MONOTONIC_USEC"}, {"READY"}]
    assert start <= int(words[0]["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert served.events("settings_reloaded")[-1]["changed"] == ["settle_seconds", "heartbeat_timeout_seconds"]
    served.takes("calm")  # which would have had to stand still for longer before
    served.goes_on(job)
    assert pids == (served.process.pid, served.worker_pid())
    assert len(served.events("job_claimed")) == 1
    served.reload(heartbeat_timeout_seconds=3, log_level="warning")
    served.reload(heartbeat_timeout_seconds=3)
    assert [event["changed"] for event in served.events("settings_reloaded")[1:]] == [["log_level"]]


def test_wrong_settings_change_nothing_and_are_told_until_they_are_put_right(served: Served, job: str) -> None:
    served.reload(heartbeat_timeout_seconds=3)
    mark = served.reload(max_attempts=0, settle_seconds=3600)
    assert served.manager.said("RELOADING", mark)
    assert served.says("not reloaded").startswith("settings not reloaded: max_attempts: 0 in ")
    served.says(r"not reloaded.* · beach \d+ %")
    assert served.events("reload_refused")[-1]["hint"] == "max_attempts is a whole number from 1 to 100"
    served.drop("storm")
    served.takes("storm")
    served.reload(heartbeat_timeout_seconds=3, model="framepack-f1")
    served.says(r"^restart needed for model · .*beach")
    assert served.events("restart_needed")[-1]["settings"] == ["model"]
    served.reload(heartbeat_timeout_seconds=3)
    served.says("^beach")
    served.goes_on(job)


def test_a_worker_that_hangs_is_replaced_and_the_watchdog_fed_meanwhile(served: Served, job: str) -> None:
    served.reload(heartbeat_timeout_seconds=3)
    pid, mark = served.worker_pid(), len(served.manager.words)
    os.kill(pid, signal.SIGSTOP)
    served.until(lambda: served.events("worker_died"), "the worker's end")
    assert "no sign of life" in served.events("worker_died")[0]["reason"]
    assert not Path(f"/proc/{pid}").exists()
    times = [word.at for word in served.manager.words[mark:] if "WATCHDOG" in word.fields]
    assert len(times) > 1
    served.until(lambda: len(served.events("job_claimed")) == 2, "the job to be claimed again")
    served.goes_on(job)
    assert served.worker_pid() != pid


def test_it_says_that_it_stops_and_asks_for_the_time_that_it_takes(served: Served, job: str) -> None:
    mark = len(served.manager.words)
    assert served.stop() == 0
    words = [word.fields for word in served.manager.words[mark:]]
    stopping = words.index({"STOPPING": "1", "STATUS": "stopping: beach at its next step"})
    assert any("EXTEND_TIMEOUT_USEC" in fields for fields in words[stopping:])
    assert job in served.jobs(State.PENDING)


def test_without_its_share_and_its_model_it_stays_up_says_so_and_goes_on(
    waiting: Callable[[str], Served], models_dir: Path, tmp_path: Path
) -> None:
    require("mkfs.ext4", "losetup", "fsfreeze")
    require_root()
    lab = waiting(str(tmp_path / "notify"))
    share, heard = lab.root / "share", lab.manager
    with disks("ext4", tmp_path, share, lab.work) as found, contextlib.ExitStack() as before:
        before.callback(lab.end)
        folders = (lab.inbox, lab.outputs, lab.queue.root)
        for folder in folders:
            atomic.make_folder(folder)
        mounts.remember(lab.work, folders)
        with found["share"].away():
            lab.launch("-c", HASTY, "run")
            lab.says(rf"^waiting for {share}: not mounted$")
            lab.until(lambda: heard.said("READY"), "the manager to be told that nothing is to be waited for")
            lab.reload(max_attempts=0)
            lab.says(rf"^settings not reloaded: max_attempts.* · waiting for {share}: not mounted$")
            lab.fed(len(heard.words))
            assert list(share.iterdir()) == []

        lab.drop()
        lab.says(f"model weights are missing: framepack-daemon models pull {MODEL}")
        job = lab.ended("beach", State.PENDING)
        lab.until(lambda: lab.status(job)["message"].startswith("waits: "), "the job to say why it waits")
        assert f"framepack-daemon models pull {MODEL}" in lab.status(job)["message"]
        lab.reload()
        mark = len(heard.words)
        pull(models_dir, tmp_path / "models")
        assert lab.ended("beach") == job
        lab.says("^idle$")
        # For the one video that was published, not for every turn of the loop.
        assert heard.said("WATCHDOG_USEC", mark) == ["600000000", str(round(WATCHDOG_SECONDS * 1e6))]

        lab.drop("storm", **LONG)
        storm = lab.ended("storm", State.PROCESSING)
        lab.reaches(storm, 1, 1)
        with frozen(share):
            lab.until(lambda: hangs(lab.process.pid), "the loop to hang")
            mark = len(heard.words)
            time.sleep(SILENCE_SECONDS)
            assert heard.said("WATCHDOG", mark) == []
        lab.fed(mark)
        with frozen(lab.work):
            lab.until(lambda: hangs(lab.worker_pid()), "the worker to hang")
            lab.reload(step_timeout_seconds=1)
            lab.until(lambda: lab.events("worker_does_not_end"), "the worker to be killed, and not to end")
            mark = lab.reload()
            time.sleep(SILENCE_SECONDS)
            assert heard.said("WATCHDOG", mark) == []
        lab.fed(mark)
        assert "said nothing for" in lab.events("worker_died")[-1]["reason"]


def test_on_a_full_disk_and_without_its_device_it_stays_up_says_so_and_goes_on(
    waiting: Callable[[str], Served], tmp_path: Path
) -> None:
    require("mkfs.ext4", "losetup")
    require_root()
    lab = waiting(f"@framepack-daemon-test-{os.getpid()}")
    share = lab.root / "share"
    with disks("ext4", tmp_path, share) as found, contextlib.ExitStack() as before:
        before.callback(lab.end)
        with found["share"].full():
            lab.launch("-c", HASTY, "run", device="cuda:99")
            lab.says(rf"^disk full: {share}/")
            lab.fed(len(lab.manager.words))
        lab.until(lab.inbox.exists, "the folders to be made")
        lab.drop()
        job = lab.ended("beach", State.PENDING)
        said = lab.says("cuda:99")
        lab.until(lambda: "cuda:99" in lab.status(job)["message"], "the job to say why it waits")
        assert lab.status(job)["message"].removeprefix("waits: ") in said
        lab.until(lambda: len(lab.events("worker_started")) > 1, "another look for the device")
        lab.fed(len(lab.manager.words))


def test_the_page_of_the_settings_says_which_are_reloaded() -> None:
    page = (Path(__file__).parents[2] / "docs/settings.md").read_text().partition("\n## Reloading\n")[2]
    listed = page.partition("take effect at once:")[2].partition("The others")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(RELOADED)
