"""A job that is too large for the machine: it is tried on every memory plan, ends with advice, and the others go on."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framepack_daemon.job import State

if TYPE_CHECKING:
    from conftest import Lab

SPARE_MIB = 250  # beyond what a small job has in use; a picture of 2048x2048 alone takes more


def in_use(pid: int) -> int:
    """Bytes of address space that a process has had at most."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmPeak"))
    return int(line.split()[1]) * 1024


def confine(lab: Lab) -> None:
    """Let neither the worker, nor any that the daemon starts from now on, take much more than a small job needs."""
    assert lab.process is not None
    limit = in_use(lab.worker_pid()) + SPARE_MIB * 2**20
    for pid in (lab.worker_pid(), lab.process.pid):
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def plans(lab: Lab, event: str, key: str) -> list[Any]:
    return [found[key] for found in lab.events(event)]


def test_a_job_that_runs_out_of_memory_steps_down_plan_by_plan_and_others_go_on(lab: Lab) -> None:
    lab.start(threads=1, max_attempts=1)
    lab.drop("small")
    small = lab.ended("small")
    assert lab.status(small)["memory"]["plan"] == "resident"

    confine(lab)
    lab.drop("huge", width=2048, height=2048)
    lab.drop("next", seed=8)
    huge = lab.ended("huge", State.FAILED)
    after = lab.ended("next")

    assert plans(lab, "job_stepped_down", "plan") == ["resident", "balanced", "low"]
    assert plans(lab, "job_stepped_down", "lower_plan") == ["balanced", "low", "minimal"]
    status = lab.status(huge)
    assert status["error"]["code"] == "out_of_memory"
    assert "on the memory plan minimal" in status["message"]
    assert "smaller resolution" in status["error"]["hint"]
    assert status["attempts"] == 1
    # The bound was that job's own.
    assert lab.status(after)["memory"]["plan"] == "resident"
    assert plans(lab, "model_loaded", "plan") == ["resident", "balanced", "low", "minimal", "resident"]
