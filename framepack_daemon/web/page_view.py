"""Turns boards, forms and answers into HTML; every text is escaped by Jinja, none of it is put together by hand.

Knows the templates and the words, neither requests nor folders.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from framepack_daemon.web import page_form, page_stream, page_words
from framepack_daemon.web.page_board import WAITING, Board, Card

TEMPLATES = Path(__file__).with_name("templates")
# Nothing but files of our own, and no script in the page; pico's stylesheet has small pictures as data in it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept-Language",
}
# An attribute `open` is the reader's doing, which no update undoes.
HTMX = (
    '{"sse": {"reconnectMaxDelay": 5000}, "morphIgnore": ["data-htmx-powered", "open"], "mode": "same-origin",'
    ' "history": false}'
)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, language: str, **values: Any) -> str:
    """A template filled in; what is no character (half a surrogate pair, from a record) becomes a question mark."""
    known = {
        "say": page_words.words(language),
        "language": language,
        "prompt_text": page_form.prompt_text,
        "htmx": HTMX,
    }
    known |= {"lora_prefix": page_form.LORA, "scale_prefix": page_form.SCALE, "scale_limits": page_form.SCALE_LIMITS}
    text = _environment().get_template(template).render(known | values)
    return text.encode("utf-8", "replace").decode()


def board(language: str, found: Board) -> page_stream.Rendered:
    """A board, whole and card by card."""
    cards = {card.key: _card(language, card) for card in (*found.queue, *found.failed, *found.finished)}
    whole = render("board.html", language, board=found, cards=cards, waiting_rows=WAITING)
    return page_stream.Rendered(page_stream.frame(found), whole, {key: str(text) for key, text in cards.items()})


def _card(language: str, card: Card) -> Markup:
    template = "card_done.html" if card.state == "done" else "card.html"
    return Markup(render(template, language, each=card))  # noqa: S704 by Jinja
