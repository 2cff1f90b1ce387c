"""Reading a JSON object from bytes that anybody may have written.

Stricter than `json.loads`, with messages for people, and able to tell a document that is still on its way from one that
is wrong. Knows no field of a sidecar.
"""

from __future__ import annotations

import json
import re
from typing import Any

from framepack_daemon.errors import RequestError, RequestIncompleteError
from framepack_daemon.printable import printable

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
        message, hint = _explain(error)
        if _breaks_off(error):
            raise RequestIncompleteError(f"{what}: {message}", hint=hint) from error
        raise RequestError(f"{what}: {message}", hint=hint) from error
    except RecursionError as error:
        raise RequestError(f"{what}: is nested too deeply", hint="a sidecar is one flat object of fields") from error
    if not isinstance(value, dict):
        raise RequestError(
            f"{what}: holds {kind_of(value)} at its top", hint='it must be an object: {"prompt": "…", "seconds": 5}'
        )
    return value


def _breaks_off(error: json.JSONDecodeError) -> bool:
    """Whether the document ends too early (or in the zeros of a file that is still being filled)."""
    rest = error.doc[error.pos :].strip()
    return (
        "Unterminated" in error.msg
        or "\0" in error.doc
        or any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "Infinity", "-Infinity"))
        or _TORN.fullmatch(rest) is not None
    )


# What is left of a number or of an escape at the end of a document that breaks off.
_TORN = re.compile(r"(?:\.\d*)?(?:[eE][+-]?)?|\\?u[0-9a-fA-F]{0,4}")

_CLOSING = "}],"
_CONTROLS = "".join(map(chr, range(32)))
# A sign where JSON expects something else, what is meant by it, and the mend: between texts, and inside one.
_BETWEEN = (
    (_CLOSING, "a comma too many", "remove that comma"),
    (
        "'\u201c\u201d\u201e\u2018\u2019",
        "quotes that JSON does not know",
        'put names and texts in double quotes, as in "prompt"',
    ),
    ("/#", "a comment, which JSON does not know", "remove it"),
    ("TF", "True and False are not JSON", "write true or false"),
    ("N", "None is not JSON", "write null, or remove the field"),
    ("+.", "not a number as JSON writes it", "write 5 for +5, and 0.5 for .5"),
)
_IN_TEXTS = (
    ("\\u", "a backslash that means nothing", "write a backslash inside a text as \\\\"),
    ("\r\n", "a line break inside a text", "write \\n in its place"),
    ("\t", "a tab inside a text", "write \\t in its place"),
    (_CONTROLS, "a control character inside a text", "remove it"),
)


def _explain(error: json.JSONDecodeError) -> tuple[str, str]:
    """(what is wrong and where, how to mend it), in words for somebody who rarely writes JSON."""
    place = f"line {error.lineno}, column {error.colno}"
    found = error.doc[error.pos : error.pos + 1]
    if "Unterminated" in error.msg:
        return f"the text that begins at {place} has no end", 'close it with a ", or copy the file whole'
    if _breaks_off(error):
        return f"ends too early, at {place}", "write or copy it whole, to the closing }"
    for signs, problem, mend in _IN_TEXTS if "Invalid" in error.msg else _BETWEEN:
        spare_comma = "trailing comma" in error.msg or error.doc[: error.pos].rstrip().endswith(",")
        if found in signs and (signs != _CLOSING or spare_comma):
            return f"{place}: {problem}", mend
    if "Extra data" in error.msg:
        return f"{place}: something follows the closing }}", "keep one object, and remove the rest"
    if "delimiter" in error.msg:
        return f"{place}: no {'colon' if ':' in error.msg else 'comma'} before this", "add it"
    if "property name" in error.msg:
        return f"{place}: a name without quotes", 'put names and texts in double quotes, as in "prompt"'
    return f"{place}: is not JSON", 'write it like {"prompt": "…", "seconds": 5}'


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
            raise RequestError(f"{printable(shorten(key))}: is given twice", hint="remove one of the two")
        found[key] = value
    return found


def _bounded_int(text: str) -> int:
    """The number, or its first digits where it is far out of every range (Python refuses to convert giant ones)."""
    return int(text[:MAX_DIGITS])


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def shorten(text: str, limit: int = 60) -> str:
    """`text`, or its beginning with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
