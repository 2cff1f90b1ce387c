"""The gallery that a daemon keeps in outputs: what a browser would find on its pages."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from lab import Lab

from framepack_daemon import gallery, gallery_page
from framepack_daemon.gallery import Gallery
from framepack_daemon.job import State
from framepack_daemon.spool import status
from framepack_daemon.spool.line import Line
from framepack_daemon.spool.troubles import Troubles

HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(2)</script>&amp;'\u202e"
DAY = 86400.0
EMPTY_ELEMENTS = {"meta", "img", "br"}


@dataclass
class Shown(HTMLParser):
    """What is on a page: its texts, and the elements with their attributes."""

    source: str
    texts: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY_ELEMENTS:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style" and data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        """All of it, a line for each piece."""
        return "\n".join(self.texts)

    def all(self, tag: str, name: str) -> list[str]:
        """That attribute of every element of that kind, as a name of a file."""
        return [unquote(value) for kind, having in self.elements if kind == tag and (value := having.get(name))]


def shown(outputs: Path, name: str = "index.html") -> Shown:
    path = outputs / name
    return Shown(path.read_text() if path.exists() else "")


def until_shown(lab: Lab, *texts: str, videos: Collection[str] = ()) -> Shown:
    """Wait until these texts and videos are on the page."""

    def there() -> Shown | None:
        page = shown(lab.outputs)
        whole = all(text in page.text for text in texts) and {*videos} <= {*page.all("video", "src")}
        return page if whole else None

    return lab.until(there, f"{texts} and {videos} on the page")


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return {"gallery": "true"}


def test_the_page_tells_of_every_state(running: Lab) -> None:
    lab = running
    until_shown(lab, "Nothing waits.", "Nothing yet.")
    lab.drop("beach", prompt="waves & wind")
    video = lab.ended("beach")
    page = until_shown(lab, "beach", "waves & wind", videos=[f"{video}.mp4"])
    assert page.all("video", "poster") == [f"{video}.poster.jpg"]
    lab.drop("wrong", seconds=-3)
    lab.drop("without", loras=[{"name": "no such.safetensors"}])
    until_shown(lab, "Refused", "seconds: -3 is out of range", "seconds is a number from 0.1 to 120")
    until_shown(lab, "Failed", "no such.safetensors")

    lab.drop("long", frames=3600)
    job = lab.until(lambda: lab.jobs(State.PROCESSING, "long"), "the job to start")[0]
    lab.drop("later")
    until_shown(lab, "Rendering", " of 100", "later", "waits for its turn", videos=[f"{job}.preview.mp4"])
    lab.command("cancel", job)
    until_shown(lab, "Cancelled", videos=[f"{job}.partial.mp4"])
    gone = lab.ended("later")
    until_shown(lab, videos=[f"{gone}.mp4"])

    lab.command("pause")
    lab.command("retry", job)
    page = until_shown(lab, "Paused", "long", "waits for its turn")
    assert "Cancelled" not in page.text
    lab.command("remove", job, lab.ended("without", State.FAILED))
    lab.until(lambda: {"long", "without"}.isdisjoint(shown(lab.outputs).texts), "what was removed to leave the page")
    assert "not running" not in shown(lab.outputs).text
    lab.stop()
    assert "The daemon is not running." in shown(lab.outputs).text
    assert not list(lab.outputs.glob(".*"))

    lab.command("remove", video)
    (lab.outputs / f"{gone}.mp4").unlink()
    lab.start(gallery="true")
    lab.until(lambda: "not running" not in shown(lab.outputs).text, "the page of the new daemon")
    page = until_shown(lab, "Paused", "wrong", videos=[f"{video}.mp4"])
    assert {"later", "long", "without"}.isdisjoint(page.texts)


def test_names_and_words_of_strangers_are_only_shown(running: Lab) -> None:
    running.drop(HOSTILE.replace("/", "\\"), prompt=HOSTILE, **{HOSTILE: 1})
    running.drop("video", prompt=HOSTILE)
    page = until_shown(running, "Refused", videos=[f"{running.ended('video')}.mp4"])
    assert HOSTILE.replace("\u202e", r"\u202e") in page.texts
    words = [gallery_page.waits, gallery_page.runs, gallery_page.ended]
    body = {"message": HOSTILE, "error": {"message": HOSTILE, "hint": HOSTILE}, "preview": HOSTILE, "state": "failed"}
    bodies = [body, dict.fromkeys(body, HOSTILE), {**body, "state": "done", "video": {"file": f"../{HOSTILE}"}}]
    cards = [Shown(make(f"{HOSTILE}.conflict-1", body).html) for make in words for body in bodies]
    assert {tag for each in (page, *cards) for tag, _ in each.elements}.isdisjoint({"script", "img"})
    assert not [name for each in (page, *cards) for _, having in each.elements for name in having if name[:2] == "on"]
    assert not [where for each in cards for _, having in each.elements if "/" in (where := having.get("src") or "")]


def test_a_page_of_somebody_else_is_left_alone(running: Lab) -> None:
    own = running.root / "own.html"
    own.write_text("<title>my holidays</title>")
    for number, make in enumerate((Path.hardlink_to, Path.symlink_to), 1):
        make(running.root / "moved.html", own)
        (running.root / "moved.html").rename(running.outputs / "index.html")
        running.drop(f"wrong {number}", seconds=-number)
        running.until(lambda number=number: len(running.events("gallery_name_taken")) == number, "the log to say so")
        assert own.read_text() == "<title>my holidays</title>"
        assert (running.outputs / "index.html").samefile(own)
        (running.outputs / "index.html").unlink()
        running.drop(f"right {number}", seconds=-number)
        until_shown(running, f"wrong-{number}", f"right-{number}")


def test_a_gallery_that_cannot_be_written_disturbs_nobody(running: Lab) -> None:
    until_shown(running)
    away = running.outputs.rename(running.root / "away")
    running.drop("wrong", seconds=-3)
    running.ended("wrong", State.FAILED)
    running.until(lambda: running.events("gallery_not_written"), "the log to say so")
    away.rename(running.outputs)
    running.drop("beach")
    until_shown(running, videos=[f"{running.ended('beach')}.mp4"])
    assert len(running.events("gallery_not_written")) == 1


class Months:
    """A gallery of jobs that ended in the past, a day after the other, without a daemon."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.line, self.troubles = Line(), Troubles()
        self.gallery = Gallery(outputs)

    def end(self, number: int) -> None:
        """Have the job of that number end on that day."""
        job = f"job{number}-0123456789ab"
        when = time.strftime("%Y-%m-%dT12:00:00.000000Z", time.gmtime(1767225600 + number * DAY))  # 2026-01-01
        body = {"job": job, "state": "done", "finished_at": when, "video": {"file": f"{job}.mp4"}}
        (self.outputs / f"{job}.mp4").touch()
        (self.outputs / f"{job}{status.SUFFIX}").write_text(json.dumps(body))
        self.gallery.hear(job, body)

    def look(self) -> None:
        """Look as the daemon's loop does."""
        self.gallery.look(self.line, [], self.troubles)

    def on(self, name: str = "index.html") -> list[int]:
        """The numbers of the jobs on a page, in their order."""
        return [
            int(file.partition("-")[0].removeprefix("job")) for file in shown(self.outputs, name).all("video", "src")
        ]

    def older(self) -> dict[str, list[int]]:
        """The same of every page that the front links to."""
        links = shown(self.outputs).all("a", "href")
        return {name: self.on(name) for name in links if name.startswith("index-")}

    def until(self, front: list[int], older: dict[str, list[int]]) -> None:
        """Wait until the pages are so."""
        end = time.monotonic() + 60
        while (found := (self.on(), self.older())) != (front, older):
            assert time.monotonic() < end, found
            self.look()
            time.sleep(0.02)


def test_older_videos_are_on_pages_of_their_months(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NEWEST": 3, "MORE": 2, "PART": 20, "PAUSE_SECONDS": 0.01}.items():
        monkeypatch.setattr(gallery, name, value)
    months = Months(tmp_path)
    for number in range(60):
        months.end(number)
    january, february = list(range(30, 19, -1)), list(range(56, 30, -1))
    older = {
        "index-2026-02-2.html": february[:6],
        "index-2026-02.html": february[6:],
        "index-2026-01-2.html": january,
        "index-2026-01.html": list(range(19, -1, -1)),
    }
    months.until([59, 58, 57], older)
    written = {name: (tmp_path / name).stat().st_ino for name in older}
    months.end(60)
    months.until([60, 59, 58, 57], older)
    assert {name: (tmp_path / name).stat().st_ino for name in older} == written
    months.end(61)
    older["index-2026-02-2.html"] = [58, 57, *february[:6]]
    months.until([61, 60, 59], older)
    assert [name for name in older if (tmp_path / name).stat().st_ino != written[name]] == ["index-2026-02-2.html"]
    months.gallery.hear("job33-0123456789ab", {"state": "pending"})
    older["index-2026-02.html"], older["index-2026-02-2.html"] = [51, *february[6:-3], 32, 31], [58, 57, *february[:5]]
    months.until([61, 60, 59], older)

    # The next daemon finds them by their status files alone, and clears up after one that was killed.
    months.gallery.close()
    (tmp_path / ".index.html.0a1b2c3d.tmp").touch()
    (tmp_path / "index-2025-12.html").write_bytes((tmp_path / "index-2026-01.html").read_bytes())
    (tmp_path / "index-2025-11.html").write_text("my own")
    for number in range(20):
        (tmp_path / f"job{number}-0123456789ab{status.SUFFIX}").unlink()
    again = Months(tmp_path)
    again.until(
        [61, 60, 59],
        {
            "index-2026-02-2.html": [58, 57, *february[:6]],
            "index-2026-02.html": february[6:],
            "index-2026-01.html": january,
        },
    )
    again.gallery.close()
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith((".", "index-"))}
    assert left == {"index-2025-11.html", "index-2026-01.html", "index-2026-02.html", "index-2026-02-2.html"}


def test_a_step_alone_is_not_worth_a_page(tmp_path: Path) -> None:
    months = Months(tmp_path)
    job, body = "beach-0123456789ab", {"state": "processing", "progress": {"section": 1, "sections": 2, "step": 1}}
    seen: list[int] = []

    class Asked(Line):
        def everyone(self) -> list[tuple[int, str, str]]:
            seen.append(1)
            return []

    months.line = Asked()
    for step, section, writes in ((1, 1, 1), (2, 1, 1), (25, 1, 1), (1, 2, 2)):
        body["progress"] = {"section": section, "sections": 2, "step": step}
        months.gallery.hear(job, body)
        months.gallery._look_at = 0.0
        months.look()
        assert len(seen) == writes
    body["progress"] = {"section": 3, "sections": 3, "step": 1}
    months.gallery.hear(job, body)
    months.look()  # at once after the last: the line, which may be long, is not copied again so soon
    assert len(seen) == writes
    months.gallery.close()
