"""What is published plays in a browser: a real Chromium plays it, seeks in it, and shows the right frames."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import browser
import numpy as np
import pytest
from crash import THOROUGH
from lab import Lab

from framepack_daemon.job import State
from framepack_daemon.media import video

SECTIONS = 100 if THOROUGH else 20  # of 36 frames: two minutes, or 24 seconds
FRAMES = 36 * SECTIONS
HEIGHT = 112  # the smallest at which torch decodes the tiny model's frames in its fast way: half the time of 64


def luma(pixels: np.ndarray) -> np.ndarray:
    """Brightness, (..., H, W), 0-255, of RGB: a browser makes colours of half-size planes in its own way."""
    return (pixels @ np.array([0.2126, 0.7152, 0.0722])).astype(np.float32)


def frames_of(path: Path) -> np.ndarray:
    """Brightness of every frame, (T, H, W)."""
    with av.open(str(path)) as container:
        return np.stack([luma(video.to_rgb(frame)) for frame in container.decode(video=0)])


def require_played(path: Path, folder: Path) -> int:
    """Have the browser play and seek in the video, and compare what it shows; the number of frames."""
    frames = frames_of(path)
    count = len(frames)
    # In the middle of frames: the first, the last, beside both ends of a second, and across the whole length.
    places = sorted({0, 1, 29, 30, 31, *(count * part // 7 for part in range(1, 7)), count - 2, count - 1})
    places = [*places[::-1], *places[1::3]]  # backwards, then forwards; never twice the same in a row
    report = browser.watch(path, [(place + 0.5) / 30 for place in places], folder / f"{path.stem}.profile")
    assert (report["width"], report["height"]) == frames.shape[:0:-1]
    assert report["duration"] == pytest.approx(count / 30, abs=1e-4)
    assert report["ready"] >= 3  # HAVE_FUTURE_DATA
    assert report["played"] == sorted(report["played"])
    assert report["played"][-1] - report["played"][0] > 0.3
    assert report["ended"] == pytest.approx(count / 30, abs=1e-4)
    for place, shown in zip(places, report["shown"], strict=True):
        assert shown["time"] == pytest.approx(place / 30, abs=1e-3)
        away = np.abs(frames - luma(shown["pixels"])).mean(axis=(1, 2))
        assert away[place] < 4, f"frame {place} looks different"
        assert away[place] <= away.min() + 0.5, f"frame {int(away.argmin())} is shown for {place}"
    return count


@pytest.mark.timeout(1500)
def test_a_long_video_and_its_preview_at_half_time_play(lab: Lab, tmp_path: Path) -> None:
    browser.find()
    lab.start(threads=1)  # the browser has the other one
    lab.drop(frames=FRAMES, height=HEIGHT)
    job = lab.until(lambda: lab.jobs(State.PROCESSING), "the job to start")[0]
    for section in range(10, SECTIONS // 2 + 1, 10):
        lab.reaches(job, section)
    preview = lab.until((lab.outputs / f"{job}.preview.mp4").exists, "the preview") and tmp_path / "preview.mp4"
    shutil.copyfile(lab.outputs / f"{job}.preview.mp4", preview)
    assert FRAMES // 3 < require_played(preview, tmp_path) < FRAMES
    for section in range(SECTIONS // 2 + 10, SECTIONS + 1, 10):
        lab.until(
            lambda section=section: (
                lab.jobs(State.DONE) or (lab.status(job)["progress"] or {}).get("section", 0) >= section
            ),
            f"section {section}",
        )
    lab.ended("beach")
    assert require_played(lab.outputs / f"{job}.mp4", tmp_path) == FRAMES
    assert not (lab.outputs / f"{job}.preview.mp4").exists()


@pytest.mark.parametrize("codec", ["h264", "av1"])  # HEVC it decodes in hardware alone
def test_joined_segments_play(tmp_path: Path, codec: str) -> None:
    browser.find()
    rng = np.random.default_rng(1)
    tile = rng.integers(40, 216, (16, 16, 3)).repeat(8, axis=0).repeat(8, axis=1)
    segments = []
    for number, count in enumerate([4, 36, 1, 33, 36]):
        segments.append(tmp_path / f"{number}.mp4")
        with video.SegmentWriter(segments[-1], 96, 64, codec=codec) as writer:
            for frame in range(count):
                place = sum([4, 36, 1, 33, 36][:number]) + frame
                writer.write(np.roll(tile, (place, 3 * place), axis=(0, 1))[None, :64, :96].astype(np.uint8))
    video.join(segments, tmp_path / "joined.mp4", {})
    assert require_played(tmp_path / "joined.mp4", tmp_path) == 110
