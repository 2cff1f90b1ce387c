"""What is told while a video is rendered: one small record for each thing that happened.

The worker passes them on to the daemon. Sections and steps are counted from 1. Knows nothing of how they come about.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from framepack_daemon.media.video import VideoFacts


@dataclass(frozen=True)
class Started:
    """The texts and pictures are encoded; sampling begins."""

    sections: int
    steps: int  # of each section
    width: int  # pixels
    height: int  # pixels
    resumed_section: int | None  # counted from 1; None when it starts afresh
    resumed_step: int  # steps of that section that are done already
    note: str  # what a person should know about the resumption, or nothing


@dataclass(frozen=True)
class Step:
    """A step is done."""

    section: int  # counted from 1
    sections: int
    step: int  # counted from 1
    steps: int
    seconds: float  # that it took
    preview: bool  # the preview in scratch is new
    picture: bool  # the picture of the section in scratch is new


@dataclass(frozen=True)
class Section:
    """A section is sampled and its checkpoint on disk."""

    section: int  # counted from 1
    sections: int
    frames_ready: int  # frames of the video that are final
    seconds: float  # since the section began in this process
    preview: bool  # the preview in scratch is new


@dataclass(frozen=True)
class Finished:
    """The video stands in scratch, verified."""

    video: Path
    poster: Path
    animation: Path | None  # the small animated picture, where one is wanted
    latents: Path | None  # what another job needs to continue this one, where that is kept
    facts: VideoFacts
    timings: dict[str, float]  # seconds by kind of work, of this process
    peak_gpu_bytes: int
    peak_host_bytes: int
    resumed_from: int | None  # section, counted from 1


Event = Started | Step | Section | Finished
