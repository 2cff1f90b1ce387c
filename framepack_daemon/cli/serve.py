"""`serve`: the gateway in the foreground."""

import importlib.util
from typing import Annotated

import typer

from framepack_daemon.cli.context import face, note, say
from framepack_daemon.errors import FramepackError
from framepack_daemon.printable import printable


def serve(
    ctx: typer.Context,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", help="Port to listen on; 0 takes a free one. Default: 8000.")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let others than this machine in without a token.")
    ] = False,
) -> None:
    """Serve the HTTP API and the page of the queue, with or without a daemon running.

    Prints the address and serves until Ctrl-C or SIGTERM. Another address than this machine's own wants a token in
    FRAMEPACK_WEB_TOKEN, which programs send as a bearer token and people give their browser as the password. Several
    may serve one queue.
    """
    if not all(map(importlib.util.find_spec, ("fastapi", "uvicorn", "sse_starlette", "python_multipart", "jinja2"))):
        raise FramepackError("the gateway is not installed", hint="pip install 'framepack-daemon[web]'")
    from framepack_daemon import logs
    from framepack_daemon.web import server
    from framepack_daemon.web import settings as web

    settings = face(ctx).settings
    chosen = web.load({"host": host, "port": port, "no_auth": no_auth or None})
    for name in web.unread():
        note(f"warning: {printable(name)} is set but is no setting of the gateway")
    logs.configure(settings.log_format, settings.log_level)
    server.serve(settings, chosen, say)
