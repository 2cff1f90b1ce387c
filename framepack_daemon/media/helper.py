"""Looking into files from strangers: in a short-lived process with limits on memory and time.

`ask` opens the file, has a module's `main` called in that process with the file as its standard input, and gives back
its answer; `answer` is what that `main` calls. The calling process only ever opens the file. Knows no format.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from framepack_daemon.errors import FramepackError
from framepack_daemon.media import nursery


@dataclass(frozen=True)
class Errors:
    """How a kind of file is refused."""

    what: str  # the thing itself, as in "drop the picture itself"
    bad: type[FramepackError]
    incomplete: type[FramepackError]
    too_slow: str  # the mend of one that takes too long


def open_plain(path: Path, errors: Errors) -> BinaryIO:
    """`path` opened for reading; a link is not followed, a pipe not waited for, and nothing but a file accepted."""
    not_plain = errors.bad(f"{path.name}: is not a plain file", hint=f"drop the {errors.what} itself, not a link to it")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link; a socket
            raise not_plain from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_plain
    return open(descriptor, "rb")  # noqa: PTH123 - a descriptor, which the caller closes


def ask(module: str, path: Path, *arguments: object, errors: Errors, timeout_seconds: float) -> dict[str, Any]:
    """What `main` of `module`, called in a process of its own, says of the file at `path`.

    It is called with `arguments` and the seconds of processor time that it may take. Raises one of `errors` for a file
    that is refused or breaks it, OSError when the file can't be opened.
    """
    words = [*map(str, arguments), str(int(timeout_seconds) + 1)]
    with open_plain(path, errors) as file:
        code, said, complaint = nursery.examine(module, words, file, timeout_seconds)
    if code == -signal.SIGALRM:
        raise errors.bad(f"{path.name}: takes longer than {timeout_seconds:g} s to decode", hint=errors.too_slow)
    if code != 0 or not said:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise errors.bad(
            f"{path.name}: breaks the decoder (exit {code}{': ' if last else ''}{last})",
            hint="save it again with another program",
        )
    found: dict[str, Any] = json.loads(said)
    if "message" in found:
        kind = errors.incomplete if found["code"] == errors.incomplete.code else errors.bad
        raise kind(f"{path.name}: {found['message']}", hint=found["hint"])
    return found


def answer(examine: Callable[[], dict[str, Any]], *, errors: Errors, memory_bytes: int, cpu_seconds: int) -> None:
    """Print what `examine` gives, or how it refuses, as one line of JSON, within the limits."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        said = examine()
    except FramepackError as error:
        said = error.as_dict()
    except MemoryError:
        said = errors.bad("needs too much memory to decode", hint="save it again, smaller").as_dict()
    print(json.dumps(said))  # noqa: T201 - the answer to the calling process
