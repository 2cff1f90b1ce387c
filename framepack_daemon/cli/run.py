"""`run`: the daemon in the foreground."""

import typer

from framepack_daemon.cli.context import face


def run(ctx: typer.Context) -> None:
    """Run the daemon in the foreground until it is told to stop.

    It watches the inbox, renders what is dropped there, and publishes the videos in the outputs folder. Logs go to
    standard error: for people on a terminal, as JSON lines otherwise. Ctrl-C or SIGTERM finishes the current step,
    keeps what is rendered so far, and stops; a second one stops at once.
    """
    from framepack_daemon import daemon, logs

    settings = face(ctx).settings
    logs.configure(settings.log_format, settings.log_level)
    raise typer.Exit(daemon.run(settings))
