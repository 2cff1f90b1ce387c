"""Words and numbers as `status`, `--wait` and `demo` show them. Pure."""

from __future__ import annotations

from typing import Any

MINUTE = 60  # seconds
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def duration(seconds: float) -> str:
    """Seconds as a person says them: 75 s, 12 min, 2 h 5 min, 3 days."""
    if round(seconds) < 2 * MINUTE:
        return f"{round(seconds)} s"
    minutes = round(seconds / MINUTE)
    if minutes < 2 * HOUR // MINUTE:
        return f"{minutes} min"
    hours = minutes // MINUTE
    return f"{hours} h {minutes % MINUTE} min" if hours < 2 * DAY // HOUR else f"{hours // (DAY // HOUR)} days"


def size(count: float) -> str:
    """Bytes as a person says them: 812 KiB, 1.4 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 a KiB
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} TiB"


def fraction(status: dict[str, Any]) -> float:
    """How far a job is, from 0 to 1."""
    return float((status.get("progress") or {}).get("fraction") or 0.0)


def progress(status: dict[str, Any]) -> str:
    """Where a running job is: section, step and the time that is left; its message before the first step."""
    now = status.get("progress") or {}
    if not now.get("sections"):
        return str(status.get("message") or "")
    words = f"section {now.get('section')}/{now['sections']}, step {now.get('step')}/{now.get('steps')}"
    left = now.get("eta_seconds")
    return words if left is None else f"{words}, {duration(left)} left"


def video(status: dict[str, Any]) -> str:
    """A finished video in a line: its size and length."""
    made = status.get("video") or {}
    if not made:
        return str(status.get("message") or "")
    return f"{made.get('width')}x{made.get('height')}, {made.get('seconds') or 0:.2f} s, {size(made.get('bytes') or 0)}"
