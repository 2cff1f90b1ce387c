"""`models pull|list|check`: the model files, by way of `weights`."""

import time
from typing import Annotated

import typer

from framepack_daemon.cli import completion, wording
from framepack_daemon.cli.context import console, face, note, report, say
from framepack_daemon.errors import EXIT_DONE, WeightsError

app = typer.Typer(no_args_is_help=True, help="Fetch model files, list them, check them.")

ABOUT = {
    "framepack-i2v": "FramePack: the best quality, rendered last section first",
    "framepack-f1": "FramePack-F1: more motion, rendered first section first",
    "tiny": "a few MB, made on the spot: for trying out and testing",
}

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        help="framepack-i2v, framepack-f1, tiny. Default: the model in the settings.",
        autocompletion=completion.of_setting("model"),
    ),
]


@app.command()
def pull(ctx: typer.Context, names: Names = None) -> None:
    """Fetch what is missing of models, at pinned revisions.

    What is there already is kept; a fetch that was cut off goes on where it stopped.
    """
    from framepack_daemon import weights

    settings = face(ctx).settings
    for name in names or [settings.model]:
        if weights.present(name, settings.models_dir):
            say(f"{name}: is there already")
            continue
        note(f"{name}: making it (a minute at most)" if name == "tiny" else f"{name}: fetching it")
        start = time.monotonic()
        weights.pull(name, settings.models_dir)
        say(f"{name}: ready after {wording.duration(time.monotonic() - start)}")


@app.command("list")
def list_models(ctx: typer.Context) -> None:
    """Show the models and which of them are here."""
    from rich.table import Table
    from rich.text import Text

    from framepack_daemon import weights

    settings = face(ctx).settings
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for name, about in ABOUT.items():
        here = weights.present(name, settings.models_dir)
        mark = Text("here", "green") if here else Text("not here", "dim")
        default = " (default)" if name == settings.model else ""
        table.add_row(Text(name, "bold"), mark, about + default)
    console().print(table)
    note(f"folder: {settings.models_dir}")


@app.command()
def check(ctx: typer.Context, names: Names = None) -> None:
    """Check that every file of models is there and whole; exit code 2 if not."""
    from framepack_daemon import weights

    settings = face(ctx).settings
    code = EXIT_DONE
    for name in names or [settings.model]:
        problems = weights.check(name, settings.models_dir)
        if problems:
            error = WeightsError(f"{name}: {'; '.join(problems)}", hint=f"run: framepack-daemon models pull {name}")
            report(error)
            code = error.exit_code
        else:
            say(f"{name}: ok")
    raise typer.Exit(code)
