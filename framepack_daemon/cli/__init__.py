"""The command line: what each command asks of the spool, and what it prints. Never imports torch."""

from framepack_daemon.cli.app import app, main

__all__ = ["app", "main"]
