"""The gallery opened from its folder, as from a share: videos play in place, on a desk and a phone, light and dark.

Screenshots lie in `build/gallery/`, to be looked at.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import browser
import pytest
from lab import Lab
from playwright.sync_api import Page, sync_playwright

from framepack_daemon.job import State

SHOTS = Path(__file__).parents[2] / "build" / "gallery"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
# How wide a video's poster is, once it is there.
POSTER = "async v => { const i = new Image(); i.src = v.poster; if (v.poster) await i.decode(); return i.naturalWidth }"
PROMPT = "The surf rolls in, and she turns round and walks away along the beach until she is out of sight. " * 2


@pytest.fixture
def gallery(lab: Lab) -> Path:
    """A copy of outputs with everything in the gallery that there may be; its page."""
    browser.find()
    lab.start(gallery="true", threads=1)
    lab.drop("beach", prompt=PROMPT, width=128, height=96)
    lab.drop("forêt brumeuse au petit matin 霧の森", prompt="霧がゆっくりと晴れていく。", frames=40)
    lab.drop("upright", prompt="waves")
    for stem in ("beach", "forêt", "upright"):
        lab.ended(stem)
    lab.drop("IMG_20261031_whatsapp_from_my_aunt_in_the_mountains", seconds=-3)
    lab.drop("without", loras=[{"name": "film-grain.safetensors"}])
    lab.ended("without", State.FAILED)
    lab.drop("given up", frames=3600)
    job = lab.until(lambda: lab.jobs(State.PROCESSING, "given"), "the job to start")[0]
    lab.until((lab.outputs / f"{job}.preview.mp4").exists, "the preview")
    lab.command("cancel", job)
    lab.ended("given", State.FAILED)
    lab.drop("long", frames=3600, width=128, height=96)
    job = lab.until(lambda: lab.jobs(State.PROCESSING, "long"), "the job to start")[0]
    for stem in ("next", "after that", "later"):
        lab.drop(stem)
    lab.command("pause")
    page = lab.outputs / "index.html"
    wanted = [f"{job}.preview.mp4", "Paused", "later", "Cancelled", "Failed", "Refused", "upright"]
    lab.until(lambda: all(word in page.read_text() for word in wanted), "everything to be on the page")
    shutil.copytree(lab.outputs, lab.root / "share")
    lab.end()
    return lab.root / "share" / "index.html"


def test_a_gallery_plays_from_its_folder(gallery: Path) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser.find(), args=[*browser.FLAGS[1:]])
        for name, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                context = chromium.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme, is_mobile=name == "phone"
                )
                _visit(context.new_page(), gallery, SHOTS / f"{name}-{scheme}.png")
                context.close()
        chromium.close()


def _visit(page: Page, gallery: Path, shot: Path) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    # Of a preview, the browser takes no more than it needs for its first frame.
    page.on("requestfailed", lambda request: "ABORTED" in request.failure or said.append(request.failure))
    page.goto(gallery.as_uri())
    _until(page, "[...document.querySelectorAll('video:not([poster])')].every(v => v.readyState > 1)")
    for video in page.locator("video").all():
        video.scroll_into_view_if_needed()  # what is not in view is not loaded
        video.evaluate(POSTER)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=shot, full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the window"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 384) == shot.stem.endswith("dark")

    videos = page.locator("video[poster]")
    assert videos.count() == 3
    first = videos.first
    assert first.evaluate("v => v.readyState") == 0  # nothing of it is loaded but its poster
    assert first.evaluate(POSTER) > 0
    first.focus()
    page.keyboard.press(" ")
    _until(page, "document.querySelector('video[poster]').currentTime > 0.2")
    assert first.evaluate("v => v.videoWidth") > 0
    assert not said, said


def _until(page: Page, condition: str) -> None:
    """Wait for a condition; by asking, since the page's policy lets nothing run in it."""
    end = time.monotonic() + browser.PATIENCE_SECONDS
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"waited in vain for {condition}"
        time.sleep(0.05)
