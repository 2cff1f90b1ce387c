"""Who may ask: three headers that browsers set and pages cannot, each alone enough to refuse, and the token.

A name in `Host` that is not ours is DNS rebinding; an `Origin` that is neither ours nor listed, or a `Sec-Fetch-Site`
that says "another site", is a page that uses its visitor's reach. Plain addresses in `Host` are fine: rebinding needs a
name. Knows no route but those that a probe may ask without a token.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framepack_daemon.web import problems

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # a probe has no token
_PORTS = {"http": "80", "https": "443"}
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Guard:
    """Refuses what comes from elsewhere."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], origins: Iterable[str]) -> None:
        self._app = app
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if refusal := self._refusal(scope):
            await problems.answer(403, refusal, "forbidden", "")(scope, receive, send)
            return

        async def harden(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        await self._app(scope, receive, harden)

    def _refusal(self, scope: Scope) -> str:
        """Why the request is refused; "" when it is not."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if scope["type"] != "http":
            return "there is nothing here but HTTP"
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return "Host: is not a name of this gateway; FRAMEPACK_WEB_HOSTS lists more"
        origin = headers.get("origin")
        listed = origin is not None and origin in self._origins
        if origin is not None and not listed and not _is_same(origin, hosts[0]):
            return "Origin: is another page; FRAMEPACK_WEB_CORS_ORIGINS lists those that may"
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and not listed and not _follows_a_link(scope, headers):
            return "Sec-Fetch-Site: is another site"
        return ""

    def _is_ours(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or "" if _is_plain(host) else ""
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class TokenGate:
    """Lets in who has the token."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = Headers(scope=scope)
            if not self._has_token(headers.get("authorization", "").encode("latin-1")):
                # A browser that opens the page asks for a password then, which is the token.
                way = 'Basic realm="framepack-daemon"' if "text/html" in headers.get("accept", "") else "Bearer"
                refusal = problems.answer(
                    401,
                    "Authorization: the token is missing or wrong",
                    "unauthorized",
                    "send the header Authorization: Bearer and the token",
                    {"WWW-Authenticate": way},
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _has_token(self, given: bytes) -> bool:
        """Whether the header brings the token, as it is or as the password that a browser was told."""
        kind, _, value = given.partition(b" ")
        if kind.lower() == b"basic":
            try:
                given = b"Bearer " + base64.b64decode(value, validate=True).partition(b":")[2]
            except ValueError:
                return False
        return hmac.compare_digest(given, self._expected)


def _is_plain(host: str) -> bool:
    """Whether a Host header is a name or address and perhaps a port, and nothing that a parser may read otherwise."""
    try:
        urlsplit(f"//{host}").port  # noqa: B018 - raises for what is no number
    except ValueError:
        return False
    return host.isascii() and not set(host) & set("/\\@?# ,")


def _is_same(origin: str, host: str) -> bool:
    """Whether an origin is the one that was asked under this Host."""
    scheme, _, place = origin.partition("://")
    if scheme not in _PORTS:
        return False
    return _without_port(place, scheme) == _without_port(host, scheme)


def _without_port(place: str, scheme: str) -> str:
    return place.lower().removesuffix(f":{_PORTS[scheme]}")


def _follows_a_link(scope: Scope, headers: Headers) -> bool:
    """Whether a person came here from another site's link: that shows the page and does nothing."""
    return (
        scope["method"] in _SAFE_METHODS
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
