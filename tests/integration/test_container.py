"""What the Containerfile copies is there, and its health check tells how a real daemon is. Nothing is built here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from lab import Lab

from framepack_daemon.settings import Settings

CHECKOUT = Path(__file__).parents[2]
HANGS_SECONDS = 90  # for so long the health check has not heard of the daemon


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Containerfile and its words, on one line."""
    text = (CHECKOUT / "packaging/Containerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line)
    return [(word, " ".join(rest.split())) for word, rest in lines]


def all_of(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for each, rest in instructions if each == word]


def test_what_is_copied_into_the_container_is_there(instructions) -> None:
    copies = [words.split()[:-1] for words in all_of(instructions, "COPY")]
    assert [name for names in copies for name in names if not (CHECKOUT / name).exists()] == []
    variables = dict(word.split("=", 1) for words in all_of(instructions, "ENV") for word in words.split())
    ours = {name.removeprefix("FRAMEPACK_").lower() for name in variables if name.startswith("FRAMEPACK_")}
    assert ours <= Settings.model_fields.keys()


def test_the_health_check_tells_a_daemon_that_hangs_from_one_that_works(instructions, lab: Lab) -> None:
    check = all_of(instructions, "HEALTHCHECK")[0].partition(" CMD ")[2]
    numbers = lab.root / "numbers.prom"

    def is_healthy() -> bool:
        done = subprocess.run(["/bin/sh", "-c", check], env=lab.environment(metrics_file=numbers), check=False)
        return done.returncode == 0

    assert not is_healthy()
    lab.start(metrics_file=numbers)
    lab.until(is_healthy, "a sign of health")
    lab.process.send_signal(signal.SIGSTOP)
    before = numbers.stat().st_mtime - HANGS_SECONDS
    os.utime(numbers, (before, before))
    assert not is_healthy()
    lab.process.send_signal(signal.SIGCONT)
    lab.until(is_healthy, "it to recover")
    assert lab.stop() == 0
    assert not is_healthy()
