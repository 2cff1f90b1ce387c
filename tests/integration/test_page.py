"""The page as it is served: its words, what it loads, what hostile texts become, and what its forms do to the queue."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import paint
from lab import Lab
from pydantic import SecretStr
from starlette.testclient import TestClient

from framepack_daemon import atomic
from framepack_daemon.job import Role, State
from framepack_daemon.request import Request
from framepack_daemon.settings import Settings
from framepack_daemon.spool import moves, troubles
from framepack_daemon.spool.lock import QUEUE_LOCK, FolderLock
from framepack_daemon.spool.queue import Queue
from framepack_daemon.web import app, page, page_form, page_stream, page_words
from framepack_daemon.web.gateway import Gateway
from framepack_daemon.web.settings import WebSettings

VENDORED = page.STATIC / "vendor"
HTMX = {"HX-Request": "true"}
HOSTILE = "</textarea><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
LANGUAGES = {"en": "Start Generation", "ja": "生成を開始"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    folders = {"inbox": tmp_path / "inbox", "outputs": tmp_path / "outputs", "work_dir": tmp_path / "work"}
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "ink & paper.safetensors").write_bytes(b"")
    return Settings(**folders)


@pytest.fixture
def queue(settings: Settings) -> Queue:
    return Queue(settings.queue_dir)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(app.create(settings, WebSettings()), base_url="http://127.0.0.1:8000") as found:
        yield found


class Read(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def filled(self) -> dict[str, str]:
        """What the form would send, without what has a text inside."""
        return {
            attributes["name"]: attributes.get("value", "")
            for tag, attributes in self.tags
            if tag == "input" and "name" in attributes and attributes.get("type") not in ("file", "checkbox")
        }


def enter(client: TestClient, *pictures: Path, headers: dict[str, str] = HTMX, **fields: str) -> str:
    files = [("image", (path.name, path.read_bytes(), "image/png")) for path in pictures]
    texts = {"prompt": "waves", "how": "queue", **fields}
    parts = [*((name, (None, text)) for name, text in texts.items()), *files]
    answer = client.post("/page/jobs", files=parts, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


def requests(queue: Queue) -> dict[str, dict]:
    """The requests of the jobs that wait, by stem, in their order."""
    jobs = queue.waiting()
    return {
        job.rpartition("-")[0]: json.loads((queue.path(State.PENDING, job) / "job.json").read_text()) for job in jobs
    }


def test_the_files_of_others_are_what_their_sums_say() -> None:
    packages = tomllib.loads((VENDORED / "vendor.toml").read_text())["package"]
    told = {name: file["sha256"] for package in packages for name, file in package["files"].items()}
    assert {path.name for path in VENDORED.iterdir()} == {*told, "vendor.toml"}
    assert told == {name: hashlib.sha256((VENDORED / name).read_bytes()).hexdigest() for name in told}
    assert all(package["license"] and package["version"] for package in packages)


def test_every_word_is_there_in_both_languages() -> None:
    table = dict(page_words.table())
    helped = table.pop("help")
    for section, key, texts in (
        (section, key, texts) for section, keys in table.items() for key, texts in keys.items()
    ):
        assert len(texts) == len(page_words.LANGUAGES), f"{section}.{key}"
        assert all(texts), f"{section}.{key}"
        assert len({text.count("%s") for text in texts}) == 1, f"{section}.{key}"
    fields = set(Request.model_fields) - {"prompt"}
    assert fields <= set(table["field"])
    assert fields - set(page_form.BY_HAND) <= set(helped)


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("ja,en-US;q=0.9", "ja"),
        ("en-GB,ja;q=0.5", "en"),
        ("fr, ja;q=0.3, en;q=0.4", "en"),
        ("", "en"),
        ("ja;q=x", "ja"),
    ],
)
def test_the_page_speaks_the_language_that_the_browser_likes_best(
    client: TestClient, accepted: str, language: str
) -> None:
    text = client.get("/", headers={"Accept-Language": accepted}).text
    assert f'<html lang="{language}">' in text
    assert LANGUAGES[language] in text


def test_the_page_loads_nothing_from_elsewhere_and_has_no_script_in_it(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    read = Read(answer.text)
    for place in chain(*(read.values(name) for name in ("src", "href", "action", "poster", "hx-get", "hx-post"))):
        assert re.match(r"/(?!/)|#", place), place
    scripts = [attributes for tag, attributes in read.tags if tag == "script"]
    assert all(attributes.get("src") for attributes in scripts)
    assert not {name for _, attributes in read.tags for name in attributes if name == "style" or name.startswith("on")}
    for place in (*read.values("src"), *read.values("href")):
        if place.startswith("/static/"):
            served = client.get(place)
            assert served.status_code == 200, place
            if place.endswith(".css"):
                assert not re.search(r"url\((?!.?data:)|@import", served.text)


def test_hostile_texts_stay_texts(client: TestClient, queue: Queue, settings: Settings, picture: Path) -> None:
    hostile = paint(picture.with_name("a<b onclick=alert(3)>.png"))
    assert "<b" not in enter(client, hostile, prompt=HOSTILE)
    job = queue.waiting()[0]
    request = {"prompt": HOSTILE, "seed": HOSTILE, "model": HOSTILE, "loras": 3}
    status = {"state": "pending", "message": HOSTILE, "request": request}
    (settings.outputs / f"{job}.status.json").write_text(json.dumps(status))
    foreign = "<img src=x onerror=alert(4)>\udcff\u202e"
    queue.path(State.FAILED, foreign).mkdir()
    broken = {"state": "failed", "error": HOSTILE, "progress": [], "video": 1, "request": "x", "preview": 3}
    (settings.outputs / f"{foreign}.status.json").write_text(json.dumps(broken))
    for path in ("/", f"/?from={job}", f"/page/form?from={job}", "/?from=" + quote("../" * 9 + "etc/passwd")):
        read = Read(client.get(path).text)
        assert not [attributes for tag, attributes in read.tags if tag == "script" and "src" not in attributes]
        assert not {name for _, attributes in read.tags for name in attributes if name.startswith("on")}
    text = client.get("/").text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_each_picture_becomes_a_job_with_what_was_filled_in(
    client: TestClient, queue: Queue, tmp_path: Path, picture: Path
) -> None:
    read = Read(client.get("/").text)
    filled = {"num_inference_steps": "7", "seconds": "2.5", "keep_latents": "true", "codec": "av1", "notify": "false"}
    ticked = {"lora:ink & paper.safetensors": "on", "scale:ink & paper.safetensors": "0.8"}
    assert "lora:ink & paper.safetensors" in read.values("name")
    enter(client, picture, paint(tmp_path / "花.png"), **(read.filled() | filled | ticked))
    found = requests(queue)
    assert set(found) == {"beach", "花"}
    for request in found.values():
        assert {**request, "seed": 0} | {
            "num_inference_steps": 7,
            "seconds": 2.5,
            "keep_latents": True,
            "codec": "av1",
            "notify": False,
            "loras": [{"name": "ink & paper.safetensors", "scale": 0.8}],
        } == {**request, "seed": 0}
    assert found["beach"]["seed"] != found["花"]["seed"]


def test_start_goes_before_what_waits_and_ends_a_pause_and_move_up_moves_up(
    client: TestClient, queue: Queue, tmp_path: Path
) -> None:
    first, second, third = (paint(tmp_path / f"{name}.png") for name in ("first", "second", "third"))
    enter(client, first)
    enter(client, second)
    assert client.post("/page/pause", headers=HTMX).status_code == 200
    assert queue.paused
    enter(client, third, how="start")
    assert not queue.paused
    assert list(requests(queue)) == ["third", "first", "second"]
    last = queue.waiting()[-1]
    assert client.post(f"/page/jobs/{quote(last)}/up", headers=HTMX).status_code == 200
    assert list(requests(queue)) == ["third", "second", "first"]


def test_what_cannot_be_entered_says_why_in_the_words_of_the_form_and_enters_nothing(
    client: TestClient, queue: Queue, tmp_path: Path, picture: Path, end_picture: Path
) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(picture.read_bytes()[:100])

    def refused(files: dict[str, list[Path]], *expected: str, **fields: str) -> None:
        parts = [(name, (path.name, path.read_bytes())) for name, paths in files.items() for path in paths]
        texts = [(name, (None, text)) for name, text in ({"prompt": "waves"} | fields).items()]
        answer = client.post("/page/jobs", files=[*texts, *parts], headers=HTMX)
        assert answer.status_code == 422
        assert all(text in answer.text for text in expected), answer.text
        assert queue.waiting() == []

    refused({"image": [picture]}, "Steps: 500 is out of range", "Seed", num_inference_steps="500", seed="<b>x")
    refused({"image": [picture]}, "prompt: is empty", prompt=" ")
    refused({}, "image: is missing")
    refused({"image": [picture, torn]}, "torn")
    refused({"image": [picture, picture], "last_image": [end_picture]}, "last_image: belongs to one picture")


def test_again_fills_the_form_with_a_job_and_takes_its_picture(
    client: TestClient, queue: Queue, picture: Path, end_picture: Path
) -> None:
    end = ("last_image", (end_picture.name, end_picture.read_bytes(), "image/png"))
    prompt = [{"at": 0, "text": "She waves & smiles."}, {"at": 1.5, "text": "She turns."}]
    texts = {"prompt": json.dumps(prompt), "crf": "20", "seed": "5", "seconds": "3"}
    files = [("image", (picture.name, picture.read_bytes())), end, *((k, (None, v)) for k, v in texts.items())]
    assert client.post("/page/jobs", files=files, headers=HTMX).status_code == 200
    job = queue.waiting()[0]
    assert requests(queue)["beach"]["prompt"] == prompt
    assert requests(queue)["beach"]["last_image"]
    text = client.get(f"/page/form?from={quote(job)}").text
    filled = Read(text).filled()
    assert (filled["crf"], filled["seed"], filled["seconds"], filled["image_of"]) == ("20", "5", "3", job)
    enter(client, **(filled | {"prompt": "again", "seed": "6"}))
    again = next(each for each in queue.waiting() if each != job)
    images = [queue.run(State.PENDING, each).file(Role.IMAGE).sha256 for each in (job, again)]
    assert images[0] == images[1]


def test_without_javascript_the_forms_load_the_page_again(client: TestClient, queue: Queue, picture: Path) -> None:
    parts = [("prompt", (None, "waves")), ("image", (picture.name, picture.read_bytes()))]
    answer = client.post("/page/jobs", files=parts, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    job = queue.waiting()[0]
    assert f'formaction="/page/jobs/{quote(job)}/cancel"' in client.get("/").text
    assert client.post(f"/page/jobs/{quote(job)}/cancel", follow_redirects=False).status_code == 303
    assert queue.names(State.FAILED) == [job]
    assert '<span class="state">cancelled</span>' in client.get("/").text
    wrong = client.post("/page/jobs", files=[("prompt", (None, "waves"))], follow_redirects=False)
    assert wrong.status_code == 422
    assert "image: is missing" in wrong.text
    assert "<html" in wrong.text


@pytest.mark.parametrize("language", page_words.LANGUAGES)
def test_each_state_says_what_to_do(
    client: TestClient, settings: Settings, queue: Queue, picture: Path, language: str
) -> None:
    say = page_words.words(language)

    def shows(*keys: str, command: str = "") -> bool:
        text = html.unescape(client.get("/", headers={"Accept-Language": language}).text)
        return all(say(key) in text for key in keys) and f"<code>{command}" in text

    assert shows("queue.stopped", "queue.empty", "gallery.empty", command="framepack-daemon run")
    enter(client, picture)
    job = queue.waiting()[0]
    held = {"state": "pending", "message": "waits: cuda:99: no such device"}
    (settings.outputs / f"{job}.status.json").write_text(json.dumps(held))
    assert not shows("queue.held"), "nobody runs who would know"
    lock = FolderLock(queue.root / QUEUE_LOCK, "the queue")
    assert not shows("queue.stopped")
    assert shows("queue.held", command="framepack-daemon doctor")
    noted = troubles.Troubles(settings.work_dir / troubles.FILE)
    atomic.make_folder(settings.work_dir)
    noted.note("publishing", "No space left on device")
    assert shows("queue.trouble", "queue.trouble_help", command="framepack-daemon doctor")
    moves.pause(queue)
    assert shows("queue.paused")
    moves.cancel(queue, job)
    assert shows("gallery.failed_help")
    lock.release()


def test_a_daemon_without_its_model_has_the_page_say_how_to_get_it(lab: Lab, tmp_path: Path) -> None:
    lab.start(model="framepack-i2v", memory="resident", models_dir=tmp_path / "none")
    lab.drop()
    job = lab.ended("beach", State.PENDING)
    lab.until(lambda: lab.status(job)["message"].startswith("waits: "), "the job to say why it waits")
    settings = Settings(**{name: lab.settings[name] for name in ("inbox", "outputs", "work_dir")})
    with TestClient(app.create(settings, WebSettings()), base_url="http://127.0.0.1:8000") as client:
        for language in page_words.LANGUAGES:
            text = client.get("/", headers={"Accept-Language": language}).text
            assert page_words.words(language)("queue.model") in text
            assert "<li><code>framepack-daemon models pull framepack-i2v</code></li>" in text
            assert 'id="notice-held"' not in text


def test_quick_prompts_are_kept_for_everybody(client: TestClient, settings: Settings, queue: Queue) -> None:
    def change(act: str, **fields: str) -> list[str]:
        answer = client.post(f"/page/prompts/{act}", data=fields, headers=HTMX)
        assert answer.status_code == 200
        return Read(answer.text).values("data-prompt")

    demo = Read(client.get("/").text).values("data-prompt")
    assert "A character doing some simple body movements." in demo
    assert change("save", prompt=f" {HOSTILE}\n") == [*demo, HOSTILE]
    with TestClient(app.create(settings, WebSettings()), base_url="http://127.0.0.1:8000") as other:
        assert Read(other.get("/").text).values("data-prompt") == [*demo, HOSTILE]
    assert change("save", prompt=demo[0]) == [demo[1], HOSTILE, demo[0]]
    assert change("save", prompt="x" * 2000) == [demo[1], HOSTILE, demo[0]]
    for text in (demo[0], demo[1]):
        change("remove", quick=text)
    assert change("remove", quick="no such") == [HOSTILE]
    assert change("remove", quick=HOSTILE) == []
    (queue.root / "quick-prompts.json").write_text("[1, ")
    assert Read(client.get("/").text).values("data-prompt") == demo


def test_an_act_on_what_is_no_job_is_refused(client: TestClient) -> None:
    for job in ("none-123456789abc", "..", "%2e%2e%2fetc"):
        assert client.post(f"/page/jobs/{job}/remove", headers=HTMX).status_code in (404, 405, 422)


def test_a_page_gets_the_whole_board_and_then_the_cards_that_change(
    client: TestClient, settings: Settings, queue: Queue, tmp_path: Path
) -> None:
    """Each change of a status file is one card; one that comes or moves is the board; a new page gets it whole."""
    for name in ("one", "two"):
        enter(client, paint(tmp_path / f"{name}.png"))
    one, two = queue.waiting()

    async def follow() -> None:
        gateway = Gateway(settings, WebSettings())
        async with gateway.feed.running():
            pushes = page.Page(gateway).pushes
            listener, other = pushes.listen("en"), pushes.listen("ja")
            first = await anext(listener)
            assert first.startswith('<hx-partial hx-target="#board"')
            assert all(f"/page/jobs/{job}/cancel" in first for job in (one, two))
            assert "キャンセル" in await anext(other)
            amend(one, "is held up")
            changed = await anext(listener)
            assert re.fullmatch(
                r'<hx-partial hx-target="#card-\w+" hx-swap="outerMorph">.*</hx-partial>', changed, re.DOTALL
            )
            assert "is held up" in changed
            assert changed.count("<hx-partial") == 1
            moves.cancel(queue, two)
            moved = await anext(listener)
            assert 'hx-target="#board"' in moved
            assert f"/page/jobs/{two}/retry" in moved
            late = await anext(pushes.listen("en"))
            assert "is held up" in late

    def amend(job: str, message: str) -> None:
        path = settings.outputs / f"{job}.status.json"
        body = json.loads(path.read_text()) | {"message": message}
        path.with_name(".x.tmp").write_text(json.dumps(body))
        path.with_name(".x.tmp").replace(path)

    asyncio.run(asyncio.wait_for(follow(), 60))


def test_a_listener_that_leaves_ends_the_looking(settings: Settings) -> None:
    async def follow() -> None:
        gateway = Gateway(settings, WebSettings())
        gateway.queue.make()
        async with gateway.feed.running():
            pushes = page_stream.Pushes(page.Page(gateway).reader, page.page_view.board, gateway.feed)
            listener = pushes.listen("en")
            await anext(listener)
            assert pushes._task is not None
            await listener.aclose()
            pushes.ring()
            await pushes._task

    asyncio.run(asyncio.wait_for(follow(), 60))


def test_a_browser_gets_in_with_the_token_as_its_password(settings: Settings) -> None:
    gateway = app.create(settings, WebSettings(token=SecretStr("a:secret")))
    with TestClient(gateway, base_url="http://127.0.0.1:8000") as client:
        asked = client.get("/", headers={"Accept": "text/html"})
        assert (asked.status_code, asked.headers["www-authenticate"]) == (401, 'Basic realm="framepack-daemon"')
        assert client.get("/", auth=("anybody", "a:secret")).status_code == 200
        for wrong in (("anybody", "secret"), ("a", "secret"), ("a:secret", "")):
            assert client.get("/", auth=wrong).status_code == 401
        assert client.get("/", headers={"Authorization": "Basic %%%"}).status_code == 401
