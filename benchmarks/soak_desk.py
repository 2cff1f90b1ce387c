"""A desk that Syncthing connects with the daemon's folders: pairs go one way, what comes of them the other.

The desk's `inbox` is sent to the daemon's and keeps its pairs; the daemon's outputs are sent to the desk's `outputs`.
Knows what lies in these folders, and nothing of jobs.
"""

from __future__ import annotations

import filecmp
import time
from collections.abc import Iterator
from contextlib import contextmanager

from soak_drops import SoakSite
from syncthing import Syncthing, a_pair

IN_STEP_SECONDS = 180.0


class Desk:
    """The folders at the desk, and what came there."""

    def __init__(self, site: SoakSite, server: Syncthing) -> None:
        self.site = site
        self.server = server
        self.inbox, self.outputs = site.root / "desk" / "inbox", site.root / "desk" / "outputs"
        self.videos: set[str] = set()  # names that ever stood at the desk

    @classmethod
    @contextmanager
    def of(cls, site: SoakSite) -> Iterator[Desk]:
        """A desk that is connected with a site."""
        with a_pair(site.root / "syncthing") as (desk, server):
            here = cls(site, server)
            desk.share("inbox", here.inbox, "sendonly", server)
            server.share("inbox", site.inbox, "receiveonly", desk)
            server.ignore("inbox", "/.framepack-daemon")
            desk.share("outputs", here.outputs, "receiveonly", server)
            server.share("outputs", site.outputs, "sendonly", desk)
            server.ignore("outputs", "/.*.tmp")
            yield here

    def look(self) -> None:
        """See which videos have come; those of pruned jobs go again."""
        self.videos.update(path.name for path in self.outputs.glob("*.mp4"))

    def faults(self) -> list[str]:
        """What is not at the desk as it is beside the daemon, when both have had time to agree; and conflict copies."""
        self.server.rest("POST", "db/scan?folder=outputs")
        end = time.monotonic() + IN_STEP_SECONDS
        while (differing := self._differing()) and time.monotonic() < end:
            time.sleep(1.0)
        self.look()
        folders = (self.site.inbox, self.site.outputs, self.inbox, self.outputs)
        copies = [path for folder in folders for path in folder.rglob("*sync-conflict*")]
        return [f"not in step at the desk: {name}" for name in differing] + [
            f"conflict copy: {path}" for path in copies
        ]

    def _differing(self) -> list[str]:
        names = {
            path.name for folder in (self.outputs, self.site.outputs) for path in folder.iterdir() if path.is_file()
        }
        plain = [name for name in names if not name.startswith(".")]
        _, wrong, missing = filecmp.cmpfiles(self.outputs, self.site.outputs, plain, shallow=False)
        return sorted(wrong + missing)
