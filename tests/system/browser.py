"""Chromium as a witness: it opens a page that plays a video, and the page reports what it saw.

The page is served from the loopback interface, with the byte ranges that a browser seeks by, and posts its report back:
no protocol and no package is needed to drive the browser.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PATIENCE_SECONDS = 120.0
NAMES = ("chromium", "chromium-browser", "google-chrome")
PAGE = Path(__file__).with_name("player.html")
# Without a sandbox, for root may not have one; without /dev/shm, which is small in containers.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--mute-audio",
    "--autoplay-policy=no-user-gesture-required", "--disable-background-networking", "--disable-component-update",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--force-color-profile=srgb",
)  # fmt: skip


def find() -> str:
    """The browser's path. Without one a test is skipped, but fails where everything has to be tested."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI"):
        pytest.fail("Chromium is missing; .ci/run installs it")
    return found or pytest.skip("Chromium is not installed: apt install chromium")


def watch(video: Path, seconds: list[float], profile: Path) -> dict[str, Any]:
    """What the browser saw of the video: `width`, `height`, `duration`, `ready`, `played`, `shown`, `ended`.

    Times are of the video, in seconds: `played` while it played, `ended` at its end. Of `shown`, one for each of
    `seconds`, each has the `time` of the frame and its `pixels`, (H, W, 3) uint8. `profile` is the browser's folder.
    """
    reports: queue.Queue[dict[str, Any]] = queue.Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(video, seconds, reports))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    with (profile.with_suffix(".log")).open("ab") as log:
        browser = subprocess.Popen([find(), *FLAGS, f"--user-data-dir={profile}", address], stdout=log, stderr=log)
    try:
        report = reports.get(timeout=PATIENCE_SECONDS)
    except queue.Empty:
        log_text = profile.with_suffix(".log").read_text(errors="replace")[-3000:]
        raise AssertionError(f"the browser did not report (exit {browser.poll()})\n{log_text}") from None
    finally:
        browser.terminate()
        browser.wait(PATIENCE_SECONDS)
        server.shutdown()
        server.server_close()
    assert "error" not in report, report["error"]
    for frame in report["shown"]:
        pixels = np.array(frame["pixels"], np.uint8)
        frame["pixels"] = pixels.reshape(report["height"], report["width"], 4)[..., :3]
    return report


def _handler(video: Path, seconds: list[float], reports: queue.Queue[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    content = video.read_bytes()
    page = PAGE.read_text().replace("SECONDS", json.dumps(seconds)).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/video.mp4":
                self._send_range()
            elif self.path == "/":
                self._send(HTTPStatus.OK, page, "text/html; charset=utf-8")
            else:
                self._send(HTTPStatus.NOT_FOUND, b"", "text/plain")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(HTTPStatus.OK, b"", "text/plain")
            reports.put(json.loads(body))

        def _send_range(self) -> None:
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = slice(int(first), int(last) + 1 if last else len(content))
            told = f"bytes {part.start}-{min(part.stop, len(content)) - 1}/{len(content)}"
            self._send(HTTPStatus.PARTIAL_CONTENT, content[part], "video/mp4", {"Content-Range": told})

        def _send(self, status: HTTPStatus, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            told = {"Content-Type": kind, "Content-Length": str(len(body)), "Accept-Ranges": "bytes", **(headers or {})}
            for name, value in told.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            pass

    return Handler
