"""Videos of every kind, whole and broken, through the helper process; their last frame."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import FRAMES, shade, write_video

from framepack_daemon.errors import ClipError, ClipIncompleteError
from framepack_daemon.media import clip, containers, video

KINDS: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "faststart.mp4": {"muxer": {"movflags": "+faststart"}},
    "fragmented.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "one group.mp4": {"gop": 1000},
    "b-frames.mov": {"options": {"bf": "3", "x264-params": "open-gop=1"}},
    "plain.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "live.webm": {"codec": "libvpx", "muxer": {"live": "1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "one frame.mp4": {"frames": 1},
}


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of each kind."""
    return write_video(tmp_path_factory.mktemp("clips") / request.param, **KINDS[request.param])


def near(found: Any, wanted: tuple[int, int, int]) -> bool:
    return bool((np.abs(np.asarray(found, int) - wanted) <= 8).all())


def test_the_last_frame_is_found_and_shown_in_true_colour(whole: Path) -> None:
    assert clip.check(whole) == clip.ClipFacts(96, 64)
    picture = clip.last_frame(whole)
    assert (picture.mode, picture.size) == ("RGB", (96, 64))
    pixels = np.asarray(picture)
    assert near(pixels[-1, -1], shade(0 if "one frame" in whole.name else FRAMES - 1))
    assert near(pixels[3, 3], (255, 0, 0))


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("fill", [False, True])
def test_half_a_video_is_incomplete(whole: Path, tmp_path: Path, cut: float, *, fill: bool) -> None:
    data = whole.read_bytes()
    kept = int(len(data) * cut)
    if fill and len(data) - kept < containers.ZERO_TAIL_BYTES:
        kept = len(data) - containers.ZERO_TAIL_BYTES
    torn = tmp_path / "torn"
    torn.write_bytes(data[:kept] + bytes(len(data) - kept if fill else 0))
    if whole.name == "live.webm" and kept > containers.HEAD_BYTES and not fill:
        # A live recording does not say where it ends: what is there of it is a video.
        assert clip.check(torn) == clip.ClipFacts(96, 64)
        return
    with pytest.raises(ClipIncompleteError) as caught:
        clip.check(torn)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#EXTM3U\n/etc/passwd\n" * 10, "is not a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n" * 9, "is not a video"),
        (b"\xff\xd8\xff\xe0" * 99, "is not a video"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(ClipError, match=message):
        clip.check(path)


@pytest.mark.parametrize("content", [b"", bytes(5000), b"\0\0\0\x18ftypmp42", b"\x1a\x45\xdf\xa3" + b"\xff" * 600])
def test_what_may_become_a_video_is_incomplete(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(ClipIncompleteError):
        clip.check(path)


@pytest.mark.parametrize(("size", "message"), [((16, 8), "only 16x8"), ((330, 32), "a strip of 330x32")])
def test_a_video_of_an_unusable_size_is_refused(tmp_path: Path, size: tuple[int, int], message: str) -> None:
    path = write_video(tmp_path / "x.mp4", size=size, frames=2)
    with pytest.raises(ClipError, match=message):
        clip.check(path)


def test_a_video_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", size=(4112, 4112), frames=1, options={"preset": "ultrafast"})
    with pytest.raises(ClipError, match="too large with 4112x4112"):
        clip.check(path)


def test_the_largest_video_fits_into_the_helper_s_memory(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", size=(4096, 4096), frames=3, options={"preset": "ultrafast"})
    assert clip.check(path) == clip.ClipFacts(4096, 4096)


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", pixel_ratio=Fraction(4, 3), frames=3)
    assert clip.check(path) == clip.ClipFacts(128, 64)


def test_a_video_of_a_turned_camera_is_shown_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", frames=3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, section 8.3.2: version 0
    a, b, c, d = 0, 1 << 16, -(1 << 16), 0  # to be turned by a quarter, clockwise
    for place, value in zip((0, 4, 12, 16), (a, b, c, d), strict=True):
        data[matrix + place : matrix + place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    assert clip.check(path) == clip.ClipFacts(64, 96)
    pixels = np.asarray(clip.last_frame(path))
    assert near(pixels[3, -3], (255, 0, 0)), "the red corner is on the right"
    assert near(pixels[3, 3], shade(2))


def test_only_the_end_is_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", size=(320, 320))
    data = bytearray(path.read_bytes())
    media = data.index(b"mdat") + 4
    data[media + 900 : media + 1500] = b"\xaa" * 600
    path.write_bytes(data)
    with pytest.raises(Exception, match=r"damaged|cannot be read"):
        video.probe(path)
    assert clip.check(path)
    assert near(np.asarray(clip.last_frame(path))[-1, -1], shade(FRAMES - 1))


def test_our_own_videos_are_read_as_they_were_written(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    with video.SegmentWriter(tmp_path / "x.mp4", 64, 64, 1) as writer:
        writer.write(frames)
    found = np.asarray(clip.last_frame(tmp_path / "x.mp4")).astype(int)
    inside = np.s_[8::16, 8::16]  # colour is kept for every other pixel only
    assert np.abs(found[inside] - frames[-1][inside]).max() <= 6


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.mp4"
    path.symlink_to(write_video(tmp_path / "y.mp4", frames=1)) if kind == "link" else os.mkfifo(path)
    with pytest.raises(ClipError, match="not a plain file"):
        clip.check(path)


def test_one_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4")
    with pytest.raises(ClipError, match="takes longer than"):
        clip.check(path, timeout_seconds=0.001)


def test_who_only_asks_loads_no_decoder() -> None:
    script = "import sys, framepack_daemon.media.clip; print([m for m in ('numpy', 'torch', 'av') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
