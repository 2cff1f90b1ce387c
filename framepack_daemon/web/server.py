"""The gateway as a process: a socket, uvicorn, and an end in order.

Binds the socket itself, so that a port that is taken is a message and not a traceback. SIGTERM and Ctrl-C let answers
that are under way finish, and end the streams.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import structlog
import uvicorn

from framepack_daemon.errors import FramepackError
from framepack_daemon.settings import WEB_PREFIX, Settings
from framepack_daemon.web import app
from framepack_daemon.web.settings import WebSettings

STOP_SECONDS = 5  # for answers under way, at the end

_log = structlog.get_logger(__name__)


class AddressError(FramepackError):
    """The address cannot be listened on."""

    code = "address"


def serve(settings: Settings, web: WebSettings, say: Callable[[str], None]) -> None:
    """Serve until told to stop; `say` is called with the address once it is listened on."""
    with _listen(web) as listener:
        config = uvicorn.Config(
            app.create(settings, web),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _log.info("gateway_started", host=host, port=port)
        say(f"http://{shown}:{port}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(web: WebSettings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(web.host).version == 6 else socket.AF_INET  # noqa: PLR2004
    except ValueError:
        family = socket.AF_INET
    try:
        listener = socket.create_server((web.host, web.port), family=family, backlog=1024)
    except OSError as error:
        raise AddressError(
            f"{web.host}:{web.port}: {error.strerror or error}",
            hint=f"say another --port, or stop what listens there; {WEB_PREFIX}HOST is an address of this machine",
        ) from error
    # asyncio does so for sockets of its own making only. Without it the second part of an answer waits 40 ms for the
    # client's system to confirm the first; a connection has it from its listener.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
