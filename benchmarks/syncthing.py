"""Two Syncthing instances that know each other and nobody else: on loopback, without discovery, relays or reports.

Each is a process with a configuration of its own, driven by its REST interface. The soak and tests use it; it knows no
daemon.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from programs import free_port, server

PATIENCE_SECONDS = 120.0
# Nothing is asked of or told to anyone but the other instance.
ALONE = {
    "globalAnnounceEnabled": "false",
    "localAnnounceEnabled": "false",
    "relaysEnabled": "false",
    "natEnabled": "false",
    "crashReportingEnabled": "false",
    "urAccepted": "-1",
    "autoUpgradeIntervalH": "0",
    "reconnectionIntervalS": "2",
    "startBrowser": "false",
}


class Syncthing:
    """One instance, driven by its REST interface."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.key = secrets.token_hex(16)
        self._listens, self._rests = free_port(), free_port()
        self.device = ""

    @contextmanager
    def running(self) -> Iterator[Syncthing]:
        """The instance at work."""
        words = ["syncthing", "generate", "--home", str(self.home), "--no-default-folder", "--skip-port-probing"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        self._seclude()
        words = ["syncthing", "serve", "--home", str(self.home), "--no-browser", "--no-restart", "--no-upgrade"]
        words += ["--gui-address", f"http://127.0.0.1:{self._rests}", "--gui-apikey", self.key]
        with server(*words, log=self.home / "log", environment={"GOMAXPROCS": "1"}):
            self.until(self._answers, "the instance to answer")
            yield self

    def meet(self, other: Syncthing) -> None:
        """Know the other instance."""
        device = {"deviceID": other.device, "addresses": [f"tcp://127.0.0.1:{other._listens}"]}
        self.rest("PUT", f"config/devices/{other.device}", device)

    def share(self, name: str, path: Path, kind: str, other: Syncthing) -> None:
        """Have a folder in common with the other instance; `kind` is sendreceive, sendonly or receiveonly."""
        path.mkdir(parents=True, exist_ok=True)
        folder = {
            "id": name,
            "path": str(path),
            "type": kind,
            "devices": [{"deviceID": self.device}, {"deviceID": other.device}],
            "fsWatcherEnabled": True,
            "fsWatcherDelayS": 1,
            "rescanIntervalS": 10,
        }
        self.rest("PUT", f"config/folders/{name}", folder)

    def turn(self, name: str, kind: str) -> None:
        """Make a shared folder one of another kind."""
        self.rest("PATCH", f"config/folders/{name}", {"type": kind})

    def state(self, name: str) -> dict[str, Any]:
        """How a folder stands."""
        return self.rest("GET", f"db/status?folder={name}")

    def has_all(self, name: str) -> bool:
        """Whether a folder is idle, and no file is still to come; something that is to go may be left."""
        found = self.state(name)
        return found["state"] == "idle" and found["needFiles"] == 0

    def press(self, button: str, name: str) -> None:
        """`override` or `revert` a folder, after it has looked at its files."""
        self.rest("POST", f"db/scan?folder={name}")
        self.rest("POST", f"db/{button}?folder={name}")

    def ignore(self, name: str, *patterns: str) -> None:
        """Set the lines of a folder's `.stignore`."""
        self.rest("POST", f"db/ignores?folder={name}", {"ignore": list(patterns)})

    def fetched(self) -> set[str]:
        """Names of what lately came from the other instance, or was removed because of it."""
        events = self.rest("GET", "events?events=ItemFinished&since=0&timeout=1")
        return {event["data"]["item"] for event in events}

    def rest(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask for or change something."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._rests}/rest/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-API-Key": self.key, "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  on loopback
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def until(self, condition: Any, what: str) -> None:
        """Wait for a condition."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.3)
        log = (self.home / "log").read_text(errors="replace")[-3000:]
        raise AssertionError(f"waited {PATIENCE_SECONDS} s in vain for {what}\n{log}")

    def _answers(self) -> bool:
        try:
            self.device = self.rest("GET", "system/status")["myID"]
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def _seclude(self) -> None:
        path = self.home / "config.xml"
        tree = ET.parse(path)  # noqa: S314  its own instance wrote it
        options = tree.getroot().find("options")
        assert options is not None
        for name in ("listenAddress", *ALONE):
            for there in options.findall(name):
                options.remove(there)
        for name, value in {"listenAddress": f"tcp://127.0.0.1:{self._listens}", **ALONE}.items():
            ET.SubElement(options, name).text = value
        tree.write(path)


@contextmanager
def a_pair(folder: Path) -> Iterator[tuple[Syncthing, Syncthing]]:
    """Two instances that are connected."""
    with ExitStack() as running:
        one, other = (running.enter_context(Syncthing(folder / name).running()) for name in ("desk", "server"))
        one.meet(other)
        other.meet(one)
        yield one, other
