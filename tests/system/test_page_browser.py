"""The page in a real Chromium, on a real gateway and daemon: what a new user does, and what survives while it changes.

Nothing but loopback can be reached from the browser, and a word on its console fails the test. Screenshots lie in
`build/page/`, to be looked at.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import browser
import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import paint
from lab import QUICK, Lab
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from served import Served, finish, folders, served, until
from tabs import Tab

from framepack_daemon.job import State

SHOTS = Path(__file__).parents[2] / "build" / "page"
SIZES = {"desktop": {"width": 1366, "height": 900}, "phone": {"width": 390, "height": 844}}
LOCALES = {"en": "en-GB", "ja": "ja-JP"}
PATIENCE_MS = 90_000
MINUTE_SECONDS = 60  # of updates that something has to survive
UPDATES = 10  # the same, after a restart
TABS = 8  # a browser keeps six connections to a host
CONTROLS = """[...document.querySelectorAll("a[href], button, input, select, textarea, summary, video[controls]")]
    .filter(each => !each.disabled && each.type != "hidden" && each.checkVisibility())"""
# Beside those of `browser`: no name leads anywhere, and no address but this machine's.
FLAGS = [*browser.FLAGS[1:], "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
EXPECTED = re.compile(r"ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|Failed to fetch|network error")  # in a restart


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = browser.find()
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def gate(lab: Lab, tmp_path: Path) -> Iterator[Served]:
    folders = {name: lab.settings[name] for name in ("inbox", "outputs", "work_dir")}
    (lab.root / "loras").mkdir()
    (lab.root / "loras" / "ink.safetensors").write_bytes(b"")
    with served(lab.root, tmp_path / "gateway.log", **folders) as gateway:
        yield gateway


class Visit:
    """A page that is open, and everything that it asked for and complained of."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.axe = Axe()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.add_init_script(
            "window.updates = 0; document.addEventListener('htmx:sse:after:message', () => window.updates++)"
        )
        self.page.goto(url)
        self.url = url

    def updated(self, times: int) -> None:
        """Wait for so many updates."""
        goal = self.page.evaluate("window.updates") + times
        self.page.wait_for_function("goal => window.updates >= goal", arg=goal, timeout=PATIENCE_MS)

    def see(self, name: str) -> None:
        """Take a screenshot, and see that nothing is wider than the window, and nothing in the way of anybody."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} scrolls sideways by {wide} pixels"
        found = self.axe.run(self.page, options={"resultTypes": ["violations"]}).response["violations"]
        grave = [each for each in found if each["impact"] in ("serious", "critical")]
        assert not grave, [(each["id"], each["help"], [node["target"] for node in each["nodes"]]) for each in grave]

    def close(self, *, restarted: bool = False) -> None:
        """See that nothing was asked of another host, and nothing complained of."""
        assert [url for url in self.asked if not url.startswith((self.url, "data:", "blob:"))] == []
        assert [text for text in self.said if not (restarted and EXPECTED.search(text))] == []
        self.page.close()


def visit(chromium: Browser, gate: Served, size: str = "desktop", scheme: str = "light", language: str = "en") -> Visit:
    context = chromium.new_context(viewport=SIZES[size], color_scheme=scheme, locale=LOCALES[language])
    return Visit(context, f"{gate.url}/")


def look_everywhere(chromium: Browser, gate: Served, name: str, *, settings: bool = False) -> None:
    """Screenshots at both sizes, light and dark, in both languages."""
    for size, scheme, language in (
        ("desktop", "light", "en"), ("desktop", "dark", "ja"), ("phone", "light", "ja"), ("phone", "dark", "en"),
    ):  # fmt: skip
        seen = visit(chromium, gate, size, scheme, language)
        seen.page.wait_for_function("() => window.updates > 0")
        if settings:
            for each in seen.page.query_selector_all("#form summary"):
                each.click()
        seen.page.wait_for_function("() => [...document.images].every(image => image.complete)")
        seen.see(f"{name}-{size}-{scheme}-{language}")
        seen.close()


def test_the_way_of_a_new_user(chromium: Browser, gate: Served, lab: Lab, tmp_path: Path) -> None:
    look_everywhere(chromium, gate, "1-empty", settings=True)
    here = visit(chromium, gate)
    page = here.page
    assert "The daemon does not run" in page.inner_text("#notices")
    names = ("a harbour at dusk", "花子の肖像")
    page.set_input_files("#field-image", [paint(tmp_path / f"{name}.png", 320, 240) for name in names])
    page.wait_for_function("() => document.querySelectorAll('#picked img').length == 2")
    page.fill("#field-prompt", "Boats rock gently on the water, and the lights come on one by one along the quay.")
    page.get_by_text("Quick prompts", exact=True).click()
    page.get_by_role("button", name="Save this prompt").click()
    page.get_by_role("button", name="Remove: Boats").wait_for()
    page.fill("#field-prompt", "")
    page.locator("[data-prompt]").last.click()
    assert page.input_value("#field-prompt").startswith("Boats rock gently")
    page.get_by_role("button", name="Remove: A character").click()
    page.wait_for_function("() => document.querySelectorAll('[data-prompt]').length == 2")
    page.get_by_text("More parameters", exact=True).click()
    for field, value in (("width", QUICK["width"]), ("height", QUICK["height"]), ("frames", QUICK["frames"])):
        page.fill(f"#field-{field}", str(value))
    page.get_by_text("Parameters", exact=True).click()
    page.fill("#field-num_inference_steps", "1")
    page.get_by_role("button", name="Add to Queue").click()
    page.wait_for_function("() => document.querySelectorAll('#queue-cards .job').length == 2")
    assert "Entered" in page.inner_text("#said")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    lab.drop("torn", num_inference_steps=500)
    lab.start(threads=1)
    page.wait_for_selector("#failed-cards .job")
    assert page.is_hidden("#notice-stopped")
    look_everywhere(chromium, gate, "2-paused")
    # Start Generation goes on with the queue.
    page.get_by_role("button", name="Start Generation").click()
    page.wait_for_selector("#finished-cards .job >> nth=3")
    page.wait_for_selector("#queue-empty")
    look_everywhere(chromium, gate, "3-finished")
    page.locator("#finished-cards video").first.evaluate("video => video.play()")
    assert page.locator("#finished-cards video").first.evaluate("video => video.videoWidth") == QUICK["width"]
    page.get_by_role("button", name="Again with these settings").first.click()
    page.wait_for_selector("#form-again")
    assert page.input_value("#field-frames") == str(QUICK["frames"])
    assert page.get_attribute("#field-image", "required") is None
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").first.click()
    assert download.value.suggested_filename.endswith(".mp4")
    here.close()


def test_what_plays_and_what_is_typed_survives_updates_a_move_and_a_restart(
    chromium: Browser, gate: Served, lab: Lab, picture: Path
) -> None:
    gate.add(picture, QUICK, "done.png")
    lab.start(threads=1)
    lab.ended("done")
    running = gate.add(picture, QUICK | {"num_inference_steps": 100, "frames": 3601}, "running.png")
    lab.until(lambda: lab.jobs(State.PROCESSING), "the long job to run")
    for name in ("first", "second", "third"):
        gate.add(picture, QUICK, f"{name}.png")
    here = visit(chromium, gate)
    page = here.page
    page.wait_for_function("() => document.querySelectorAll('#queue-cards .job').length == 4")
    card = functools.partial(page.get_by_role, "article")
    video = page.locator("#finished-cards video")
    video.evaluate("video => { video.loop = true; video.mark = 'mine'; return video.play(); }")
    video.evaluate("video => { video.turns = 0; video.addEventListener('seeked', () => video.turns++); }")
    page.get_by_role("button", name="Move up").last.evaluate("button => { button.mark = 'mine'; }")
    page.fill("#field-prompt", "half of a sent")
    page.evaluate("document.getElementById('field-prompt').setSelectionRange(3, 7)")

    def survived(times: int) -> None:
        turns = video.evaluate("video => video.turns")
        here.updated(times)
        page.wait_for_function("turns => document.querySelector('#finished-cards video').turns > turns", arg=turns)
        assert video.evaluate("video => [video.mark, video.paused]") == ["mine", False]
        assert page.evaluate("document.activeElement.id") == "field-prompt"
        assert page.input_value("#field-prompt") == "half of a sent"
        assert page.evaluate("[document.activeElement.selectionStart, document.activeElement.selectionEnd]") == [3, 7]

    end = time.monotonic() + MINUTE_SECONDS
    while time.monotonic() < end:
        survived(1)
    # Moved from elsewhere, so that the focus stays where it is; and a job that goes, and one that comes.
    third = lab.jobs(State.PENDING, "third")[0]
    gate.client.patch(f"/jobs/{third}", json={"priority": 9}).raise_for_status()
    gate.add(picture, QUICK, "fourth.png")
    lab.command("remove", lab.jobs(State.PENDING, "second")[0])
    page.wait_for_function(
        "() => [...document.querySelectorAll('#queue-cards h3')].map(each => each.textContent).join() == "
        "'running,third,first,fourth'"
    )
    assert card(name="third").get_by_role("button", name="Cancel").count() == 1
    survived(1)
    # A gateway that is killed and comes back at the same place.
    gate.process.kill()
    gate.process.wait()
    page.wait_for_selector("#offline", state="visible")
    assert video.evaluate("video => [video.mark, video.paused]") == ["mine", False]
    gate.start(port=gate.port)
    page.wait_for_selector("#offline", state="hidden")
    survived(UPDATES)
    # By keyboard: the button keeps the focus while its card moves.
    button = card(name="fourth").get_by_role("button", name="Move up")
    button.evaluate("button => { button.mark = 'mine'; button.focus(); }")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('#queue-cards h3')[2].textContent == 'fourth'")
    assert page.evaluate("document.activeElement.mark") == "mine"
    card(name="running").get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#failed-cards .job")
    assert lab.jobs(State.FAILED) == [running]
    here.close(restarted=True)


def test_a_model_that_is_missing_says_how_to_get_it(chromium: Browser, gate: Served, lab: Lab, tmp_path: Path) -> None:
    gate.add(lab.picture, QUICK | {"model": "framepack-i2v"})
    lab.start(memory="resident", models_dir=tmp_path / "none")
    here = visit(chromium, gate)
    here.page.wait_for_selector("#notice-model")
    assert here.page.inner_text("#notice-model li") == "framepack-daemon models pull framepack-i2v"
    here.close()
    look_everywhere(chromium, gate, "4-no-model")


def test_the_tab_key_reaches_every_control_in_the_order_of_the_page(
    chromium: Browser, gate: Served, picture: Path
) -> None:
    with folders(gate, picture) as bench:
        finish(bench, gate.add(picture, QUICK, "done.png"))
        gate.client.post(f"/cancel/{gate.add(picture, QUICK, 'cancelled.png')}").raise_for_status()
        for name in ("first", "second"):
            gate.add(picture, QUICK, f"{name}.png")
        here = visit(chromium, gate)
        here.page.wait_for_function("() => window.updates > 0")
        for each in here.page.query_selector_all("summary"):
            each.click()
        count = here.page.evaluate(f"{CONTROLS}.map((each, place) => each.place = place).length")
        here.page.evaluate(f"{CONTROLS}[0].focus()")
        reached = {0: None}  # in their order; a video has several things to reach in it
        for _ in range(2 * count):
            here.page.keyboard.press("Tab")
            reached[here.page.evaluate("document.activeElement.place ?? -1")] = None
        assert [place for place in reached if place >= 0] == list(range(count))
        here.close()


def test_no_tab_but_the_one_that_is_seen_has_a_connection(chromium: Browser, gate: Served, picture: Path) -> None:
    def streams() -> int:
        """Connections to the gateway; those without a stream it closes after some seconds."""
        found = psutil.Process(gate.process.pid).net_connections("tcp")
        return sum(1 for each in found if each.status == psutil.CONN_ESTABLISHED)

    session = chromium.new_browser_cdp_session()
    tabs = [Tab(session, f"{gate.url}/") for _ in range(TABS)]
    until(lambda: streams() == 1)
    gate.add(picture, QUICK)
    for tab in tabs:
        tab.show()
        until(lambda tab=tab: tab.evaluate("document.querySelectorAll('#queue-cards .job').length") == 1)
    until(lambda: streams() == 1)
    for tab in tabs:
        tab.close()
