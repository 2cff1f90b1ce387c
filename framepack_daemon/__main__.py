"""`python -m framepack_daemon` is the command `framepack-daemon`."""

import sys

from framepack_daemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
