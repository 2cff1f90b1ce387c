"""The arithmetic of sections and buckets."""

from __future__ import annotations

import math

import pytest

from framepack_daemon.engine import conditioning, schedule


@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("sections", [1, 2, 3, 6, 100])
def test_the_spans_of_all_sections_make_the_whole_video_once(sections: int, backwards: bool) -> None:
    order = schedule.Order(backwards=backwards, sections=sections)
    frames = [frame for section in order.video_order for frame in order.span(section)]
    assert frames == list(range(36 * sections + 1))


def test_frames_that_each_section_makes_final() -> None:
    backwards, forwards = (schedule.Order(backwards=way, sections=4) for way in (True, False))
    assert [len(backwards.span(section)) for section in range(4)] == [0, 36, 36, 73]
    assert [len(forwards.span(section)) for section in range(4)] == [4, 36, 36, 69]


def test_paddings() -> None:
    assert schedule.paddings(4) == [3, 2, 1, 0]
    assert schedule.paddings(6) == [3, 2, 2, 2, 1, 0]


def test_shift_is_capped() -> None:
    assert schedule.shift(256) == pytest.approx(0.5)
    assert schedule.shift(4096) == pytest.approx(1.15)
    assert schedule.shift(14_400) == math.log(7)


def test_buckets() -> None:
    assert conditioning.nearest_bucket(1080, 1920) == (480, 832)
    assert conditioning.nearest_bucket(500, 500) == (640, 608)
    assert len(conditioning.BUCKETS) == 14
