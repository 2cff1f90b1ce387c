"""What every command shares: the settings asked for, and how words reach the terminal.

Results go to standard output, everything said beside them to standard error, so that a result can be piped. Texts from
files pass `printable` first; consoles take no markup, so that a name in brackets stays a name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import typer

from framepack_daemon import settings
from framepack_daemon.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from framepack_daemon.errors import FramepackError
    from framepack_daemon.spool.queue import Queue


class Triple(NamedTuple):
    """A command's usual surroundings."""

    settings: settings.Settings
    queue: Queue
    outputs: Path


@dataclass
class Face:
    """The global flags of this call; settings are loaded when a command first needs them."""

    flags: dict[str, str] = field(default_factory=dict)
    config: Path | None = None

    @cached_property
    def settings(self) -> settings.Settings:
        """The settings in force; warnings are said once."""
        loaded, warnings = settings.load(self.flags, self.config)
        for warning in warnings:
            note(f"warning: {warning}")
        return loaded

    @cached_property
    def spool(self) -> Triple:
        """Settings, queue and outputs; warnings of the spool go to standard error from here on."""
        from framepack_daemon import logs
        from framepack_daemon.spool.queue import Queue

        logs.configure("console", "warning")
        return Triple(self.settings, Queue(self.settings.queue_dir), self.settings.outputs)

    @cached_property
    def mounted(self) -> Triple:
        """`spool` for commands that make something in its folders: raises while one of these is not mounted."""
        from framepack_daemon.spool import mounts

        settings = self.settings
        mounts.expect(settings.work_dir, (settings.outputs, settings.queue_dir))
        return self.spool


def face(ctx: typer.Context) -> Face:
    """The global flags that came with this command."""
    return cast("Face", ctx.obj)


def say(text: str) -> None:
    """A line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """A line beside the result."""
    typer.echo(text, err=True)


def report(error: FramepackError) -> None:
    """An error as a person reads it."""
    note(f"{typer.style('error:', fg='red', bold=True)} {printable(error.message)}")
    if error.hint:
        note(f"{typer.style('hint:', fg='cyan', bold=True)} {printable(error.hint)}")


def console(*, stderr: bool = False) -> Console:
    """A console that shows texts as they are, without reading markup or emoji codes in them."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
