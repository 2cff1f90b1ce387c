"""What is in a file that was dropped: whole and good, or what is wrong with it and how that is mended.

Each kind of file has its own check, which reads it to its end. Knows neither what belongs together nor how long a file
is given.
"""

from __future__ import annotations

from pathlib import Path

from framepack_daemon.errors import DropUnreadableError, FramepackError, RequestError
from framepack_daemon.media import clip
from framepack_daemon.media import image as pictures
from framepack_daemon.spool.drop import sidecar_bytes, sidecar_fields
from framepack_daemon.spool.names import Kind
from framepack_daemon.strict_json import MAX_SIDECAR_BYTES


def judge(path: Path, kind: Kind) -> FramepackError | None:
    """What is wrong with the content of a file that stands still; None when it is whole and good."""
    try:
        if kind in (Kind.IMAGE, Kind.END_FRAME):
            pictures.check(path)
            return None
        if kind is Kind.VIDEO:
            clip.check(path)
            return None
        size = path.lstat().st_size
        if size > MAX_SIDECAR_BYTES:
            return RequestError(
                f"{path.name}: is {size} bytes long", hint=f"at most {MAX_SIDECAR_BYTES} bytes are read"
            )
        sidecar_fields(path.name, sidecar_bytes(path))
    except FramepackError as error:
        return error
    except OSError as error:
        return DropUnreadableError(
            f"{path.name}: cannot be read: {error.strerror}", hint="let the daemon's user read it"
        )
    return None
