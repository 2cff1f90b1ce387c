"""What keeps a long queue and a full drop folder cheap, and that nothing is missed for it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from spool_bench import Bench

from framepack_daemon.job import Run, State
from framepack_daemon.spool import calm, groups, inbox, line
from framepack_daemon.spool.inbox import Timing
from framepack_daemon.spool.intake import Intake
from framepack_daemon.spool.line import Line


def waiting(job: str, second: int = 0, priority: int = 0) -> Run:
    return Run(job, (), "", f"2026-01-01T00:00:{second:02}Z", priority=priority)


def order(jobs: Line) -> list[str]:
    found = []
    while (job := jobs.first(lambda job: job not in found)) is not None:
        found.append(job)
    return found


def test_the_line_goes_by_priority_and_then_by_how_long_each_waits() -> None:
    jobs = Line()
    for run in (waiting("c", 3), waiting("a", 1), waiting("urgent", 9, 5), waiting("b", 2), waiting("idle", 0, -1)):
        jobs.put(run)
    assert order(jobs) == ["urgent", "a", "b", "c", "idle"]
    jobs.put(waiting("c", 3, 7))
    jobs.discard("a")
    assert order(jobs) == ["c", "urgent", "b", "idle"]
    jobs.put(waiting("a", 1))
    assert order(jobs) == ["c", "urgent", "a", "b", "idle"]


def test_who_is_parked_is_passed_over_for_its_time() -> None:
    jobs = Line()
    for run in (waiting("a", 1), waiting("b", 2)):
        jobs.put(run)
    jobs.park("a", time.monotonic() + 0.2)
    assert order(jobs) == ["b"]
    end = time.monotonic() + 10
    while order(jobs) != ["a", "b"]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_search_is_bounded_and_goes_on_behind_the_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "MAX_LOOKS", 2)
    jobs = Line()
    for number in range(5):
        jobs.put(waiting(f"j{number}", number))
    looked: list[str] = []

    def last_alone(job: str) -> bool:
        looked.append(job)
        if job != "j4":
            jobs.park(job, time.monotonic() + 60)
        return job == "j4"

    assert [jobs.first(last_alone) for _ in range(3)] == [None, None, "j4"]
    assert looked == ["j0", "j1", "j2", "j3", "j4"]


def test_jobs_that_come_and_go_leave_nothing_in_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "SLACK", 10)
    jobs = Line()
    jobs.put(waiting("first", 0))
    for number in range(200):
        jobs.put(waiting(f"j{number}", 1))
        jobs.discard(f"j{number}")
    assert len(jobs._heap) < 20
    assert order(jobs) == ["first"]


def test_a_pass_over_what_was_heard_of_sees_a_move_and_no_more(bench: Bench) -> None:
    for stem in ("a", "b"):
        bench.drop(stem, seed=ord(stem))
    bench.take()
    first, second = bench.jobs(State.PENDING)
    bench.recover()
    for job in (first, second):
        bench.queue.move(job, State.PENDING, State.FAILED)
    bench.keeper.tidy(frozenset(), {first, "pending", ".hidden", ""})
    assert bench.status(first)["outcome"] == "cancelled"
    assert bench.status(second)["state"] == "pending"
    bench.keeper.tidy(frozenset())
    assert bench.status(second)["outcome"] == "cancelled"


def test_a_restart_lines_jobs_up_before_it_enters_them(bench: Bench) -> None:
    for number in range(3):
        bench.drop(f"j{number}", seed=number, priority=number)
    bench.take()
    jobs = bench.jobs(State.PENDING)
    for job in jobs:
        (bench.outputs / f"{job}.status.json").unlink()
    bench.recover(seconds=-1.0)
    assert bench.keeper.is_behind
    assert bench.keeper.line.first(bench.keeper.is_ready) == jobs[2]
    assert [(bench.outputs / f"{job}.status.json").exists() for job in jobs] == [False, False, True]
    bench.keeper.tidy(frozenset(), set())
    assert not bench.keeper.is_behind
    assert all(bench.status(job)["state"] == "pending" for job in jobs)


def test_a_job_put_back_while_no_daemon_ran_waits_behind_the_others(bench: Bench) -> None:
    for number in range(2):
        bench.drop(f"j{number}", seed=number)
    bench.take()
    again, other = bench.jobs(State.PENDING)
    (bench.queue.path(State.PENDING, again) / "outcome.json").write_text(json.dumps({"outcome": "failed"}))
    bench.recover(seconds=-1.0)
    assert bench.keeper.line.first(bench.keeper.is_ready) == other


def test_a_priority_edited_in_place_is_seen_by_a_pass_over_everything(bench: Bench) -> None:
    for number in range(2):
        bench.drop(f"j{number}", seed=number)
    bench.take()
    first, second = bench.jobs(State.PENDING)
    bench.recover()
    assert bench.keeper.line.first() == first
    record = bench.queue.path(State.PENDING, second) / "run.json"
    record.write_text(record.read_text().replace('"priority": 0', '"priority": 5'))
    bench.keeper.tidy(frozenset())
    assert bench.keeper.line.first() == second


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were listed, in their order."""
    listed: list[Path] = []

    def counted(folder: Path) -> Any:
        listed.append(folder)
        return groups_listing(folder)

    groups_listing = groups.listing
    monkeypatch.setattr(inbox, "listing", counted)
    monkeypatch.setattr(groups, "listing", counted)
    monkeypatch.setattr(calm, "STAMP_SECONDS", 0.0)
    return listed


def test_files_without_partners_cost_nothing_until_a_name_comes(bench: Bench, listings: list[Path]) -> None:
    bench.put("defaults.json", {"seed": 1})
    bench.put("zoom/defaults.json", {})
    for name in ("a.png", "b.png", "zoom/c.png"):
        bench.put(name)
    assert bench.take() == []
    once = len(listings)
    assert once == 2
    assert bench.take() == []
    assert len(listings) == once
    bench.put("zoom/c.json", {"prompt": "waves"})
    assert len(bench.take()) == 1
    bench.put("b.txt", b"waves")
    assert len(bench.take()) == 1
    assert bench.take() == []
    before = len(listings)
    bench.put("defaults.json", {"prompt": "waves"})
    assert len(bench.take()) == 1, "a.png is whole by what the preset says now"
    assert len(listings) > before


def test_a_sidecar_without_its_picture_costs_nothing_until_it_is_written(bench: Bench, listings: list[Path]) -> None:
    for name in ("a.json", "b.json", "zoom/c.json"):
        bench.put(name, {"prompt": "waves"})
    bench.put("zoom/defaults.json", {})
    for stem in ("a", "zoom/c"):
        bench.put(f"{stem}.mp4", b"no video")
    assert bench.take() == []
    once = len(listings)
    for _ in range(3):
        assert bench.take() == []
    assert len(listings) == once
    for stem in ("a", "zoom/c"):
        (bench.inbox / f"{stem}.json").write_text('{"prompt": "on", "continue_from": "' + stem[-1] + '.mp4"}')
        assert bench.take() == []
        before = len(listings)
        (drop,) = bench.scanner.scan({f"{stem[-1]}.json", "foreign"}).drops
        assert drop.stem == stem[-1]
        assert len(listings) == before + 1
        bench.door.add(drop)
        assert bench.take() == []


def test_a_sidecar_that_is_written_in_place_is_heard_in_a_calm_folder(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calm, "STAMP_SECONDS", 0.0)
    entered: list[str] = []
    intake = Intake(bench.scanner, bench.door, entered.extend, rescan_seconds=60.0, poll_seconds=60.0)
    bench.put("a.mp4", b"no video")
    sidecar = bench.put("a.json", {"prompt": "waves"})
    assert intake._look() is None
    intake.start()
    try:
        end = time.monotonic() + 30
        while not entered and time.monotonic() < end:
            sidecar.write_text('{"prompt": "on", "continue_from": "a.mp4"}')
            time.sleep(0.2)
    finally:
        intake.stop()
    assert [job[:2] for job in entered] == ["a-"]


def test_a_calm_folder_is_doubted_after_a_while(
    bench: Bench, listings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calm, "DOUBT_SECONDS", 0.0)
    bench.put("a.png")
    bench.take()
    bench.take()
    assert len(listings) == 2


def test_of_very_many_sidecars_some_are_read_again_in_each_scan(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_LONE", 2)
    for number in range(5):
        bench.put(f"j{number}.json", {"prompt": "waves"})
        bench.put(f"j{number}.mp4", b"no video")
    assert bench.take() == []
    for number in range(5):
        (bench.inbox / f"j{number}.json").write_text(json.dumps({"prompt": "on", "continue_from": f"j{number}.mp4"}))
    taken = [len(bench.take()) for _ in range(6)]
    assert max(taken) == 2
    assert sum(taken) == 5


def test_a_scan_watches_so_many_drops_and_the_others_come_up_behind_them(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MAX_COMING", 2)
    bench = Bench(tmp_path / "bench", picture, Timing(settle=0.05, incomplete=0.0, partner=0.0))
    for number in range(5):
        bench.drop(f"j{number}", seed=number)
    bench.scanner.scan()
    assert sum(len(found) for found in bench.scanner._watched.values()) == 4
    taken: list[str] = []
    while len(taken) < 5:
        taken += [job.partition("-")[0] for added in bench.take_after(10) for job in added.jobs]
    assert taken == [f"j{number}" for number in range(5)]
