"""The log under a real systemd: the journal finds the events of one job by its id, as fields."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from systemd_lab import boot

if TYPE_CHECKING:
    from lab import Lab

TIMEOUT_SECONDS = 120
# Two jobs, so that one can be told from the other; the ids come out of the queue.
SCRIPT = """#!/bin/bash
set -eu
systemd-run --quiet --unit=framepack-daemon {settings} {python} -m framepack_daemon run
until [ "$(ls {queue}/done 2>/dev/null | wc -l)" = 2 ]; do sleep 0.1; done
systemctl stop framepack-daemon
journalctl --sync
journalctl -q -u framepack-daemon JOB="$(ls {queue}/done | grep beach)" -o json
"""


def test_the_journal_finds_the_events_of_a_job(lab: Lab) -> None:
    lab.drop("beach")
    lab.drop("dunes", prompt="sand")
    settings = {**lab.settings, "log_format": "auto"}
    words = [f"--setenv=FRAMEPACK_{name.upper()}={value}" for name, value in settings.items()]
    script = SCRIPT.format(settings=" ".join(words), python=sys.executable, queue=lab.queue.root)
    finished = boot(script, timeout=TIMEOUT_SECONDS)
    assert finished.returncode == 0, finished.output
    entries = [json.loads(line) for line in finished.output.splitlines()]
    assert [entry["EVENT"] for entry in entries] == ["job_submitted", "job_claimed", "job_done"]
    for entry in entries:
        assert entry["JOB"].startswith("beach-")
        assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("6", "framepack-daemon")
        assert entry["_SYSTEMD_UNIT"] == "framepack-daemon.service"
    assert entries[1]["DEVICE"] == "cpu"
    assert entries[2]["VIDEO"] == f"{entries[2]['JOB']}.mp4"
    assert entries[2]["MESSAGE"].startswith(f"job_done job={entries[2]['JOB']} video=")
