"""Jobs that finish beside a gateway: the daemon's own loop with a stand-in for its worker, as in `spool_ours`.

    python benchmarks/gateway_jobs.py FOLDER COUNT SECONDS

The jobs wait in FOLDER already. Each is claimed, shown as running for SECONDS, and published with a video of 8 kB.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import structlog
from spool_ours import Measured
from spool_tree import Tree


def main() -> None:
    """Run until all of them are done."""
    folder, count, seconds = sys.argv[1:]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # The loop ends as it starts the job after the last that it is asked for, and that one is finished too.
    Measured(Tree(Path(folder)), lambda: time.sleep(float(seconds))).serve(int(count) - 1)


if __name__ == "__main__":
    main()
