"""What other programs leave in the drop folder, beside a good pair, and a real scan of it.

Each thing holds what a drop holds, so that one that is read at all becomes a job or waits visibly. All of them lie
there at once, as in a folder that many tools have touched; each line of `foreign_names` is a test of what became of it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign_names import CONFLICTS, FILES, FOLDERS, PRESETS
from spool_bench import SIDECAR, Bench

from framepack_daemon.job import State
from framepack_daemon.spool.groups import halves

INSIDE = ("defaults.json", "other.png", "other.json")  # what would make a folder a drop folder


def _each(lines: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [pytest.param(name, id=f"{whose} {name}") for whose, name in lines])


def _content(name: str, picture: Path) -> bytes:
    """What would make the file a drop: a sidecar's where it may be one, else a picture's."""
    return json.dumps(SIDECAR).encode() if "json" in name.casefold() else picture.read_bytes()


def _scanned(root: Path, picture: Path, names: list[str]) -> Bench:
    """A drop folder of these files and a good pair, after so many scans that a wrong reading would show."""
    bench = Bench(root, picture)
    for name in names:
        bench.put(name, _content(name, picture))
    bench.drop("good")
    while bench.take():
        pass
    return bench


@pytest.fixture(scope="module")
def littered(tmp_path_factory: pytest.TempPathFactory, still: Path) -> Bench:
    """A drop folder where a picture alone is enough, with every foreign file and folder in it."""
    names = [PRESETS[0], *(name for _, name in FILES), *(f"{name}/{each}" for _, name in FOLDERS for each in INSIDE)]
    return _scanned(tmp_path_factory.mktemp("littered"), still, names)


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory, still: Path) -> Bench:
    """A drop folder with every kind of conflict copy in it."""
    return _scanned(tmp_path_factory.mktemp("torn"), still, [name for _, name in CONFLICTS])


def _waiting(bench: Bench) -> set[str]:
    return {name for name, _ in halves(bench.inbox, bench.queue)}


@_each(FILES)
def test_a_foreign_file_is_left_where_it_is(littered: Bench, name: str) -> None:
    assert (littered.inbox / name).read_bytes() == _content(name, littered.picture)
    assert name not in _waiting(littered)


@_each(FOLDERS)
def test_what_is_in_a_foreign_folder_is_left_there(littered: Bench, name: str) -> None:
    for inside in INSIDE:
        assert (littered.inbox / name / inside).read_bytes() == _content(inside, littered.picture)
    assert not [waits for waits in _waiting(littered) if waits.startswith(f"{name}/")]


def test_beside_all_of_it_the_good_pair_alone_becomes_a_job(littered: Bench) -> None:
    (job,) = littered.jobs(State.PENDING)
    assert job.startswith("good-")
    assert littered.files(State.PENDING, job) == {"good.png", "good.json", "defaults.json", "job.json", "run.json"}
    assert littered.jobs(State.FAILED) == []


@_each(CONFLICTS)
def test_a_conflict_copy_is_refused_visibly_and_whole(torn: Bench, name: str) -> None:
    (path,) = torn.queue.folder(State.FAILED).glob(f"*/{name}")
    assert path.read_bytes() == _content(name, torn.picture)
    status = torn.status(path.parent.name)
    assert status["state"] == "failed"
    assert "conflict copy" in status["error"]["message"]
    assert status["error"]["hint"]
    assert not (torn.inbox / name).exists()


def test_beside_conflict_copies_the_good_pair_is_taken(torn: Bench) -> None:
    (job,) = torn.jobs(State.PENDING)
    assert job.startswith("good-")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_never_a_drop_itself(bench: Bench, name: str) -> None:
    bench.put(name, SIDECAR)
    bench.drop()
    (added,) = bench.take()
    assert added.refusal is None
    assert bench.left() == [name]
    assert _waiting(bench) == set()
