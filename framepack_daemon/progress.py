"""How far a running job is, from its worker's messages: the numbers of the status file's `progress`.

Times are measured, not promised: the time left is what the steps and sections so far took, for those that remain.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

WRITE_SECONDS = 1.0  # at most one status file a second for each job, but for the beginning and end of a section


@dataclass
class Running:
    """A job on a worker."""

    job: str
    section: int = 0  # the one being sampled, from 1
    sections: int = 0
    step: int = 0  # steps of it that are done
    steps: int = 0
    frames_ready: int = 0
    plan: str | None = None  # the memory plan it runs on
    _step_seconds: list[float] = field(default_factory=list)  # of every step in this run
    _section_step_seconds: float = 0.0  # of the steps of the current section
    _overheads: list[float] = field(default_factory=list)  # seconds of each section beyond its steps: decoding
    _sections_done: int = 0
    _news: bool = False
    _written: float = float("-inf")  # monotonic

    def follow(self, message: dict[str, Any]) -> None:
        """Take in a `started`, `step` or `section` message."""
        match message["event"]:
            case "started":
                self.sections, self.steps, self.plan = message["sections"], message["steps"], message["plan"]
                self.section = min(message["resumed_section"] or 1, self.sections)
                self.step = message["resumed_step"]
                self._sections_done = (message["resumed_section"] or 1) - 1
            case "step":
                self.section, self.step = message["section"], message["step"]
                self._step_seconds.append(message["seconds"])
                self._section_step_seconds += message["seconds"]
            case "section":
                self.frames_ready = message["frames_ready"]
                self._sections_done = message["section"]
                self._overheads.append(max(message["seconds"] - self._section_step_seconds, 0.0))
                self._section_step_seconds = 0.0
        if message["event"] != "step":
            self._written = float("-inf")
        self._news = True

    def is_due(self) -> bool:
        """Whether the status file is to be written now."""
        if not self._news or time.monotonic() - self._written < WRITE_SECONDS:
            return False
        self._news, self._written = False, time.monotonic()
        return True

    def status(self) -> dict[str, Any]:
        """The fields of the status file that change while the job runs."""
        total, done = self.sections * self.steps, self._steps_done()
        return {
            "memory": {"plan": self.plan},
            "message": f"section {self.section} of {self.sections}, step {self.step} of {self.steps}",
            "progress": {
                "section": self.section,
                "sections": self.sections,
                "step": self.step,
                "steps": self.steps,
                "fraction": round(done / total, 4) if total else 0.0,
                "eta_seconds": self._eta_seconds(total - done),
                "frames_ready": self.frames_ready,
            },
        }

    def _steps_done(self) -> int:
        return max(self.section - 1, 0) * self.steps + self.step

    def _eta_seconds(self, steps_left: int) -> float | None:
        """Time left, in seconds; None until a step was measured."""
        if not self._step_seconds:
            return None
        decoding = fmean(self._overheads) * (self.sections - self._sections_done) if self._overheads else 0.0
        return round(fmean(self._step_seconds) * steps_left + decoding, 1)
