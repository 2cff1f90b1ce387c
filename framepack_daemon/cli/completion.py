"""`completion`: scripts with which bash, zsh and fish complete the command, and what some of its words may be.

typer makes the scripts; each asks the command itself, at every TAB, what may come next. Words that are known beforehand
(models, states of switches) come from the settings, job ids from the queue's folders. Starts nothing and prints nothing
else.
"""

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, get_args

import typer

from framepack_daemon import settings
from framepack_daemon.cli.context import say
from framepack_daemon.errors import FramepackError
from framepack_daemon.settings import Settings

PROGRAM = "framepack-daemon"
VARIABLE = "_FRAMEPACK_DAEMON_COMPLETE"  # by which a script asks
_FUNCTION = "_framepack_daemon_completion"  # typer's name for what the zsh script defines
# zsh runs a file from its function path in place of the function that it is to define: the first TAB is answered too.
_ZSH_FIRST_TAB = f'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then\n  {_FUNCTION} "$@"\nfi'


class Shell(StrEnum):
    """Shells for which there is a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)]) -> None:
    """Print a script that completes commands, options and job ids in a shell.

    bash: source it in ~/.bashrc. zsh: write it into a file _framepack-daemon in a folder of $fpath. fish: write it into
    ~/.config/fish/completions/framepack-daemon.fish. The Debian package brings all three.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined] # exported, if not by name

    script = get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell)
    say(f"{script}\n\n{_ZSH_FIRST_TAB}" if shell is Shell.ZSH else script)


def answer() -> None:
    """Have typer answer a script that asks; without one, nothing happens."""
    from typer.completion import completion_init  # type: ignore[attr-defined] # exported, if not by name

    completion_init()


def choices(name: str) -> tuple[str, ...]:
    """What a setting may be, where that can be listed."""
    annotation = Settings.model_fields[name].annotation
    if annotation is bool:
        return ("true", "false")
    words = tuple(each for each in get_args(annotation) if isinstance(each, str))
    return words if len(words) > 1 else ()


def of_setting(name: str) -> Callable[[str], list[str]] | None:
    """Completes the value of a setting; None where that is for the shell, which knows files and folders."""
    words = choices(name)
    return (lambda incomplete: [word for word in words if word.startswith(incomplete)]) if words else None


def jobs(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """Ids of jobs in the queue that the settings before the command name."""
    from framepack_daemon.job import State
    from framepack_daemon.spool.queue import Queue

    given = ctx.find_root().params
    flags = {name: value for name, value in given.items() if name in Settings.model_fields}
    try:
        queue = Queue(settings.load(flags, given.get("config"))[0].queue_dir)
        for state in State:
            yield from (name for name in queue.names(state) if name.startswith(incomplete))
    except (FramepackError, OSError):
        return  # a wrong setting is said by the command, not between two letters of it
