"""The gallery's HTML: a card or a line for what a status file says, and pages made of them.

Strings of the standard library: each text passes `_text` and each address `_address`, and the daemon is spared a
template engine. English alone, and in few words: a page without a script cannot ask for the reader's language. Times
are those of this machine's zone. Pure; knows neither folders nor when a page is written.
"""

from __future__ import annotations

import base64
import hashlib
import html
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from framepack_daemon.job import Outcome, State
from framepack_daemon.printable import printable

MARK = b'<meta name="generator" content="framepack-daemon">'  # by which the daemon knows its own pages
TEXT_CHARACTERS = 300  # of a prompt or a reason that are shown
FRONT = "index.html"

_STYLE = """
:root { --ground: #f6f7f9; --card: #fff; --text: #1c2430; --dim: #5a6575; --line: #d9dee6; --link: #0b62c4;
  --bad: #b3261e; --busy: #0b62c4; --note: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161c; --card: #1b212a; --text: #e4e8ee; --dim: #9aa6b6;
  --line: #313a47; --link: #7db7ff; --bad: #ff9a91; --busy: #7db7ff; --note: #3a3115; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1.25rem; background: var(--ground); color: var(--text);
  font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
header { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; gap: .25rem 1.5rem; }
h1 { margin: 0; font-size: 1.6rem; }
h2 { margin: 2rem 0 .75rem; font-size: 1.2rem; }
h3 { margin: 0; font-size: 1rem; }
p { margin: 0; }
a { color: var(--link); }
ol, ul { margin: 0; padding: 0; list-style: none; }
.dim { color: var(--dim); }
.note { margin-top: 1rem; padding: .6rem .9rem; border-radius: .5rem; background: var(--note); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 1rem; }
.card { display: flex; flex-direction: column; overflow: hidden; border: 1px solid var(--line); border-radius: .6rem;
  background: var(--card); }
.card > div { display: flex; flex-direction: column; gap: .3rem; padding: .7rem .85rem .8rem; }
.card p { font-size: .9rem; }
video { display: block; width: 100%; aspect-ratio: 4 / 3; background: #000; object-fit: contain; }
.card > .box { flex: 1 0 auto; justify-content: center; gap: .5rem; min-height: 9rem; padding: 1rem;
  border-bottom: 1px solid var(--line); text-align: center; }
.clip { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
* + .cards, * + .line { margin-top: 1rem; }
h2 + .cards, h2 + .line { margin-top: 0; }
.line { border: 1px solid var(--line); border-radius: .6rem; background: var(--card); }
.line li { display: flex; flex-wrap: wrap; gap: .1rem .75rem; padding: .5rem .85rem; }
.line li + li { border-top: 1px solid var(--line); }
.line b { min-width: 1.5rem; color: var(--dim); font-weight: normal; font-variant-numeric: tabular-nums; }
.busy { color: var(--busy); } .bad { color: var(--bad); }
.card .facts { display: flex; flex-wrap: wrap; gap: 0 .6rem; margin-top: auto; font-size: .85rem; }
video + div { flex: 1; }
progress { width: 100%; accent-color: var(--busy); }
nav ul { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; }
"""
_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        # From a folder, and from a web server that somebody puts before it.
        "img-src 'self' file:",
        "media-src 'self' file:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)


@dataclass(frozen=True)
class Card:
    """What a page shows of one job."""

    html: str
    file: str | None = None  # the video in it; without that it is not worth showing


def page(title: str, body: Iterable[str], *, back: bool = False) -> str:
    """A whole page; `back` for one that is not the front."""
    link = f'<a href="{FRONT}">{"Newest" if back else "Reload"}</a>'
    return "\n".join(
        (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            MARK.decode(),
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
            f'<header><h1>{_text(title)}</h1><p class="dim">as of {_clock(time.time())} · {link}</p></header>',
            *body,
            "</body></html>\n",
        )
    )


def notice(text: str) -> str:
    """A line about the daemon that the reader should see first."""
    return f'<p class="note" role="status">{_text(text)}</p>'


def queue(running: Sequence[Card], waiting: Sequence[Card], more: int) -> list[str]:
    """The jobs that run, those that wait in their order, and how many more of these there are."""
    if not running and not waiting:
        return ["<h2>Queue</h2>", '<p class="dim">Nothing waits.</p>']
    lines = [f"<li><b>{number}.</b>{card.html}</li>" for number, card in enumerate(waiting, 1)]
    rest = f'<li class="dim">and {more:,} more</li>' if more else ""
    return [
        "<h2>Queue</h2>",
        *(cards(running) if running else []),
        *([f'<ol class="line">{"".join(lines)}{rest}</ol>'] if lines or rest else []),
    ]


def finished(ended: Sequence[Card]) -> list[str]:
    """The jobs that ended, newest first."""
    return ["<h2>Finished</h2>", *(cards(ended) if ended else ['<p class="dim">Nothing yet.</p>'])]


def cards(shown: Iterable[Card]) -> list[str]:
    """Cards side by side."""
    return [f'<ul class="cards">{"".join(each.html for each in shown)}</ul>']


def older(names: Iterable[str]) -> list[str]:
    """Links to the pages of earlier months, newest first."""
    links = "".join(f'<li><a href="{_address(name)}">{_text(month(name))}</a></li>' for name in names)
    return [f"<nav><h2>Older</h2><ul>{links}</ul></nav>"] if links else []


def month(name: str) -> str:
    """What the page of that name (`index-2026-10.html`, `index-2026-10-2.html`) is called."""
    parts = name.removesuffix(".html").split("-")[1:]
    return "-".join(parts[:2]) + (f" ({parts[2]})" if parts[2:] else "")


def waits(job: str, body: Mapping[str, Any]) -> Card:
    """A line of the queue."""
    return Card(f'<bdi>{_text(_name(job))}</bdi><span class="dim" dir="auto">{_text(body.get("message"))}</span>')


def runs(job: str, body: Mapping[str, Any]) -> Card:
    """A job on a worker, with what there is to see of it."""
    progress = _table(body, "progress")
    fraction, section = progress.get("fraction"), progress.get("section")
    reason = f"section {section} of {progress.get('sections')}" if section else body.get("message")
    bar = ""
    if isinstance(fraction, (int, float)) and 0 <= fraction <= 1:
        bar = f'<progress value="{fraction:.3f}" aria-label="rendered">{fraction:.0%}</progress>'
        reason = f"{reason}, {fraction:.0%}"
    seen = body.get("preview")
    video = _video(job, seen) if isinstance(seen, str) else '<div class="box dim">no preview yet</div>'
    words = f'<p><span class="busy">Rendering</span> · {_text(reason)}</p>'
    return Card(_card(video, job, words + bar, body))


def ended(job: str, body: Mapping[str, Any]) -> Card | None:
    """A job that is done, failed or was cancelled; None where nothing is said of it."""
    if not body:
        return None
    when = f"<span>{_clock(ended_at(body))}</span>"
    if body.get("state") == State.DONE:
        video = _table(body, "video")
        file = str(video.get("file") or f"{job}.mp4")
        seconds = video.get("seconds")
        length = f"<span>{seconds:.1f} s</span>" if isinstance(seconds, (int, float)) else ""
        facts = f'<p class="facts dim">{when}{length}<a href="{_address(file)}">open</a></p>'
        return Card(_card(_video(job, file, f"{job}.poster.jpg"), job, facts, body), file)
    error = _table(body, "error")
    reason = f'<p dir="auto">{_text(error.get("message") or body.get("message"))}</p>'
    hint = f'<p class="dim" dir="auto">{_text(error["hint"])}</p>' if error.get("hint") else ""
    word, when = _ending(body), f'<p class="facts dim">{when}</p>'
    partial = body.get("preview")
    if isinstance(partial, str):
        return Card(_card(_video(job, partial), job, f"<p>{word}</p>{reason}{hint}{when}", body), partial)
    return Card(_card(f'<div class="box">{word}{reason}{hint}</div>', job, when, body))


def ended_at(body: Mapping[str, Any]) -> float:
    """When a job ended, in seconds since the epoch; where that is not written, when its status was."""
    for name in ("finished_at", "updated_at", "submitted_at"):
        try:
            return datetime.fromisoformat(str(body.get(name))).timestamp()
        except (ValueError, OverflowError):
            continue
    return 0.0


def _ending(body: Mapping[str, Any]) -> str:
    if body.get("outcome") == Outcome.CANCELLED:
        return "<strong>Cancelled</strong>"
    return f'<strong class="bad">{"Failed" if body.get("started_at") else "Refused"}</strong>'


def _card(sight: str, job: str, words: str, body: Mapping[str, Any]) -> str:
    prompt = _table(body, "request").get("prompt")
    if isinstance(prompt, list):
        prompt = " → ".join(str(part.get("text")) for part in prompt if isinstance(part, dict))
    said = f'<p class="clip" dir="auto">{_text(prompt)}</p>' if prompt else ""
    return f'<li class="card">{sight}<div><h3><bdi>{_text(_name(job))}</bdi></h3>{said}{words}</div></li>'


def _video(job: str, file: str, poster: str = "") -> str:
    # Without a poster, the first frame has to come from the video itself.
    first = f'preload="none" poster="{_address(poster)}"' if poster else 'preload="metadata"'
    where, name = _address(file), _text(_name(job))
    rest = f'aria-label="{name}"><a href="{where}">{name}</a>'
    return f'<video controls playsinline loading="lazy" {first} src="{where}" {rest}</video>'


def _name(job: str) -> str:
    """The job's id without the digits, as it was dropped."""
    return job.rpartition("-")[0] or job


def _table(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """Any text, safe between tags and in quotes."""
    shown = printable(" ".join(str(value or "").split()))
    return html.escape(shown if len(shown) <= TEXT_CHARACTERS else f"{shown[:TEXT_CHARACTERS]}…")


def _address(name: str) -> str:
    """A file beside the page, whatever its name."""
    return quote(name.encode(errors="surrogatepass"), safe="")


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
