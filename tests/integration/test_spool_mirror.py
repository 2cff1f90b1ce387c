"""A mirror brings the same pairs again and again, and deletes from the inbox whatever it does not know."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from spool_bench import SIDECAR, Bench

from framepack_daemon import atomic
from framepack_daemon.job import Role, State
from framepack_daemon.media import image as pictures
from framepack_daemon.spool import calm, inbox
from framepack_daemon.spool.add import Added
from framepack_daemon.spool.capture import HIDDEN_FOLDER, DropChangedError, Source, signature
from framepack_daemon.spool.drop import Drop, Part

STEPS = ("make_folder", "write_json", "move", "copy", "sync_file", "sync_folder", "digest", "remove_tree")
MANY = 200  # more steps than there are


def test_pairs_that_come_again_do_not_keep_the_others_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a busy machine, where the time for looking into files is over after the first of them.
    bench.scanner.timing = replace(bench.scanner.timing, judge=0.0)
    monkeypatch.setattr(inbox, "JUDGE_SHARE", 0.0)
    stems = ["a", "b", "c", "d"]
    (bench.inbox / "preset").mkdir()
    (bench.inbox / "preset" / "defaults.json").write_text("{}")
    bench.put("preset/e.png")
    bench.put("preset/e.json", {"prompt": "waves"})
    for _ in range(3 * len(stems)):
        for stem in stems:  # those that were taken
            if not (bench.inbox / f"{stem}.png").exists():
                bench.drop(stem)
        bench.take()
    assert [job[0] for job in bench.jobs(State.PENDING)] == [*stems, "e"]


def test_what_was_passed_over_unseen_is_looked_at_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.scanner.timing = replace(bench.scanner.timing, judge=0.0)
    monkeypatch.setattr(inbox, "JUDGE_SHARE", 0.0)
    monkeypatch.setattr(calm, "STAMP_SECONDS", 0.0)
    bench.drop("a")
    for name in ("preset/defaults.json", "preset/c.json"):
        bench.put(name, {"prompt": "waves"})
    bench.put("preset/c.png")
    assert len(bench.take()) == 1  # there was no time for c, whose turn comes next
    bench.drop("b")
    assert [added.jobs[0][0] for added in bench.take()] == ["c"]
    assert [added.jobs[0][0] for added in bench.take()] == ["b"]


def test_a_picture_that_comes_again_is_not_decoded_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_into: list[Path] = []
    check = pictures.check

    def noted(path: Path) -> None:
        looked_into.append(path)
        check(path)

    monkeypatch.setattr(pictures, "check", noted)
    bench.put("preset/defaults.json", {"guidance_scale": 8.0})
    drops = {"beach": {}, "two": {"variations": 2}, "preset/beach": {}}
    for stem, fields in drops.items():
        bench.drop(stem, **fields)
    jobs = {job for added in bench.take() for job in added.jobs}
    assert (len(jobs), len(looked_into)) == (4, 3)
    looked_into.clear()
    for stem, fields in drops.items():
        bench.drop(stem, **fields)
    assert {job for added in bench.take() for job in added.known} == jobs
    assert [path.name for path in looked_into] == ["two.png"]  # whose ids are told by its sidecar too
    assert bench.left() == ["preset/defaults.json"]


def test_a_refused_picture_that_comes_again_is_given_time_to_become_whole(bench: Bench) -> None:
    half = bench.picture.read_bytes()[:-20]
    bench.put("beach.png", half)
    bench.put("beach.json", SIDECAR)
    (refused,) = bench.take()
    assert refused.refusal
    bench.put("beach.png", half)
    bench.put("beach.json", SIDECAR)
    bench.scanner.timing = replace(bench.scanner.timing, incomplete=60.0)
    assert bench.take() == []
    bench.put("beach.png")
    (added,) = bench.take()
    assert added.jobs
    assert added.refusal is None


@pytest.fixture
def far(tmp_path: Path, picture: Path) -> Iterator[Bench]:
    """An inbox and a queue on two file systems."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert Path(folder).stat().st_dev != tmp_path.stat().st_dev
        yield Bench(tmp_path / "bench", picture, queue=Path(folder) / "queue")


class Moments:
    """Does `act` right before the n-th step, and once more `gap` steps later."""

    def __init__(self) -> None:
        self.left = self.gap = 0
        self.act: Callable[[], None] = lambda: None

    def step(self, call: Callable[..., Any], *words: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left in (0, -self.gap):
            self.act()
        return call(*words, **options)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Moments:
    """Something that can be done between any two steps of taking a drop."""
    moments = Moments()
    for name in STEPS:
        monkeypatch.setattr(atomic, name, functools.partial(moments.step, getattr(atomic, name)))
    return moments


def test_the_hidden_folder_is_deleted_at_any_moment(far: Bench, moments: Moments) -> None:
    moments.act = lambda: shutil.rmtree(far.inbox / HIDDEN_FOLDER, ignore_errors=True)
    for moment in range(1, MANY):
        stem = f"beach-{moment}"
        far.drop(stem)
        added = take(far, stem, moments, moment)
        if moments.left > 0:
            break  # it came to its end before that moment
        far.drop(stem)  # the mirror brings again what it misses
        again = take(far, stem)
        assert len({*added.jobs, *again.jobs, *again.known}) == 1
        assert len(far.jobs(State.PENDING)) == moment
        assert far.left() == []
    assert moment > len(STEPS)
    assert far.jobs(State.FAILED) == []


@pytest.mark.parametrize("gap", [0, 8, 10, 12])
@pytest.mark.parametrize("where", ["bench", "far"])
def test_the_pair_comes_again_at_any_moment(
    request: pytest.FixtureRequest, tmp_path: Path, moments: Moments, where: str, gap: int
) -> None:
    bench = request.getfixturevalue(where)
    moments.gap = gap
    for moment in range(1, MANY):
        stem = f"beach-{moment}"
        bench.drop(stem)

        def bring(stem: str = stem) -> None:
            for name in (f"{stem}.png", f"{stem}.json"):
                shutil.copyfile(tmp_path / f"first{Path(name).suffix}", tmp_path / "hidden")
                (tmp_path / "hidden").replace(bench.inbox / name)

        for suffix in (".png", ".json"):
            shutil.copyfile(bench.inbox / f"{stem}{suffix}", tmp_path / f"first{suffix}")
        moments.act = bring
        added = take(bench, stem, moments, moment)
        if moments.left > 0:
            break
        moments.left = -MANY
        again = take(bench, stem)
        assert len({*added.jobs, *again.jobs, *again.known}) == 1
        assert bench.left() == []
    assert moment > len(STEPS)
    assert len(bench.jobs(State.PENDING)) == moment
    assert bench.jobs(State.FAILED) == []


def take(bench: Bench, stem: str, moments: Moments | None = None, moment: int = 0) -> Added:
    """Enter a pair that was found to be whole, with something done at that moment."""
    roles = {f"{stem}.png": Role.IMAGE, f"{stem}.json": Role.SIDECAR}
    found = {name: signature(bench.inbox / name) for name in roles}
    if None in found.values():
        return Added()
    parts = [Part(role, name, Source(bench.inbox / name, name, found[name])) for name, role in roles.items()]
    if moments:
        moments.left = moment
    try:
        return bench.door.add(Drop(stem, tuple(parts), folder=bench.inbox))
    except DropChangedError:
        return Added()
