"""Prints the man page framepack-daemon(1), made from the command line: its commands, options, settings and codes.

typer's tree of commands is walked, so nothing stands here that the commands say already. Knows roff, and no option.
"""

import os
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from framepack_daemon import __version__, errors
from framepack_daemon.cli import app
from framepack_daemon.cli.completion import PROGRAM
from framepack_daemon.settings import CONFIG_VARIABLE, PREFIX, SYSTEM_CONFIG, Settings

LINE_CHARACTERS = 78  # and two for what keeps a line from being a request
CODES = {
    errors.EXIT_DONE: "Done.",
    errors.EXIT_JOB_FAILED: "A job that was waited for failed, was cancelled or removed.",
    errors.EXIT_USAGE: "The command cannot be done as it was given.",
    errors.EXIT_QUEUE_HELD: "Another daemon holds the inbox or the queue.",
    errors.EXIT_AWAY: "A folder's file system is not mounted.",
    errors.EXIT_CONFIGURATION: "A setting is wrong, or doctor found that the daemon cannot work.",
    130: "Ctrl-C while waiting.",
}
FILES = {
    str(SYSTEM_CONFIG): "Settings, in TOML.",
    "/srv/framepack": "Inbox, outputs and queue of the service.",
    "/var/lib/framepack-daemon": "Model files and scratch of the service.",
}


def text(words: str) -> str:
    """Words as roff prints them, in lines of at most 80 bytes: nothing in them is a request."""
    plain = " ".join(words.split()).replace("\\", "\\e").replace("-", "\\-")
    lines = textwrap.wrap(plain, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in lines)


def entry(tag: str, words: str) -> list[str]:
    """A term and what it means."""
    return [".TP", f"\\fB{text(tag)}\\fR", text(words) or "\\&"]


def options(command: Any) -> Iterator[str]:
    """The options of a command and its arguments that say what they are, hidden settings too."""
    for parameter in command.params:
        metavar = getattr(parameter, "metavar", None) or ""
        if parameter.param_type_name == "argument":
            if words := getattr(parameter, "help", None):
                yield from entry(metavar or parameter.name.upper(), words)
            continue
        flags = ", ".join([*parameter.opts, *parameter.secondary_opts])
        yield from entry(f"{flags} {metavar}".strip(), parameter.help or "")


def commands(group: Any, before: str = "") -> Iterator[str]:
    """A section for each command, and for those below it."""
    for name, command in group.commands.items():
        words = f"{before}{name}"
        if hasattr(command, "commands"):
            yield from commands(command, f"{words} ")
            continue
        yield f'.SS "{text(words)}"'
        for number, paragraph in enumerate((command.help or "").split("\n\n")):
            yield from ([".PP"] if number else []) + [text(paragraph)]
        yield from options(command)


def page() -> Iterator[str]:
    """The whole page, a line at a time."""
    root: Any = get_command(app)
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    yield f'.TH FRAMEPACK\\-DAEMON 1 "{date}" "{PROGRAM} {__version__}" "User Commands"'
    yield from (".SH NAME", text(PROGRAM) + " \\- turns pictures that are dropped into a folder into videos")
    yield from (".SH SYNOPSIS", f"\\fB{text(PROGRAM)}\\fR [\\fISETTINGS\\fR] \\fICOMMAND\\fR [\\fIOPTIONS\\fR]")
    yield from (".SH DESCRIPTION", text(root.help), ".SH OPTIONS", text("They stand before the command."))
    yield from options(root)
    yield ".SH COMMANDS"
    yield from commands(root)
    yield from (".SH ENVIRONMENT", *entry(CONFIG_VARIABLE, "The file of settings."))
    variables = ", ".join(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)
    yield from entry(variables, "The settings, each as its option, which goes over it.")
    yield ".SH FILES"
    for name, words in FILES.items():
        yield from entry(name, words)
    yield from (".SH EXIT STATUS",)
    for code, words in CODES.items():
        yield from entry(str(code), words)


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()) + "\n")
