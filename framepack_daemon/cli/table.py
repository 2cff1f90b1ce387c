"""The tables of `status`: made of what `overview` read, for a terminal of 80 columns and more."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from framepack_daemon.cli import wording
from framepack_daemon.job import State
from framepack_daemon.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

COLORS = {State.PENDING: "yellow", State.PROCESSING: "cyan", State.DONE: "green", State.FAILED: "red"}
TITLES = {State.PROCESSING: "Running", State.PENDING: "Next", State.DONE: "Done", State.FAILED: "Failed"}


def queue(overview: dict[str, Any]) -> RenderableType:
    """The whole queue."""
    parts: list[RenderableType] = [_head(overview)]
    makers: dict[State, Callable[[dict[str, Any]], Iterable[RenderableType]]] = {
        State.PROCESSING: _running,
        State.PENDING: lambda row: [_text(row.get("message"), "dim")],
        State.DONE: lambda row: [_text(wording.video(row)), _text(_ago(row), "dim")],
        State.FAILED: lambda row: [_text(_why(row)), _text(_ago(row), "dim")],
    }
    parts += [_text(f"{each['what']}: {each['reason']}", "bold red") for each in overview["troubles"]]
    for state, cells in makers.items():
        if overview[state]:
            parts += _section(state, overview, cells)
    if overview["halves"]:
        table = _table()
        for half in overview["halves"]:
            table.add_row(_text(half["name"]), _text(f"waits for {half['waits_for']}", "dim"))
        parts += [Text(), Text("In the inbox", "bold"), table]
    if len(parts) == 1:
        parts.append(
            Text(f"Nothing here yet. Drop a picture and a sidecar into {printable(overview['folders']['inbox'])}")
        )
    return Group(*parts)


def _head(overview: dict[str, Any]) -> Text:
    running = overview["daemon"]["running"]
    head = Text("daemon runs" if running else "no daemon runs", "green" if running else "yellow")
    if overview["paused"]:
        head.append("  paused", "bold yellow")
    for state in (State.PROCESSING, State.PENDING, State.DONE, State.FAILED):
        count = overview["counts"][state]
        head.append("  ")
        head.append(f"{count:,} {'running' if state is State.PROCESSING else state}", COLORS[state] if count else "dim")
    return head


def _section(
    state: State, overview: dict[str, Any], cells: Callable[[dict[str, Any]], Iterable[RenderableType]]
) -> list[RenderableType]:
    table = _table()
    for row in overview[state]:
        table.add_row(_text(row["job"], COLORS[state]), *cells(row))
    more = overview["counts"][state] - len(overview[state])
    parts: list[RenderableType] = [Text(), Text(TITLES[state], "bold"), table]
    return [*parts, Text(f"  and {more:,} more", "dim")] if more > 0 else parts


def _table() -> Table:
    """Rows of a name that may be cut at its end, which a prefix of a job id may be, and what is said of it."""
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2), pad_edge=True)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=36)
    return table


def _running(row: dict[str, Any]) -> Iterable[RenderableType]:
    share = wording.fraction(row)
    bar = ProgressBar(total=1.0, completed=share, width=10)
    return [bar, _text(f"{share:4.0%}"), _text(wording.progress(row))]


def _why(row: dict[str, Any]) -> str:
    error = row.get("error") or {}
    words = error.get("message") or row.get("message") or ""
    return f"{words} ({error['hint']})" if error.get("hint") else words


def _ago(row: dict[str, Any]) -> str:
    try:
        ended = datetime.fromisoformat(row["finished_at"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f"{wording.duration(max((datetime.now(UTC) - ended).total_seconds(), 0))} ago"


def _text(value: object, style: str = "") -> Text:
    return Text(printable("" if value is None else value), style)


def job(status: dict[str, Any]) -> RenderableType:
    """One job in full."""
    state = State(status["state"])
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("job", _text(status["job"], "bold"))
    table.add_row("state", _text(f"{state} ({status['outcome']})" if status.get("outcome") else state, COLORS[state]))
    if status.get("progress"):
        table.add_row("progress", _text(f"{wording.fraction(status):.0%}, {wording.progress(status)}"))
    for name, value in status.items():
        if name in ("job", "state", "outcome", "progress", "error") or value in (None, "", {}):
            continue
        _add(table, name, value)
    for name, value in (status.get("error") or {}).items():
        table.add_row("error" if name == "message" else name, _text(value, "red" if name == "message" else ""))
    return table


def _add(table: Table, name: str, value: object) -> None:
    """A row; of an object, a row for each of its fields that says something."""
    if isinstance(value, dict):
        for key, each in value.items():
            if each not in (None, ""):
                _add(table, f"{name}.{key}", each)
    else:
        table.add_row(_text(name), _text(value if isinstance(value, str) else json.dumps(value)))
