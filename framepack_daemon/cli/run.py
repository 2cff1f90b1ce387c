"""`run`: the daemon in the foreground."""

import typer

from framepack_daemon.cli.context import face


def run(ctx: typer.Context) -> None:
    """Run the daemon in the foreground until it is told to stop.

    It watches the inbox, renders what is dropped there, and publishes the videos in the outputs folder. Logs go to
    standard error: for people on a terminal, as JSON lines otherwise. Ctrl-C or SIGTERM finishes the current step,
    keeps what is rendered so far, and stops; a second one stops at once. Under systemd, SIGHUP has it read the settings
    again: log level, times and attempts change at once, the others wait for a restart.
    """
    from framepack_daemon import daemon, logs, settings

    asked = face(ctx)
    logs.configure(asked.settings.log_format, asked.settings.log_level)
    raise typer.Exit(daemon.run(asked.settings, lambda: settings.load(asked.flags, asked.config)[0]))
