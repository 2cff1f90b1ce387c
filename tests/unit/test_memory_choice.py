"""Which memory plan a job gets, and how the VAE takes its frames: by arithmetic alone."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import get_args

import pytest
import torch

from framepack_daemon.engine import memory
from framepack_daemon.engine.memory import PLANS, Room, choose
from framepack_daemon.errors import OutOfMemoryError
from framepack_daemon.settings import Settings

# Graphics cards by the name on the box, with the GiB that a driver reports, and almost all of it free.
CARDS = {6: 5.8, 8: 7.8, 12: 11.8, 16: 15.7, 24: 23.6, 32: 31.8, 40: 39.4, 48: 47.5, 80: 79.2}
LARGE = 960 * 960
HUGE = 2048 * 2048


def card(size: int, taken: float = 0.2) -> Room:
    return Room(total=CARDS[size], free=CARDS[size] - taken, is_gpu=True)


def test_a_setting_may_be_any_plan() -> None:
    assert get_args(Settings.model_fields["memory"].annotation) == ("auto", *PLANS)


@pytest.mark.parametrize(
    ("room", "preservation", "pixels", "plan"),
    [
        (card(6), 0.5, memory.NOMINAL_PIXELS, "minimal"),
        (card(8), 1, memory.NOMINAL_PIXELS, "minimal"),
        (card(12), 1, memory.NOMINAL_PIXELS, "minimal"),
        (card(16), 1, memory.NOMINAL_PIXELS, "minimal"),
        (card(24), 1, memory.NOMINAL_PIXELS, "low"),
        (card(24), 1, LARGE, "low"),
        (card(24), 6, memory.NOMINAL_PIXELS, "minimal"),
        (card(24, taken=5), 1, memory.NOMINAL_PIXELS, "minimal"),
        (card(32), 1, memory.NOMINAL_PIXELS, "balanced"),
        (card(32), 1, HUGE, "minimal"),
        (card(40), 1, memory.NOMINAL_PIXELS, "balanced"),
        (card(48), 1, memory.NOMINAL_PIXELS, "resident"),
        (card(48), 6, memory.NOMINAL_PIXELS, "balanced"),
        (card(48), 1, HUGE, "low"),
        (card(80), 1, HUGE, "resident"),
        (card(80), 70, memory.NOMINAL_PIXELS, "minimal"),
        (card(80), 100, memory.NOMINAL_PIXELS, "minimal"),
        (Room(total=16, free=8, is_gpu=False), 1, memory.NOMINAL_PIXELS, "resident"),
    ],
)
def test_the_fastest_plan_is_chosen_that_fits_what_is_free(
    room: Room, preservation: float, pixels: int, plan: str
) -> None:
    assert choose("auto", room, preservation, pixels=pixels) == plan


@pytest.mark.parametrize(
    ("setting", "below", "plan"),
    [
        ("auto", "resident", "balanced"),
        ("auto", "low", "minimal"),
        ("auto", "minimal", "minimal"),
        ("resident", None, "resident"),
        ("resident", "resident", "balanced"),
        ("low", None, "low"),
        ("low", "resident", "low"),
        ("balanced", "low", "minimal"),
        ("minimal", "minimal", "minimal"),
    ],
)
def test_a_setting_and_a_plan_that_was_too_much_bound_the_choice(setting: str, below: str | None, plan: str) -> None:
    assert choose(setting, card(80), 1, below=below) == plan


def test_a_plan_that_is_set_is_taken_where_it_does_not_fit() -> None:
    assert choose("resident", card(6), 1) == "resident"


def test_the_tiny_model_is_resident_everywhere() -> None:
    assert choose("auto", card(6), 5, model="tiny") == "resident"


def test_each_plan_needs_less_than_the_one_before_at_every_size() -> None:
    for pixels in (320 * 320, memory.NOMINAL_PIXELS, LARGE, HUGE):
        needs = [memory.needed(plan, pixels, total=24.0) for plan in PLANS]
        assert needs == sorted(needs, reverse=True)


def test_every_plan_has_one_below_but_the_last() -> None:
    assert [memory.lower(plan) for plan in PLANS] == [*PLANS[1:], None]


@pytest.mark.parametrize(
    ("plan", "pixels", "size", "tiled"),
    [
        ("resident", memory.NOMINAL_PIXELS, 80, False),
        ("resident", memory.NOMINAL_PIXELS, 48, True),
        ("resident", LARGE, 80, True),
        ("balanced", memory.NOMINAL_PIXELS, 48, False),
        ("balanced", memory.NOMINAL_PIXELS, 32, True),
        ("low", memory.NOMINAL_PIXELS, 80, True),
        ("minimal", memory.NOMINAL_PIXELS, 80, True),
    ],
)
def test_whole_frames_are_decoded_where_they_fit_the_whole_device(
    plan: str, pixels: int, size: int, *, tiled: bool
) -> None:
    assert memory.tiles(plan, pixels, CARDS[size]) == tiled


@pytest.mark.parametrize("plan", PLANS)
def test_the_page_on_memory_says_what_a_plan_needs(plan: str) -> None:
    page = (Path(__file__).parents[2] / "docs/memory.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{plan}`"))
    assert f"| {memory.needed(plan, memory.NOMINAL_PIXELS, total=0):.0f} GiB |" in row


def test_a_job_that_is_decoded_whole_was_reckoned_so() -> None:
    whole = memory.needed("balanced", memory.NOMINAL_PIXELS, CARDS[48])
    assert whole - memory.needed("balanced", memory.NOMINAL_PIXELS, CARDS[32]) > 10
    assert choose("auto", card(48, taken=12), 1) == "low"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("unable to mmap 1024 bytes from file <x>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_whatever_says_that_memory_is_used_up_names_the_plan_and_the_way_out(error: Exception) -> None:
    with (
        pytest.raises(OutOfMemoryError, match="at this size on the memory plan minimal") as caught,
        memory.exhaustion_explained("at this size", torch.device("cpu"), "minimal"),
    ):
        raise error
    assert "smaller resolution" in caught.value.hint
    assert caught.value.retryable


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), OSError(errno.ENOSPC, "full"), KeyError("x")])
def test_another_error_stays_what_it_is(error: Exception) -> None:
    with (
        pytest.raises(type(error)) as caught,
        memory.exhaustion_explained("at this size", torch.device("cpu"), "minimal"),
    ):
        raise error
    assert caught.value is error
