"""A share whose handles go stale: what is in one folder shown at another, where parts of it can be told to fail.

The file system is a process of its own, `stale_server.py`, which takes its orders from a file. Needs root.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SERVER = Path(__file__).with_name("stale_server.py")
SECONDS = 20.0  # for the file system to be there, and to be gone


class Share:
    """The part of a mounted share that is below one name."""

    def __init__(self, name: str, orders: Path) -> None:
        self._name, self._orders = name, orders

    @contextlib.contextmanager
    def stale(self) -> Iterator[None]:
        """Every handle below that name is stale."""
        before = self._orders.read_text()
        self._order(f"{before}{self._name}\n")
        try:
            yield
        finally:
            self._order(before)

    def _order(self, text: str) -> None:
        hidden = self._orders.with_suffix(".new")
        hidden.write_text(text)
        hidden.replace(self._orders)


@contextlib.contextmanager
def mounted(real: Path, at: Path, *names: str) -> Iterator[dict[str, Share]]:
    """`real` also at `at`, by a file system in a process of its own; its parts by name."""
    at.mkdir()
    orders = at.with_name("orders")
    orders.touch()
    process = subprocess.Popen([sys.executable, SERVER, real, at, orders])
    try:
        _wait(lambda: process.poll() is not None or at.is_mount())
        assert at.is_mount(), "the file system did not start"
        yield {name: Share(name, orders) for name in names}
    finally:
        subprocess.run(["umount", "--lazy", at], check=False, capture_output=True)
        process.kill()  # whoever still waits for an answer gets an error
        process.wait(SECONDS)


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
