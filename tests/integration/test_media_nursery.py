"""The server that forks a process for each file: many files, many threads, and servers that were killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from framepack_daemon.errors import ImageError
from framepack_daemon.media import image, nursery


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.effect_noise((96, 64), 80).save(path)
    return path


def servers() -> list[int]:
    return [server._process for server in nursery._idle.get(image.__name__, [])]


def test_one_server_serves_file_after_file_each_in_its_own_process(picture: Path) -> None:
    image.check(picture)
    (before,) = servers()
    picture.with_name("b.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        image.check(picture.with_name("b.png"))
    for _ in range(5):
        assert image.check(picture).width == 96
    assert servers() == [before]
    assert psutil.Process(before).children() == []


def test_a_server_that_was_killed_is_replaced(picture: Path) -> None:
    image.check(picture)
    (before,) = servers()
    os.kill(before, signal.SIGKILL)
    assert image.check(picture).width == 96
    assert servers() != [before]
    assert not psutil.pid_exists(before), "and it leaves no process behind"


def test_a_file_that_takes_too_long_ends_its_process_and_not_the_server(tmp_path: Path, picture: Path) -> None:
    image.check(picture)
    (before,) = servers()
    Image.new("RGBA", (7000, 7000), (1, 2, 3, 4)).save(tmp_path / "slow.png", compress_level=1)
    with pytest.raises(ImageError, match=r"longer than 0\.05 s"):
        image.check(tmp_path / "slow.png", timeout_seconds=0.05)
    assert image.check(picture).width == 96
    assert servers() == [before]


def test_threads_do_not_wait_for_each_other(picture: Path) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(image.check(picture).width)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [96] * 4


def test_a_fork_of_the_asking_process_asks_a_server_of_its_own(picture: Path) -> None:
    image.check(picture)
    child = os.fork()
    if child == 0:
        os._exit(0 if servers() == [] and image.check(picture).width == 96 else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert image.check(picture).width == 96


def test_a_server_ends_with_the_process_that_asks(picture: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        image.check(picture)
        os.write(writing, str(servers()[0]).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    server = int(os.read(reading, 100))
    os.close(reading)
    os.close(writing)
    end = time.monotonic() + 60
    while psutil.pid_exists(server) and psutil.Process(server).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.02)
