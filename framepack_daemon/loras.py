"""The folder of LoRA files: which there are, and which of them a request means.

A LoRA is named by the bare name of its file, with or without the extension; nothing outside the folder can be reached,
by a symbolic link neither. Looks at names and bytes only: what is inside a file, and whether it fits the model, the
engine finds out. Imports no torch.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framepack_daemon.errors import LoraError
from framepack_daemon.printable import printable
from framepack_daemon.request_parts import Lora

SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file that is there, and how strongly it acts."""

    name: str  # of the file, with its extension
    path: Path  # without symbolic links
    scale: float
    sha256: str


def names(loras_dir: Path) -> list[str]:
    """The files that a request can name, sorted; none where there is no such folder."""
    try:
        found = sorted(path.name for path in loras_dir.iterdir())
    except OSError:
        return []
    return [name for name in found if _is_bare(name) and Path(name).suffix in SUFFIXES and _inside(loras_dir, name)]


def resolve(loras: Sequence[Lora], loras_dir: Path) -> tuple[LoraFile, ...]:
    """The files of `loras` in their order. Raises `LoraError` for one that is not there, or not in `loras_dir`."""
    return tuple(_resolve(lora, loras_dir) for lora in loras)


def _resolve(lora: Lora, loras_dir: Path) -> LoraFile:
    name = _find(lora.name, loras_dir)
    path = _inside(loras_dir, name)
    if path is None:
        raise LoraError(
            f"LoRA {printable(name)} is no file of {loras_dir}, or a link that leads out of it",
            hint=f"put the file itself into {loras_dir}",
        )
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LoraError(
            f"LoRA {printable(name)} cannot be read: {error.strerror}", hint=f"let the daemon's user read {path}"
        ) from error
    return LoraFile(name, path, lora.scale, digest)


def _find(name: str, loras_dir: Path) -> str:
    """The full name of the file that `name` means."""
    shown = printable(name)
    if not _is_bare(name):
        raise LoraError(
            f"LoRA {shown} is not the bare name of a file", hint=f"put the file into {loras_dir} and write its name"
        )
    there = names(loras_dir)
    if Path(name).suffix in SUFFIXES:
        # Listed or not: a folder, or a link that leads elsewhere, has a message of its own.
        found = [name] if os.path.lexists(loras_dir / name) else []
    else:
        found = [name + suffix for suffix in SUFFIXES if name + suffix in there]
    if len(found) > 1:
        raise LoraError(f"LoRA {shown} can be any of {', '.join(found)}", hint="write the name with its extension")
    if not found:
        raise LoraError(f"LoRA {shown} is not in {loras_dir}", hint=_suggest(name, there, loras_dir))
    return found[0]


def _is_bare(name: str) -> bool:
    """Whether a name leads nowhere but to a file of the folder, and to no hidden one."""
    return not (set("/\\\0") & set(name) or name.startswith(("~", ".")))


def _inside(loras_dir: Path, name: str) -> Path | None:
    """The plain file of that name, without symbolic links; None when it is something else or lies elsewhere."""
    try:
        path = (loras_dir / name).resolve(strict=True)
        return path if path.is_file() and path.is_relative_to(loras_dir.resolve()) else None
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise RuntimeError for links in a circle
        return None


def _suggest(name: str, there: list[str], loras_dir: Path) -> str:
    """What to do about a file that is not there."""
    mend = f"put it into {loras_dir}"
    suffix = Path(name).suffix
    if suffix not in SUFFIXES and os.path.lexists(loras_dir / name):
        return f"a LoRA file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    # Without the extension, which all have in common, and without case, only the name itself is compared.
    close = difflib.get_close_matches(
        name.removesuffix(suffix).casefold(), {Path(other).stem.casefold() for other in there}, n=3
    )
    known = [printable(other) for other in there if Path(other).stem.casefold() in close]
    return f"{mend}, or did you mean {' or '.join(known)}?" if known else mend
