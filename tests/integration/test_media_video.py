"""Segments, joins and their verification: real H.264 in real files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from numpy.typing import NDArray
from PIL import Image

from framepack_daemon.errors import VideoError
from framepack_daemon.media import video

WIDTH, HEIGHT = 96, 64
LENGTHS = [4, 36, 1, 33, 37, 64]


def moving(count: int, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) of which no two are alike."""
    y, x = np.mgrid[:height, :width]
    frames = [np.stack([x * 2 + 5 * t + 40 * seed, y * 3 + 20 * seed, x + y + 3 * t], axis=-1) for t in range(count)]
    return (np.stack(frames) % 256).astype(np.uint8)


def write(path: Path, frames: NDArray[np.uint8], crf: int = 16) -> Path:
    with video.SegmentWriter(path, frames.shape[2], frames.shape[1], crf) as writer:
        for part in np.array_split(frames, 2):
            writer.write(part)
    return path


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("segments")
    return [write(folder / f"{seed}.mp4", moving(count, seed)) for seed, count in enumerate(LENGTHS)]


def decoded(path: Path) -> list[NDArray[np.uint8]]:
    """The frames as they are coded, (H * 3 / 2, W)."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


@pytest.mark.parametrize("count", range(1, len(LENGTHS) + 1))
def test_a_join_has_exactly_the_frames_of_its_segments_in_step(
    tmp_path: Path, segments: list[Path], count: int
) -> None:
    target = tmp_path / "joined.mp4"
    video.join(segments[:count], target, {})
    total = sum(LENGTHS[:count])
    facts = video.verify(target, frames=total, width=WIDTH, height=HEIGHT)
    content = target.read_bytes()
    assert facts == video.VideoFacts(
        WIDTH, HEIGHT, total, 30, total / 30, len(content), hashlib.sha256(content).hexdigest(), "h264", "yuv420p"
    )
    single = [frame for segment in segments[:count] for frame in decoded(segment)]
    joined = decoded(target)
    assert len(joined) == len(single)
    assert all(np.array_equal(one, other) for one, other in zip(joined, single, strict=True))
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert stream.time_base == Fraction(1, 15360)
        assert (
            [packet.pts for packet in packets] == [packet.dts for packet in packets] == list(range(0, 512 * total, 512))
        )
        assert {packet.duration for packet in packets} == {512}
        assert (stream.start_time, stream.duration, stream.frames) == (0, 512 * total, total)
        assert stream.average_rate == 30
    assert content.index(b"moov") < content.index(b"mdat")
    # Movie header, version 0: times, then the time scale (ISO/IEC 14496-12, section 8.2.2).
    header = content.index(b"mvhd") + 4
    assert int.from_bytes(content[header + 12 : header + 16], "big") == 15360


def test_seeking_to_any_frame_shows_that_frame(tmp_path: Path, segments: list[Path]) -> None:
    target = tmp_path / "joined.mp4"
    video.join(segments, target, {})
    expected = decoded(target)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        for number in range(len(expected)):
            container.seek(number * 512, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts == number * 512)
            assert np.array_equal(frame.to_ndarray(), expected[number]), number


def test_every_segment_begins_with_a_key_frame_and_has_no_reordered_frames(segments: list[Path]) -> None:
    for path in segments:
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
        assert frames[0].key_frame
        assert {frame.pict_type for frame in frames} <= {PictureType.I, PictureType.P}


def test_the_same_frames_give_the_same_bytes(tmp_path: Path, segments: list[Path]) -> None:
    again = [write(tmp_path / f"{seed}.mp4", moving(count, seed)) for seed, count in enumerate(LENGTHS)]
    for one, other in zip(again, segments, strict=True):
        assert one.read_bytes() == other.read_bytes()
    for name in ("a.mp4", "b.mp4"):
        video.join(segments, tmp_path / name, {"comment": "the same"})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_how_frames_are_handed_over_makes_no_difference(tmp_path: Path) -> None:
    frames = moving(9)
    with video.SegmentWriter(tmp_path / "one.mp4", WIDTH, HEIGHT) as writer:
        for frame in frames:
            writer.write(frame[None])
    with video.SegmentWriter(tmp_path / "all.mp4", WIDTH, HEIGHT) as writer:
        writer.write(frames[:, :, ::-1][:, :, ::-1])  # a view with strides of its own
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "all.mp4").read_bytes()


@pytest.mark.parametrize(
    "colour",
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (10, 200, 90)],
)
def test_colours_are_bt709_in_limited_range_and_say_so(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    path = write(tmp_path / "colour.mp4", np.full((2, HEIGHT, WIDTH, 3), colour, np.uint8), crf=1)
    red, green, blue = (value / 255 for value in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # ITU-R BT.709, item 3.2
    expected = (16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
    for plane, value in zip(frame.planes, expected, strict=True):
        assert abs(bytes(plane)[plane.line_size * 4 + 4] - value) <= 1
    assert np.abs(video.to_rgb(frame)[20, 20].astype(int) - colour).max() <= 3


def test_metadata_comes_back_whole(tmp_path: Path, segments: list[Path]) -> None:
    request = {"prompt": 'Wellen "rollen" 波が寄せる 🌊\n' * 600, "seed": 2**62, "negative_prompt": ""}
    assert len(request["prompt"]) > 10_000
    target = tmp_path / "joined.mp4"
    video.join(segments[:1], target, {"title": "wärme-1f3a", "comment": json.dumps(request, ensure_ascii=False)})
    with av.open(str(target)) as container:
        assert container.metadata["title"] == "wärme-1f3a"
        assert json.loads(container.metadata["comment"]) == request


def test_metadata_that_an_mp4_would_drop_is_an_error(tmp_path: Path, segments: list[Path]) -> None:
    with pytest.raises(VideoError, match="seed"):
        video.join(segments[:1], tmp_path / "joined.mp4", {"seed": "1"})


def test_names_of_any_kind_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"http:-%03d \xff\n.mp4")
    write(Path(name), moving(2))
    video.join([Path(name)], Path("joined:" + name), {"title": name})
    assert video.probe(Path("joined:" + name)).frames == 2
    assert sorted(os.listdir(tmp_path)) == sorted([name, "joined:" + name])  # noqa: PTH208 - names as they are


def test_a_segment_that_fails_leaves_nothing_and_the_old_one_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "segment.mp4", moving(2))
    before = path.read_bytes()
    with contextlib.suppress(KeyboardInterrupt), video.SegmentWriter(path, WIDTH, HEIGHT) as writer:
        writer.write(moving(40))
        assert path.read_bytes() == before
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_segment_without_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no frames"), video.SegmentWriter(tmp_path / "a.mp4", WIDTH, HEIGHT):
        pass
    assert list(tmp_path.iterdir()) == []


def test_no_segments_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no segments"):
        video.join([], tmp_path / "a.mp4", {})


@pytest.mark.parametrize("size", [(95, 64), (96, 63), (0, 64)])
def test_odd_sizes_are_impossible(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(VideoError, match=f"{size[0]}x{size[1]}"):
        video.SegmentWriter(tmp_path / "a.mp4", *size)


@pytest.mark.parametrize("frames", [moving(1, width=80), moving(1).astype(np.float32), moving(1)[0]])
def test_frames_of_another_kind_are_refused(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    with (
        pytest.raises(VideoError, match="do not fit"),
        video.SegmentWriter(tmp_path / "a.mp4", WIDTH, HEIGHT) as writer,
    ):
        writer.write(frames)
    assert list(tmp_path.iterdir()) == []


def test_segments_that_do_not_belong_together_are_not_joined(tmp_path: Path, segments: list[Path]) -> None:
    small = write(tmp_path / "small.mp4", moving(3, width=80))
    with pytest.raises(VideoError, match=r"small\.mp4 was encoded otherwise"):
        video.join([segments[0], small], tmp_path / "joined.mp4", {})
    assert list(tmp_path.iterdir()) == [small]


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 90, 99])
def test_a_cut_video_is_never_verified(tmp_path: Path, segments: list[Path], percent: int) -> None:
    video.join(segments, tmp_path / "whole.mp4", {})
    content = (tmp_path / "whole.mp4").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(VideoError):
        video.probe(cut)


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 90])  # the last percent is not needed for its frames
def test_a_cut_segment_is_never_joined(tmp_path: Path, segments: list[Path], percent: int) -> None:
    content = segments[1].read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(VideoError):
        video.join([segments[0], cut], tmp_path / "joined.mp4", {})
    assert list(tmp_path.iterdir()) == [cut]


def test_a_video_with_a_hole_is_never_verified(tmp_path: Path, segments: list[Path]) -> None:
    video.join(segments, tmp_path / "whole.mp4", {})
    content = (tmp_path / "whole.mp4").read_bytes()
    start = content.index(b"mdat") + 200
    hole = tmp_path / "hole.mp4"
    for place in range(start, len(content) - 600, (len(content) - start) // 12):
        hole.write_bytes(content[:place] + bytes(500) + content[place + 500 :])
        with pytest.raises(VideoError):
            video.probe(hole)


@pytest.mark.parametrize(
    ("wrong", "named"), [({"frames": 3}, "3 frames"), ({"width": 98}, "98x64"), ({"height": 66}, "96x66")]
)
def test_verify_names_what_differs(segments: list[Path], wrong: dict[str, int], named: str) -> None:
    with pytest.raises(VideoError, match=named):
        video.verify(segments[0], **{"frames": 4, "width": WIDTH, "height": HEIGHT} | wrong)


def test_a_foreign_video_is_not_verified(tmp_path: Path) -> None:
    path = tmp_path / "foreign.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for pixels in moving(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError):
        video.verify(path, frames=3, width=WIDTH, height=HEIGHT)


def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path: Path, segments: list[Path]) -> None:
    for attempt in (
        lambda: write(tmp_path / "a.mp4", moving(3)),
        lambda: write(tmp_path / "a.mp4", moving(90)),
        lambda: video.join(segments, tmp_path / "a.mp4", {}),
    ):
        (tmp_path / ".a.mp4.part").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            attempt()
        assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        video.probe(tmp_path / "gone.mp4")
    with pytest.raises(FileNotFoundError):
        video.join([tmp_path / "gone.mp4"], tmp_path / "joined.mp4", {})


def test_the_poster_is_the_first_frame(tmp_path: Path) -> None:
    frames = np.full((3, HEIGHT, WIDTH, 3), (10, 200, 90), np.uint8)
    frames[1:] = 0
    video.write_poster(write(tmp_path / "a.mp4", frames), tmp_path / "a.poster.jpg")
    with Image.open(tmp_path / "a.poster.jpg") as poster:
        assert (poster.format, poster.size) == ("JPEG", (WIDTH, HEIGHT))
        assert np.abs(np.asarray(poster)[20, 20].astype(int) - (10, 200, 90)).max() <= 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.poster.jpg"]


def test_crf_decides_the_size(tmp_path: Path) -> None:
    sizes = [write(tmp_path / f"{crf}.mp4", moving(20), crf).stat().st_size for crf in (5, 20, 45)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[2]


def test_the_encoder_s_settings_make_its_result_repeatable(tmp_path: Path) -> None:
    written = write(tmp_path / "a.mp4", moving(5)).read_bytes()  # x264 writes its settings into the stream
    for setting in (b"mbtree=0", b"threads=4", b"sliced_threads=0", b"bframes=0"):
        assert setting in written, setting
