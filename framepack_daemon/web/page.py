"""The page for people: a form, the queue as cards, a gallery of what is finished; pushed as it changes.

`install` adds it to an application. Everything is rendered here and swapped in by htmx; without JavaScript the same
forms work by loading the page again. Knows HTTP and who does what, and leaves folders, words and HTML to its siblings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from sse_starlette import EventSourceResponse

from framepack_daemon import loras
from framepack_daemon.errors import FramepackError
from framepack_daemon.printable import printable
from framepack_daemon.spool import moves
from framepack_daemon.web import page_form, page_jobs, page_prompts, page_view, page_words
from framepack_daemon.web.gateway import Gateway
from framepack_daemon.web.page_board import Card, Reader
from framepack_daemon.web.page_stream import Pushes
from framepack_daemon.web.uploads import received

STATIC = Path(__file__).with_name("static")
FILES, SEVERAL = ("image", "last_image"), ("image",)  # parts of the form that are files; several come at once
MAX_PARTS = 500  # of the form: a field for everything in the schema, two for each LoRA, the pictures
MAX_FIELD_BYTES = 1 << 16
PING_SECONDS = 15  # between two signs of life on a stream

router = APIRouter(include_in_schema=False)
Accepted = Annotated[str, Header(alias="accept-language")]


class Page:
    """What the page's addresses share in one application."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.settings, self.queue = gateway.settings, gateway.queue
        self.reader = Reader(self.settings, self.queue)
        self.pushes = Pushes(self.reader, page_view.board, gateway.feed)


def install(app: FastAPI) -> None:
    """Add the page and its files to the application of a gateway."""
    app.state.page = Page(app.state.gateway)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _page(request: Request) -> Page:
    page = request.app.state.page
    assert isinstance(page, Page)
    return page


@router.get("/")
def index(request: Request, accepted: Accepted = "", like: Annotated[str, Query(alias="from")] = "") -> HTMLResponse:
    """The whole page; its form has the settings of the job that `from` names."""
    return _whole(_page(request), page_words.best_language(accepted), like=like)


@router.get("/page/form")
def form(request: Request, accepted: Accepted = "", like: Annotated[str, Query(alias="from")] = "") -> HTMLResponse:
    """The form alone."""
    language = page_words.best_language(accepted)
    return _html(page_view.render("form.html", language, **_form_values(_page(request), language, like)))


@router.get("/page/events")
async def events(request: Request, accepted: Accepted = "") -> EventSourceResponse:
    """The stream of fragments that keeps a page as things are."""
    fragments = _page(request).pushes.listen(page_words.best_language(accepted))

    async def messages() -> AsyncIterator[dict[str, str]]:
        async for text in fragments:
            yield {"data": text}

    return EventSourceResponse(messages(), ping=PING_SECONDS, headers={"Cache-Control": "no-store"})


@router.post("/page/jobs")
async def enter(request: Request, accepted: Accepted = "") -> Response:
    """Enter what was filled in."""

    async def do(page: Page, language: str) -> str:
        async with received(request, page.gateway, FILES, several=SEVERAL, max_parts=MAX_PARTS) as upload:
            form, files = upload.fields, upload.all_files
            fields = page_form.sidecar(form)
            like, first = form.get("image_of", ""), form.get("how") == "start"
            jobs = await asyncio.to_thread(page_jobs.enter, page.gateway, fields, files, like, first=first)
        return page_words.words(language)("said.entered", ", ".join(jobs))

    return await _answer(request, accepted, "error", do)


@router.post("/page/jobs/{job}/{act}")
async def act(
    request: Request, job: str, act: Literal["interrupt", "cancel", "retry", "remove", "up"], accepted: Accepted = ""
) -> Response:
    """Do what a card's button says."""

    async def do(page: Page, _: str) -> str:
        page.gateway.expect()
        return await asyncio.to_thread(page_jobs.ACTS[act], page.queue, job)

    return await _answer(request, accepted, "refused", do)


@router.post("/page/prompts/{act}")
async def prompts(request: Request, act: Literal["save", "remove"], accepted: Accepted = "") -> HTMLResponse:
    """Keep or forget a quick prompt; the list of them."""
    page, problem = _page(request), ""
    text = await _field(request, "prompt" if act == "save" else "quick")
    try:
        page.gateway.expect()
        await asyncio.to_thread(page_prompts.save if act == "save" else page_prompts.remove, page.queue, text)
    except FramepackError as error:
        problem = "; ".join(filter(None, (error.message, error.hint)))
    values = {"prompts": page_prompts.read(page.queue), "problem": problem, "open": True}
    return _html(page_view.render("prompts.html", page_words.best_language(accepted), **values))


@router.post("/page/{act}")
async def pause(request: Request, act: Literal["pause", "resume"], accepted: Accepted = "") -> Response:
    """Pause the queue, or have it go on."""

    async def do(page: Page, _: str) -> str:
        page.gateway.expect()
        return await asyncio.to_thread(moves.pause if act == "pause" else moves.resume, page.queue)

    return await _answer(request, accepted, "refused", do)


async def _field(request: Request, name: str) -> str:
    """A field of a small form; empty when it is none, or has more than a prompt could."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FIELD_BYTES:
            return ""
    return parse_qs(body.decode(errors="replace")).get(name, [""])[0]


async def _answer(request: Request, accepted: str, title: str, do: Callable[[Page, str], Awaitable[str]]) -> Response:
    """What came of it: a fragment for htmx, another page for others."""
    page, language = _page(request), page_words.best_language(accepted)
    status = HTTPStatus.OK
    said: dict[str, Any] = {"text": "", "error": [], "title": title}
    try:
        said["text"] = printable(await do(page, language))
    except FramepackError as error:
        status = getattr(error, "status", HTTPStatus.UNPROCESSABLE_ENTITY)
        said["error"] = [page_form.relabelled(language, text) for text in (error.message, error.hint) if text]
    except OSError as error:
        status = HTTPStatus.SERVICE_UNAVAILABLE
        said["error"] = [f"the queue cannot be used: {error.strerror}"]
    page.pushes.ring()
    if "hx-request" in request.headers:
        return _html(page_view.render("said.html", language, **said), status)
    if said["error"]:
        return await asyncio.to_thread(_whole, page, language, said=said, status=status)
    return RedirectResponse("/", HTTPStatus.SEE_OTHER)


def _whole(page: Page, language: str, *, like: str = "", **more: Any) -> HTMLResponse:
    """The page with everything in it."""
    status = more.pop("status", HTTPStatus.OK)
    values = _form_values(page, language, like) | more
    values["board"] = page_view.board(language, page.reader.board()).whole
    folders = {"inbox": printable(page.settings.inbox), "outputs": printable(page.settings.outputs)}
    return _html(page_view.render("page.html", language, **values, **folders), status)


def _form_values(page: Page, language: str, like: str) -> dict[str, Any]:
    """What the form's template needs; filled with the settings of the job `like`, if there is such a one."""
    card = _card(page, like)
    request = card.request if card else {}
    return {
        "again": card,
        "fields": page_form.fields(language, request),
        "prompt": page_form.prompt_text(request.get("prompt") or page_words.words(language)("form.prompt_default")),
        "loras": [name for name in loras.names(page.settings.loras_dir) if printable(name) == name],
        "loras_dir": printable(page.settings.loras_dir),
        "scales": {lora["name"]: lora["scale"] for lora in request.get("loras", [])},
        "said": None,
        "prompts": page_prompts.read(page.queue),
        "problem": "",
        "open": False,
    }


def _card(page: Page, job: str) -> Card | None:
    """The job's card; None without such a job."""
    state = page.queue.state_of(job) if job else None
    return page.reader.card(state, job) if state else None


def _html(text: str, status: int = HTTPStatus.OK) -> HTMLResponse:
    return HTMLResponse(text, status, headers=page_view.HEADERS)
