"""Reading a JSON object from bytes that anybody may have written.

Stricter than `json.loads`, with messages for people, and able to tell a document that is still on its way from one that
is wrong. Knows no field of a sidecar.
"""

from __future__ import annotations

import json
from typing import Any

from framepack_daemon.errors import RequestError, RequestIncompleteError

MAX_SIDECAR_BYTES = 1 << 20
MAX_DIGITS = 300  # of a number in a sidecar that are read; Python itself refuses to convert more than 4300


def parse_json(data: bytes, what: str = "sidecar") -> dict[str, Any]:
    """The JSON object in `data`.

    Stricter than `json.loads`: duplicate keys, a byte order mark and anything but an object at the top raise
    `RequestError`; a document that ends too early raises `RequestIncompleteError`. Numbers that are not finite pass, so
    that `build` can name their field.
    """
    if len(data) > MAX_SIDECAR_BYTES:
        raise RequestError(f"{what}: is {len(data)} bytes long", hint=f"a {what} has at most {MAX_SIDECAR_BYTES} bytes")
    text = _decode(data, what)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_int=_bounded_int,
        )
    except json.JSONDecodeError as error:
        message = f"{what}: line {error.lineno}, column {error.colno}: {error.msg}"
        if _breaks_off(error):
            raise RequestIncompleteError(message, hint="the JSON ends too early; write or copy it whole") from error
        raise RequestError(message, hint="it is not valid JSON; mend that place") from error
    except RecursionError as error:
        raise RequestError(f"{what}: is nested too deeply", hint="a sidecar is one flat object of fields") from error
    if not isinstance(value, dict):
        raise RequestError(
            f"{what}: holds {kind_of(value)} at its top", hint='it must be an object: {"prompt": "…", "seconds": 5}'
        )
    return value


def _breaks_off(error: json.JSONDecodeError) -> bool:
    """Whether the document ends too early (or in the zeros of a file that is still being filled)."""
    return error.pos >= len(error.doc.rstrip()) or "Unterminated" in error.msg or "\0" in error.doc


def _decode(data: bytes, what: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RequestError(f"{what}: is UTF-16 text", hint="save it as UTF-8 without a byte order mark")
    if data.startswith(b"\xef\xbb\xbf"):
        raise RequestError(f"{what}: begins with a byte order mark", hint="save it as UTF-8 without a byte order mark")
    if not data.strip():
        raise RequestIncompleteError(f"{what}: is empty", hint='write at least {"prompt": "what happens in the video"}')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{what}: byte {error.start} is not UTF-8", hint="save it as UTF-8") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RequestError(f"{key}: is given twice", hint="remove one of the two")
        found[key] = value
    return found


def _bounded_int(text: str) -> int:
    """The number, or its first digits where it is far out of every range (Python refuses to convert giant ones)."""
    return int(text[:MAX_DIGITS])


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
