"""The command `framepack-daemon`: its global flags, its commands, and the one place where errors become messages.

Each field of `Settings` is a global flag, made from the field itself. A command gets them through `Face`; it raises
`FramepackError`, and `main` prints message and hint and gives back the exit code.
"""

import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from framepack_daemon import __version__
from framepack_daemon.cli import completion, demo, doctor, jobs, models, run, serve, sidecars, status, submit
from framepack_daemon.cli.completion import PROGRAM
from framepack_daemon.cli.context import Face, note, report
from framepack_daemon.errors import EXIT_USAGE, FramepackError
from framepack_daemon.settings import CONFIG_VARIABLE, Settings, is_path

SHOWN = (
    "inbox",
    "outputs",
    "queue_dir",
    "model",
    "device",
)  # the settings that --help shows; --help-all shows every one


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _panel(name: str) -> str:
    """The heading under which --help-all shows a setting."""
    if name.startswith("log_"):
        return "Logs"
    if name.startswith(("gallery", "metrics_", "notify_")):
        return "Monitoring"
    if name.endswith("_seconds") or name == "max_attempts":
        return "Times and attempts"
    return "Folders" if is_path(name) else "Rendering"


def _is_switch(name: str) -> bool:
    return Settings.model_fields[name].annotation is bool


def _metavar(name: str, *, is_choice: bool) -> str:
    if is_path(name):
        return "FILE" if name.startswith("metrics_") else "DIR"
    if _is_switch(name):
        return "|".join(completion.choices(name))
    return "NAME" if is_choice or name == "device" else "WORDS" if name.startswith("notify_") else "N"


def _option(name: str) -> inspect.Parameter:
    """The global flag of a setting, as a parameter that typer reads."""
    field = Settings.model_fields[name]
    choices = completion.choices(name)
    text = field.description or ""
    if choices and not _is_switch(name):
        text += f" One of {', '.join(choices)}."
    if field.default is not None and field.default_factory is None:
        shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = str(shown).lower() if isinstance(shown, bool) else shown
        text += f" Default: {shown:g}." if isinstance(shown, float) else f" Default: {shown}." if shown != "" else ""
    option = typer.Option(
        _flag(name),
        help=text,
        metavar=_metavar(name, is_choice=bool(choices)),
        rich_help_panel=_panel(name) if name not in SHOWN else "Settings",
        hidden=name not in SHOWN,
        autocompletion=completion.of_setting(name),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _show_everything(ctx: typer.Context, wanted: bool) -> None:
    if not wanted:
        return
    for parameter in ctx.command.params:
        if parameter.name in Settings.model_fields:
            vars(parameter).update(hidden=False, rich_help_panel=_panel(parameter.name))
    typer.echo(ctx.get_help())
    raise typer.Exit


def _root(ctx: typer.Context, config: Path | None = None, **flags: Any) -> None:
    """Turn pictures into videos: drop an image and a JSON file into the inbox, get an MP4."""
    ctx.obj = Face({name: value for name, value in flags.items() if name in Settings.model_fields}, config)


_OWN = (
    inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
    inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE",
                help=f"Settings in TOML. Default: ${CONFIG_VARIABLE}, or /etc/framepack-daemon/config.toml.",
                rich_help_panel="Settings",
            ),
        ],
    ),
    inspect.Parameter(
        "version",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
        ],
    ),
    inspect.Parameter(
        "help_all",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[
            bool,
            typer.Option("--help-all", callback=_show_everything, is_eager=True, help="Show every setting too."),
        ],
    ),
)
# typer reads a callback's signature: the settings' flags join it here, so that none of them is written twice.
_root.__signature__ = inspect.Signature([*_OWN, *map(_option, Settings.model_fields)])  # type: ignore[attr-defined]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings stand before the command: framepack-daemon --inbox /srv/inbox run",
)
app.callback()(_root)

for _panel_name, _commands in {
    "Daemon": (run.run, serve.serve, demo.demo, doctor.doctor),
    "Jobs": (
        submit.submit,
        status.status,
        jobs.cancel,
        jobs.interrupt,
        jobs.retry,
        jobs.remove,
        jobs.pause,
        jobs.resume,
        jobs.prune,
    ),
    "Sidecars": (sidecars.check, sidecars.schema),
    "This command": (completion.completion,),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel_name)(_command)
app.add_typer(models.app, name="models", rich_help_panel="Daemon")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter gets an escape instead of an error.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if completion.VARIABLE in os.environ:
        completion.answer()
    try:
        app(words, prog_name=PROGRAM)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
        if code == EXIT_USAGE and (late := _after_the_command(words)):
            note(f"hint: {late} is a setting and stands before the command: {PROGRAM} {late} … {_command_of(words)} …")
        return code
    except FramepackError as error:
        report(error)
        return error.exit_code
    except OSError as error:
        report(FramepackError(f"{error.filename or PROGRAM}: {error.strerror or error}"))
        return EXIT_USAGE
    return 0


def _command_of(words: Sequence[str]) -> str:
    known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    return next((word for word in words if word in known or word == "models"), "")


def _after_the_command(words: Sequence[str]) -> str:
    """The first global flag that stands behind the command's name; "" when there is none."""
    command = _command_of(words)
    behind = words[words.index(command) :] if command else []
    flags = {_flag(name) for name in Settings.model_fields}
    return next((word.partition("=")[0] for word in behind if word.partition("=")[0] in flags), "")
