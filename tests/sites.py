"""A daemon whose folders can fail, and what it must do then: say so, wait, go on by itself, and do every job once.

Knows neither what can fail nor how.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from lab import Lab

from framepack_daemon.job import State

T = TypeVar("T")

# What is logged, once, when something that `status` names cannot be done.
SAID_ONCE = {"intake": "intake_failed", "queue": "queue_unreachable", "publishing": "publishing_failed"}
A_WHILE = {"frames": 37, "num_inference_steps": 8}  # time enough to stop the worker in the middle
UNREADABLE = [os.strerror(number) for number in (errno.EIO, errno.ESTALE)]


class Site(Generic[T]):
    """A daemon each of whose folders is on something that can fail."""

    def __init__(self, lab: Lab, disks: dict[str, T]) -> None:
        self.lab = lab
        self.disks = disks  # by the folder's name

    def job_waits_and_is_done_once(
        self, stem: str, fault: Callable[[], AbstractContextManager[None]], when: str, said: str
    ) -> None:
        """Let `fault` happen at that moment of a job's life; while it lasts, `status` speaks of it."""
        lab = self.lab
        before = len(lab.events(SAID_ONCE.get(said, "")))
        with contextlib.ExitStack() as meanwhile:
            if when == "before a start":
                lab.queue.pause_file.touch()
            if when != "before a drop":
                lab.drop(stem, **A_WHILE)
            if when == "before a start":
                lab.ended(stem, State.PENDING)
            if when == "during a job":
                lab.reaches(lab.ended(stem, State.PROCESSING), 1)  # it is claimed, and its worker has what it needs
                meanwhile.enter_context(self._worker_stopped())
            with fault():
                meanwhile.close()  # the worker goes on
                if when == "before a drop":
                    lab.drop(stem)
                if when == "before a start":
                    lab.queue.pause_file.unlink()
                lab.until(lambda: self.is_said(said), f"status to speak of {said}")
        self.expect_done_once(stem)
        if said in SAID_ONCE:
            assert len(lab.events(SAID_ONCE[said])) == before + 1

    def is_said(self, what: str) -> bool:
        """Whether `status` says that something is wrong with it.

        Where it can show nothing else, it says just that; of scratch, where the daemon's notes stand, the job says it.
        """
        shown = self.lab.command("status", "--json")
        if shown.returncode:
            return any(reason in shown.stderr for reason in UNREADABLE)
        found = json.loads(shown.stdout)
        waits = [row["message"] for row in found["pending"]]
        return what in {each["what"] for each in found["troubles"]} or f"waits: {what} cannot be written" in str(waits)

    def is_well(self) -> bool:
        """Whether `status` says that nothing is wrong."""
        return json.loads(self.lab.command("status", "--json").stdout)["troubles"] == []

    @contextlib.contextmanager
    def _worker_stopped(self) -> Iterator[None]:
        """The worker stands still in the middle of what it does."""
        worker = self.lab.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def expect_done_once(self, stem: str) -> None:
        """The job ends as if nothing had been: one attempt, one place, one whole video."""
        lab = self.lab
        job = lab.ended(stem)
        assert {event["attempt"] for event in lab.events("job_claimed") if event["job"] == job} == {1}
        assert [state for state in State if job in lab.queue.names(state)] == [State.DONE]
        assert lab.queue.run(State.DONE, job).attempts <= 1
        assert [path.name for path in lab.outputs.glob(f"{job}*.mp4")] == [f"{job}.mp4"]
        assert lab.frames(job).shape[0] == lab.status(job)["video"]["frames"]
        lab.until(lambda: lab.status(job)["state"] == "done", "its status")
        lab.until(self.is_well, "status to say that all is well")
        assert not [path for path in lab.inbox.iterdir() if path.suffix in {".png", ".json"}]
