"""Text from outside made safe to show: names of dropped files may hold anything but `/` and NUL.

`printable` leaves letters of every script and emoji as they are and writes the rest (control characters, which can
drive a terminal, characters that turn the reading direction around, bytes that are not UTF-8) as escapes.
Pure; knows nothing of the rest of the package.
"""

from __future__ import annotations

JOINERS = "\u200c\u200d"  # not printable by themselves, but parts of emoji and of letters in Indic scripts


def printable(text: object, *, keep: str = "") -> str:
    r"""`str(text)` with everything but printable characters and those in `keep` as escapes like `\x1b` and `\u202e`."""
    shown = str(text)
    if shown.isprintable():
        return shown
    allowed = JOINERS + keep
    return "".join(
        char if char.isprintable() or char in allowed else char.encode("unicode_escape").decode() for char in shown
    )
