"""What is done to the service while it renders: it is told to reload, stopped, killed, and made to hang.

One job meets it all. It is far longer than that takes on any machine, and is cancelled in the end; a second one is
shown to come to a good end after a fault.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service_box import (
    OUTPUTS,
    QUEUE,
    QUICK,
    UNIT,
    WORK,
    as_member,
    configure,
    do,
    drop,
    events,
    goes_on,
    job_in,
    owner,
    progress,
    record,
    show,
    status_with,
    timed,
    until,
    worker,
)

# Limits that a loaded machine keeps when all is well, and that a test has the time to wait for when not.
WATCHDOG_SECONDS = 20
HEARTBEAT_SECONDS = 15
# 100 sections, of which what is waited for takes a dozen, and a daemon that hangs as many as its watchdog lets it.
LONG = QUICK | {"frames": 3600, "num_inference_steps": 8}
SHORT = QUICK | {"frames": 216, "num_inference_steps": 5}  # 6 sections


def faults(found: dict[str, Any]) -> None:
    drop("long", **LONG)
    job = job_in("processing", "long")
    goes_on(job)
    found["reload"] = _reload(job)
    found["went_on"] = {}
    for name, number, victim in (
        ("SIGSTOP of the worker", signal.SIGSTOP, worker),  # first: the reload has set how long that lasts
        ("kill -9 of the worker", signal.SIGKILL, worker),
        ("kill -9 of the daemon", signal.SIGKILL, _daemon),
        ("SIGSTOP of the daemon", signal.SIGSTOP, _daemon),
    ):
        found["went_on"][name] = _harm(job, name, number, victim, found)
    found["went_on"]["systemctl stop and start"] = _stop_and_start(job, found)
    found["restarts"] = show("NRestarts")
    as_member(f"mv {QUEUE}/processing/{job} {QUEUE}/failed/")
    until(lambda: record(job)["state"] == "failed", "the cancel")
    until(lambda: not (WORK / job).exists(), "the end of its scratch")
    found["long"] = record(job)["outcome"]

    drop("short", **SHORT)
    job = job_in("processing", "short")
    found["went_on"]["kill -9 again"] = _harm(job, "kill -9 again", signal.SIGKILL, worker, found)
    job_in("done", "short")
    found["short"] = {"outcome": record(job)["outcome"], "video": owner(OUTPUTS / f"{job}.mp4")}


def _daemon() -> int:
    return int(show("MainPID"))


def _reload(job: str) -> dict[str, Any]:
    """Have fewer events logged and a heartbeat waited for less long, then the usual events again."""
    before = (show("MainPID"), worker())
    configure(log_level="warning", heartbeat_timeout_seconds=HEARTBEAT_SECONDS, threads=1)
    do("systemctl", "reload", UNIT)
    until(lambda: status_with("restart needed for threads"), "the new settings")
    drop("unsaid")
    unsaid = job_in("pending", "unsaid")
    as_member(f"mv {QUEUE}/pending/{unsaid} {QUEUE}/failed/")
    until(lambda: record(unsaid)["state"] == "failed", "the cancel")
    configure(log_level="info", threads=2)
    do("systemctl", "reload", UNIT)
    until(lambda: events("settings_reloaded"), "the usual events")
    goes_on(job)
    return {
        "same": (show("MainPID"), worker()) == before,
        "state": show("ActiveState"),
        "said": events("job_submitted", job=unsaid),
    }


def _stop_and_start(job: str, found: dict[str, Any]) -> bool:
    """Whether the job went on at the very step."""
    since = goes_on(job)
    with timed(found, "systemctl stop"):
        do("systemctl", "stop", UNIT)
    found["stop"] = {
        "result": show("Result"),
        "code": show("ExecMainStatus"),
        "pending": (QUEUE / "pending" / job).is_dir(),
        "checkpoint": (WORK / job / "checkpoint.safetensors").is_file(),
        "attempts": json.loads((QUEUE / "pending" / job / "run.json").read_text())["attempts"],
    }
    claims = events("job_claimed", job=job)
    with timed(found, "after a stop, start to the next step"):
        do("systemctl", "start", UNIT)
        first = _first_step(job, claims)
    return first >= since


def _harm(job: str, name: str, number: int, victim: Callable[[], int], found: dict[str, Any]) -> bool:
    """Whether the job, when somebody sent this signal to the victim, went on in the section in which that was."""
    since, pid, claims = goes_on(job), victim(), events("job_claimed", job=job)
    with timed(found, name):
        os.kill(pid, number)
        until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of {pid}")
        first = _first_step(job, claims)
    return first >= (since[0], 0)


def _first_step(job: str, claims: int) -> tuple[int, int]:
    """How far the job is when it is first seen to be rendered after one more claim than these."""
    until(lambda: events("job_claimed", job=job) > claims, f"the next claim of {job}")
    return until(lambda: progress(job) > (0, 0) and progress(job), f"{job} in its new worker")
