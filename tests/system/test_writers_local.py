"""Programs of the same machine write into a watched inbox while jobs run: each pair is taken whole, and once."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import Lab
from tools import require
from writers import FEW, LONG, PAIRS, Stock, at_work, call, delivered, jobs_of

from framepack_daemon.job import State

BYTE_SECONDS = 0.01  # between two bytes of the slow writer

pytestmark = LONG


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path):
    with at_work(Lab(tmp_path_factory.mktemp("local") / "lab", models_dir, still)) as lab:
        yield lab


@pytest.fixture
def stock(tmp_path: Path, request: pytest.FixtureRequest) -> Stock:
    return Stock(tmp_path / "stock", request.node.name.removeprefix("test_").replace("_", "-") + "-")


def test_cp(lab: Lab, stock: Stock) -> None:
    require("cp")
    call("cp", "--", *stock.files(), lab.inbox)
    call("cp", "--", *stock.files(stock.renew(stock.stems[::3])), lab.inbox)
    delivered(lab, stock)
    call("cp", "--", *stock.files(stock.renew(stock.stems[::4])), lab.inbox)
    call("cp", "--", *stock.files(), lab.inbox)
    delivered(lab, stock)


def test_mv(lab: Lab, stock: Stock) -> None:
    require("mv", "cp")
    away = stock.folder.with_name("away")
    shutil.copytree(stock.folder, away)
    call("mv", "--", *stock.files(), lab.inbox)
    delivered(lab, stock)
    call("mv", "--", *away.iterdir(), lab.inbox)
    delivered(lab, stock)


def test_mv_from_another_file_system(lab: Lab, stock: Stock) -> None:
    require("mv")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert Path(folder).stat().st_dev != lab.inbox.stat().st_dev
        shutil.copytree(stock.folder, folder, dirs_exist_ok=True)
        call("mv", "--", *Path(folder).iterdir(), lab.inbox)
        delivered(lab, stock)


def test_a_byte_at_a_time(lab: Lab, tmp_path: Path) -> None:
    # All files grow side by side, in place; a second in which one stands still comes only after its last byte.
    stock = Stock(tmp_path / "stock", "slow-", large=0, side=16, pairs=PAIRS)
    contents = {path.name: path.read_bytes() for path in stock.files()}
    with ExitStack() as opened:
        files = {name: opened.enter_context((lab.inbox / name).open("wb", buffering=0)) for name in contents}
        for place in range(max(map(len, contents.values()))):
            for name, file in files.items():
                file.write(contents[name][place : place + 1])
            time.sleep(BYTE_SECONDS)
    delivered(lab, stock)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_writer_that_closes_and_reopens(lab: Lab, tmp_path: Path, part: float) -> None:
    stock = Stock(tmp_path / "stock", f"reopened-{part}-", pairs=FEW)
    contents = {path.name: path.read_bytes() for path in stock.files()}
    for name, data in contents.items():
        (lab.inbox / name).write_bytes(data[: int(len(data) * part)])
    looked_at(lab)
    assert jobs_of(lab, stock) == []
    for name, data in contents.items():
        with (lab.inbox / name).open("ab") as file:
            file.write(data[int(len(data) * part) :])
    delivered(lab, stock)


def test_a_writer_that_sets_the_size_first(lab: Lab, tmp_path: Path) -> None:
    stock = Stock(tmp_path / "stock", "preallocated-", pairs=FEW)
    contents = {path.name: path.read_bytes() for path in stock.files()}
    for name, data in contents.items():
        with (lab.inbox / name).open("wb") as file:
            file.truncate(len(data))
    looked_at(lab)
    assert jobs_of(lab, stock) == []
    for name, data in contents.items():
        with (lab.inbox / name).open("r+b") as file:
            file.write(data)
    delivered(lab, stock)


def looked_at(lab: Lab) -> None:
    """Wait until the daemon took a pair that came later than what lies in the inbox, and so had a look at all."""
    stem = f"later-{time.monotonic_ns()}"
    lab.drop(stem)
    lab.until(lambda: any(lab.jobs(state, stem) for state in State), "a later pair to be taken")
    lab.drop(f"{stem}-still")
    lab.until(lambda: any(lab.jobs(state, f"{stem}-still") for state in State), "a later pair to be taken")
