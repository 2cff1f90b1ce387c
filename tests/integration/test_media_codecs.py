"""Every codec: segments of any length make one video in which each frame stands where it belongs."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from framepack_daemon.errors import VideoError
from framepack_daemon.media import encoders, mp4, video
from framepack_daemon.media.animation import LONG_SIDE, MAX_FRAMES, write_animation

WIDTH, HEIGHT = 96, 64
BITS = 8  # of the number that is painted into a frame
CODECS = encoders.available_codecs()
# The same 100 frames in so many segments; those of 1 to 4 frames are what the first and last section may leave.
SPLITS = {
    1: [100],
    2: [36, 64],
    3: [4, 36, 60],
    4: [1, 36, 36, 27],
    5: [33, 1, 2, 3, 61],
    6: [36, 4, 3, 2, 1, 54],
    20: [1, 2, 3, 4, 1, 1, 2, 2, 3, 3, 4, 4, 31, 1, 30, 2, 1, 2, 2, 1],
}


def numbered(first: int, count: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) over something that moves, each with its number in black and white fields at the top."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for number in range(first, first + count):
        frame = np.stack([x * 2 + 5 * number, y * 3, x + y + 3 * number], axis=-1) % 256
        for bit in range(BITS):
            frame[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
        frames.append(frame)
    return np.stack(frames).astype(np.uint8)


def number_in(frame: av.VideoFrame) -> int:
    luma = frame.to_ndarray()[: frame.height, : frame.width]
    fields = luma[frame.height // 4].reshape(BITS, -1).mean(axis=1)
    return sum(1 << bit for bit, shade in enumerate(fields) if shade > 128)


def write(path: Path, frames: NDArray[np.uint8], codec: str, crf: int = 16) -> Path:
    with video.SegmentWriter(path, frames.shape[2], frames.shape[1], crf, codec) as writer:
        writer.write(frames)
    return path


def segmented(folder: Path, lengths: list[int], codec: str) -> list[Path]:
    starts = np.cumsum([0, *lengths]).tolist()
    return [
        write(folder / f"{start}.mp4", numbered(start, count), codec)
        for start, count in zip(starts, lengths, strict=False)
    ]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("codec", CODECS)
def test_any_split_gives_one_video_with_every_frame_in_its_place(tmp_path: Path, codec: str, split: int) -> None:
    assert (len(SPLITS[split]), sum(SPLITS[split])) == (split, 100)
    target = tmp_path / "joined.mp4"
    video.join(segmented(tmp_path, SPLITS[split], codec), target, {"comment": "{}"})
    facts = video.verify(target, frames=100, width=WIDTH, height=HEIGHT, codec=codec)
    assert (facts.codec, facts.pixel_format) == (encoders.ENCODERS[codec].codec, "yuv420p")
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = list(range(0, 512 * 100, 512))
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets] == times
        assert {packet.duration for packet in packets} == {512}
        assert (stream.start_time, stream.duration, stream.frames, stream.average_rate) == (0, 51200, 100, 30)
        container.seek(0, stream=stream)
        assert [number_in(frame) for frame in container.decode(stream)] == list(range(100))
        for place in (0, 30, 60, 90, 99, 31, 59, 7):  # every second, and others
            container.seek(place * 512, stream=stream)
            shown = next(frame for frame in container.decode(stream) if frame.pts == place * 512)
            assert number_in(shown) == place
    content = target.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it plays before it is loaded
    if codec == "hevc":
        assert b"hvc1" in content
        assert b"hev1" not in content


@pytest.mark.parametrize("codec", CODECS)
def test_every_second_begins_with_a_key_frame(tmp_path: Path, codec: str) -> None:
    with av.open(str(write(tmp_path / "a.mp4", numbered(0, 70), codec))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == [0, 30, 60]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [(64, 64), (80, 112), (336, 208)])
def test_any_size_of_a_request_can_be_written(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    encoders.require(codec, *size)
    write(tmp_path / "a.mp4", numbered(5, 3, *size), codec)
    video.verify(tmp_path / "a.mp4", frames=3, width=size[0], height=size[1], codec=codec)


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (64, 64)])
def test_the_same_frames_give_the_same_bytes_on_a_busy_machine(
    tmp_path: Path, codec: str, size: tuple[int, int]
) -> None:
    still = np.random.default_rng(1).integers(0, 60, (40, size[1] // 4, size[0] // 4, 3))
    frames = numbered(0, 40, *size) // 2 + still.repeat(4, 1).repeat(4, 2).astype(np.uint8)
    written = {hashlib.sha256(write(tmp_path / "calm.mp4", frames, codec).read_bytes()).hexdigest()}
    # The encodes are each other's load.
    with ThreadPoolExecutor(4) as threads:
        for path in threads.map(lambda take: write(tmp_path / f"{take}.mp4", frames, codec), range(6)):
            written.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(written) == 1


@pytest.mark.parametrize("codec", CODECS)
def test_no_encoder_leaves_a_thread_with_real_time_priority(tmp_path: Path, codec: str) -> None:
    # Root may have it, and SVT-AV1 takes it: then nothing else runs on the machine.
    with video.SegmentWriter(tmp_path / "a.mp4", WIDTH, HEIGHT, codec=codec) as writer:
        writer.write(numbered(0, 40))
        threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize("codec", CODECS)
def test_crf_decides_size_and_quality_from_one_end_to_the_other(tmp_path: Path, codec: str) -> None:
    frames = numbered(0, 12)
    given = np.stack([mp4.from_rgb(frame, "yuv420p").to_ndarray() for frame in frames]).astype(float)
    sizes, errors = [], []
    for crf in (1, 16, 30, 51):
        path = write(tmp_path / f"{crf}.mp4", frames, codec, crf)
        sizes.append(path.stat().st_size)
        with av.open(str(path)) as container:
            decoded = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])
        errors.append(float(np.square(decoded - given).mean()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_h264_is_what_every_browser_plays(tmp_path: Path) -> None:
    with av.open(str(write(tmp_path / "a.mp4", numbered(0, 3), "h264", crf=1))) as container:
        context = container.streams.video[0].codec_context
        assert (context.profile, context.pix_fmt, context.codec_tag) == ("High", "yuv420p", "avc1")


def test_segments_of_two_codecs_are_not_joined(tmp_path: Path) -> None:
    one, other = write(tmp_path / "1.mp4", numbered(0, 3), "h264"), write(tmp_path / "2.mp4", numbered(3, 3), "hevc")
    with pytest.raises(VideoError, match=r"2\.mp4 was encoded otherwise"):
        video.join([one, other], tmp_path / "joined.mp4", {})


def test_verify_names_the_codec_that_it_should_be(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", numbered(0, 3), "hevc")
    with pytest.raises(VideoError, match=r"3 frames, 30 fps, hevc yuv420p; .* av1 yuv420p"):
        video.verify(path, frames=3, width=WIDTH, height=HEIGHT, codec="av1")


@pytest.mark.skipif("h264_nvenc" in CODECS, reason="there is an NVIDIA driver here")
def test_a_codec_that_needs_a_card_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(encoders.EncoderError, match="codec: h264_nvenc") as refused:
        write(tmp_path / "a.mp4", numbered(0, 3), "h264_nvenc")
    assert "NVIDIA" in refused.value.hint
    assert "h264" in refused.value.hint
    assert (refused.value.code, refused.value.retryable) == ("no_encoder", False)
    assert list(tmp_path.iterdir()) == []


def test_a_codec_that_is_not_built_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = encoders.Encoder("libnowhere", "av1", encoders.ENCODERS["av1"].options)
    monkeypatch.setitem(encoders.ENCODERS, "av1", absent)
    assert encoders.available_codecs() == tuple(codec for codec in CODECS if codec != "av1")
    with pytest.raises(encoders.EncoderError, match="codec: this build of PyAV has no encoder for av1") as refused:
        write(tmp_path / "a.mp4", numbered(0, 3), "av1")
    assert "h264, hevc" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["webp", "gif"])
@pytest.mark.parametrize(("frames", "size"), [(1, (96, 64)), (2, (96, 64)), (100, (96, 64)), (40, (640, 400))])
def test_an_animation_shows_the_video_small_at_its_own_pace(
    tmp_path: Path, suffix: str, frames: int, size: tuple[int, int]
) -> None:
    source = write(tmp_path / "a.mp4", numbered(0, frames, *size), "h264")
    target = tmp_path / f"a.{suffix}"
    write_animation(source, target)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", target.name}
    with Image.open(target) as animation:
        assert animation.format == suffix.upper()
        assert animation.size == ((96, 64) if size[0] <= LONG_SIDE else (320, 200))
        assert getattr(animation, "n_frames", 1) == max(round(frames / 3), 1)
        pictures, milliseconds = [], []
        for picture in ImageSequence.Iterator(animation):
            pictures.append(np.asarray(picture.convert("L")))
            milliseconds.append(picture.info.get("duration", 0))
    numbers = []
    for pixels in pictures:
        fields = pixels[pixels.shape[0] // 4].reshape(BITS, -1).mean(axis=1)
        numbers.append(sum(1 << bit for bit, shade in enumerate(fields) if shade > 128))
    assert numbers == [place * frames // len(pictures) for place in range(len(pictures))]
    if len(pictures) > 1:
        assert animation.info["loop"] == 0
        assert sum(milliseconds) == pytest.approx(frames * 1000 / 30, rel=0.11)  # GIF counts in hundredths of a second


def test_an_animation_of_a_long_video_has_no_more_pictures(tmp_path: Path) -> None:
    part = write(tmp_path / "part.mp4", numbered(0, 200), "h264")
    video.join([part] * 4, tmp_path / "long.mp4", {})
    write_animation(tmp_path / "long.mp4", tmp_path / "long.webp")
    with Image.open(tmp_path / "long.webp") as animation:
        assert animation.n_frames == MAX_FRAMES
        animation.seek(MAX_FRAMES - 1)
        animation.load()
        assert animation.info["duration"] == 267  # 800 frames in 100 pictures


def test_an_animation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", numbered(0, 40), "h264")
    content = source.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError):
        write_animation(cut, tmp_path / "cut.webp")
    (tmp_path / ".a.gif.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_animation(source, tmp_path / "a.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "cut.mp4"]
