"""How far a running job is, from its worker's messages: the numbers of the status file's `progress`.

Times are measured, not promised: the time left is the mean of the steps so far times the steps that remain.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

WRITE_SECONDS = 1.0  # at most one status file a second for each job


@dataclass
class Running:
    """A job on a worker."""

    job: str
    section: int = 0  # the one being sampled, from 1
    sections: int = 0
    step: int = 0  # steps of it that are done
    steps: int = 0
    frames_ready: int = 0
    width: int = 0
    height: int = 0
    _measured_steps: int = 0
    _measured_seconds: float = 0.0
    _written: float = float("-inf")  # monotonic

    def follow(self, message: dict[str, Any]) -> bool:
        """Take in a `started`, `step` or `section` message; whether it is time to write the status file."""
        match message["event"]:
            case "started":
                self.sections, self.steps = message["sections"], message["steps"]
                self.width, self.height = message["width"], message["height"]
                self.section, self.step = message["resumed_section"] or 1, message["resumed_step"]
            case "step":
                self.section, self.step = message["section"], message["step"]
                self._measured_steps += 1
                self._measured_seconds += message["seconds"]
            case "section":
                self.frames_ready = message["frames_ready"]
        due = time.monotonic() - self._written >= WRITE_SECONDS
        if due or message["event"] != "step":
            self._written = time.monotonic()
            return True
        return False

    @property
    def _done(self) -> int:
        return max(self.section - 1, 0) * self.steps + self.step

    def status(self) -> dict[str, Any]:
        """The fields of the status file that change while the job runs."""
        total = self.sections * self.steps
        mean = self._measured_seconds / self._measured_steps if self._measured_steps else None
        return {
            "message": f"section {self.section} of {self.sections}, step {self.step} of {self.steps}",
            "progress": {
                "section": self.section,
                "sections": self.sections,
                "step": self.step,
                "steps": self.steps,
                "fraction": round(self._done / total, 4) if total else 0.0,
                "eta_seconds": None if mean is None else round(mean * (total - self._done), 1),
                "frames_ready": self.frames_ready,
            },
        }
