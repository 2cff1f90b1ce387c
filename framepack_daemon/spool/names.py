"""What the name of a file in a drop folder says: part of a drop, a conflict copy, or nothing of ours.

Two files belong together when their names without the extension are the same text after NFC; extensions are read
without case. A `.json.txt` is a sidecar: where extensions are hidden, editors save one so. Decides by the name alone
and touches no file.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from framepack_daemon.job import ID_DIGITS, State
from framepack_daemon.media import clip, image

DEFAULTS_NAME = "defaults.json"
END_FRAME_MARK = ".last"
_TEXT, _JSON = ".txt", ".json"


class Kind(StrEnum):
    """What a dropped file is by its name."""

    IMAGE = "image"
    END_FRAME = "end frame"
    SIDECAR = "sidecar"
    PROMPT = "prompt"
    VIDEO = "video"  # part of a drop only where the sidecar says that it is continued


@dataclass(frozen=True)
class Name:
    """A file that belongs to a drop."""

    stem: str  # in NFC, without `.last`
    kind: Kind
    conflict: bool = False  # a sync tool's conflict copy: to be refused, not rendered


# Begin or end of names that sync tools, editors and systems use for their own: see the names in docs/drop-folder.md.
_FOREIGN = re.compile(r"^(?:\.|~\$|~syncthing~|icon\r$|thumbs\.db$|desktop\.ini$)|~$", re.IGNORECASE)
_CONFLICT = re.compile(
    r"\.sync-conflict-\d{8}-\d{6}(?:-\w+)?$|\(.*conflicted copy.*\)|_conflict-|\.conflict\d+$", re.IGNORECASE
)
# What the daemon itself publishes: a copy of it in a drop folder is never a drop.
_PUBLISHED = re.compile(
    rf"-[0-9a-f]{{{ID_DIGITS}}}\.(?:status\.json|poster\.jpg|step\.jpg|preview\.mp4|partial\.mp4|webp|gif)$",
    re.IGNORECASE,
)
_FOREIGN_FOLDER = re.compile(
    r"^(?:[.@#~$]|lost\+found$|__macosx$|system volume information$|queue$|outputs$|"
    + "|".join(rf"{state}$" for state in State)
    + ")",
    re.IGNORECASE,
)


def read(name: str) -> Name | None:
    """What a file's name says; None for a file that is never part of a drop."""
    text = name if name.isascii() else unicodedata.normalize("NFC", name)
    if _FOREIGN.search(text) or _PUBLISHED.search(text) or text.casefold() == DEFAULTS_NAME:
        return None
    stem, dot, extension = text.rpartition(".")
    suffix = (dot + extension).casefold()
    if not stem:
        return None
    conflict = "conflict" in stem.casefold() and _CONFLICT.search(stem) is not None
    if suffix in image.SUFFIXES:
        if stem.casefold().endswith(END_FRAME_MARK) and len(stem) > len(END_FRAME_MARK):
            return Name(stem[: -len(END_FRAME_MARK)], Kind.END_FRAME, conflict)
        return Name(stem, Kind.IMAGE, conflict)
    if suffix == _TEXT and is_sidecar(stem):
        stem, suffix = stem[: -len(_JSON)], _JSON
    kind = Kind.VIDEO if suffix in clip.SUFFIXES else {_JSON: Kind.SIDECAR, _TEXT: Kind.PROMPT}.get(suffix)
    return Name(stem, kind, conflict) if kind and stem else None


def is_sidecar(name: str) -> bool:
    """Whether the file of that name holds JSON, rather than the text of a prompt."""
    return name.casefold().removesuffix(_TEXT).endswith(_JSON)


def is_video(name: str) -> bool:
    """Whether a name is that of a video, rather than the id of a job."""
    return any(name.casefold().endswith(suffix) for suffix in clip.SUFFIXES)


def is_same(one: str, other: str) -> bool:
    """Whether two names mean one file: the stem is compared after NFC, the extension without case."""
    (stem, _, extension), (stem_2, _, extension_2) = (
        unicodedata.normalize("NFC", name).rpartition(".") for name in (one, other)
    )
    return stem == stem_2 and extension.casefold() == extension_2.casefold()


def is_defaults(name: str) -> bool:
    """Whether the file gives its folder's default values."""
    return unicodedata.normalize("NFC", name).casefold() == DEFAULTS_NAME


def may_hold_drops(folder: str) -> bool:
    """Whether a sub-folder of that name can be a preset: not a system's, a sync tool's or the queue's own."""
    return _FOREIGN_FOLDER.search(unicodedata.normalize("NFC", folder)) is None
