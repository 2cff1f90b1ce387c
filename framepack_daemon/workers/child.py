"""The worker process in its first moments: it sees to it that it dies with the daemon, and only then takes up its work.

Started as `python -m framepack_daemon.workers.child`. What the work needs takes seconds to import, in which the daemon
may be killed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; end at once when it has already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Run the worker."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--parent", type=int, required=True)
    options, words = parser.parse_known_args()
    die_with_parent(options.parent)
    from framepack_daemon.workers import renderer  # noqa: PLC0415  imports torch

    renderer.main(words)


if __name__ == "__main__":
    main()
