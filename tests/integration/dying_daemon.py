"""Run the daemon and have it killed at the n-th durable operation of publishing: `python dying_daemon.py N`.

The operations are those that change what a restart finds: renames (with and without replacing) and syncs. Counting
begins when the publisher starts to finish a job, so that N walks through publishing alone. The kill is a real SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framepack_daemon import atomic
from framepack_daemon.cli import main
from framepack_daemon.spool.publish import Publisher


class Reaper:
    """Counts operations and kills the process before the n-th."""

    def __init__(self, when: int) -> None:
        self.left = when
        self.counting = False

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.counting:
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.left -= 1
            return function(*args, **kwargs)

        return counted

    def while_finishing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def finish(publisher: Publisher, job: str) -> str:
            self.counting = True
            name: str = function(publisher, job)
            self.counting = False
            return name

        return finish


if __name__ == "__main__":
    reaper = Reaper(int(sys.argv[1]))
    Publisher.finish = reaper.while_finishing(Publisher.finish)  # type: ignore[method-assign]
    atomic._rename_without_replacing = reaper.before(atomic._rename_without_replacing)
    os.fsync = reaper.before(os.fsync)
    Path.replace = reaper.before(Path.replace)  # type: ignore[method-assign]
    sys.exit(main(["run"]))
