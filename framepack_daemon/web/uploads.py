"""Uploads: a multipart form, read from the wire straight into a folder of the queue that no state knows.

What comes is written as it comes, under names of our own; of a client's file name only a stem and a known suffix are
kept. The folder is locked while the upload lasts and removed after it, also when the client hangs up; one that a killed
gateway left is removed by the daemon's next start. Knows no field of a request.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from framepack_daemon import atomic
from framepack_daemon.job import State, safe_stem
from framepack_daemon.media import clip, image
from framepack_daemon.spool.add import COPYING
from framepack_daemon.strict_json import MAX_SIDECAR_BYTES
from framepack_daemon.web.gateway import Gateway
from framepack_daemon.web.problems import (
    MediaTypeError,
    QueueFullError,
    SlowUploadError,
    TooLargeError,
    UploadError,
)

MAX_PARTS = 64
MAX_NAME_BYTES = 1024  # of a part
_AGAIN = "#"  # between the name of a part that came before, and a number
SUFFIXES = image.SUFFIXES | clip.SUFFIXES


@dataclass
class Upload:
    """What came: texts and files by the names of their parts."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def all_files(self) -> dict[str, list[Path]]:
        """The files by the names of their parts, also of those that came several times."""
        found: dict[str, list[Path]] = {}
        for name, path in self.files.items():
            found.setdefault(name.partition(_AGAIN)[0], []).append(path)
        return found


@asynccontextmanager
async def received(
    request: Request, here: Gateway, files: Collection[str], several: Collection[str] = (), max_parts: int = MAX_PARTS
) -> AsyncIterator[Upload]:
    """The upload of a request, whose parts of these names are files; they are there while the block runs.

    Those in `several` may come more than once.
    Raises a `GatewayError` for one that is too large, too slow or no form, or that comes when too many jobs wait.
    """
    boundary = _boundary(request)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > here.web.max_upload_bytes:
        raise TooLargeError(
            f"the upload has {length[:20]} bytes", hint=f"at most {here.web.max_upload_bytes} with all its parts"
        )
    with ExitStack() as stack:
        folder = await run_in_threadpool(_begin, here, stack)
        form = _Form(folder, frozenset(files), frozenset(several), max_parts)
        await _read(request, here, boundary, form, stack)
        yield form.upload


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise MediaTypeError("Content-Type: is no multipart/form-data", hint="send the fields as a form")
    return boundary


def _begin(here: Gateway, stack: ExitStack) -> Path:
    """A locked folder for the upload, which `stack` removes."""
    here.expect()
    here.queue.make()
    waiting = len(here.queue.names(State.PENDING))
    if waiting >= here.web.max_pending:
        raise QueueFullError(f"{waiting} jobs wait already", hint="try again when some of them are done")
    folder = here.queue.building / (COPYING + secrets.token_hex(8))
    atomic.make_folder(folder)
    stack.callback(atomic.remove_tree, folder)
    stack.enter_context(atomic.locked(folder))
    return folder


async def _read(request: Request, here: Gateway, boundary: bytes, form: _Form, stack: ExitStack) -> None:
    stack.callback(form.close)
    total = 0
    try:
        parser = MultipartParser(boundary, form.callbacks)  # type: ignore[arg-type] # bound methods
        chunks = aiter(request.stream())
        while True:
            async with asyncio.timeout(here.web.upload_timeout_seconds):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            total += len(chunk)
            if total > here.web.max_upload_bytes:
                raise TooLargeError(
                    "the upload is too large", hint=f"at most {here.web.max_upload_bytes} bytes with all its parts"
                )
            if chunk:
                await run_in_threadpool(parser.write, chunk)
        await run_in_threadpool(parser.finalize)
    except TimeoutError as error:
        raise SlowUploadError("the upload stood still for too long") from error
    except FormParserError as error:
        raise UploadError(f"the body is a damaged form: {error}") from error
    if not form.is_whole:
        raise UploadError("the body breaks off before the form's end")
    form.name_files()


class _Form:
    """Takes in the parts of a form."""

    def __init__(self, folder: Path, files: frozenset[str], several: frozenset[str], max_parts: int) -> None:
        self.upload = Upload()
        self.is_whole = False
        self._folder = folder
        self._names, self._several, self._max_parts = files, several, max_parts
        self._parts = 0
        self._header: list[bytes] = [b"", b""]  # name and value of the one that is being read
        self._disposition = b""
        self._name, self._given = "", ""  # of the part, and the file name that came with it
        self._text: bytearray | None = None
        self._file: BinaryIO | None = None
        self._stems: dict[str, str] = {}  # of files, by part: as the client called them

    @property
    def callbacks(self) -> dict[str, object]:
        """For the parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add_to_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_to_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": lambda data, start, end: self._write(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def close(self) -> None:
        """Close the file of a part that did not end."""
        if self._file is not None:
            self._file.close()

    def name_files(self) -> None:
        """Give each file a name with the stem and suffix that the client gave; an empty one was none."""
        for part, path in list(self.upload.files.items()):
            if path.stat().st_size == 0 and not self._stems[part]:
                del self.upload.files[part]
                continue
            given = Path(self._stems[part].replace("\\", "/")).name
            stem, dot, ending = given.rpartition(".")
            suffix = (dot + ending).lower()
            known = suffix in SUFFIXES and stem != ""
            target = self._folder / part / f"{safe_stem(stem if known else given)}{suffix if known else ''}"
            target.parent.mkdir()
            self.upload.files[part] = path.rename(target)

    def _begin(self) -> None:
        self._parts += 1
        self._disposition = b""
        if self._parts > self._max_parts:
            raise UploadError(f"the form has more than {self._max_parts} parts")

    def _add_to_header(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        raw = options.get(b"name", b"")
        name = self._name = raw.decode(errors="replace")
        self._given = options.get(b"filename", b"").decode(errors="replace")
        if not raw or len(raw) > MAX_NAME_BYTES:
            raise UploadError("a part of the form has no name, or one that is too long")
        if name in self._several and name in self.upload.files:
            self._name += f"{_AGAIN}{self._parts}"
        if self._name in self.upload.fields or self._name in self.upload.files:
            raise UploadError(f"{self._name}: comes twice", hint="send each part once")
        if name in self._names:  # so that it is also a safe name of a folder
            path = self._folder / f"part-{self._parts}"
            self._stems[self._name] = self._given
            self.upload.files[self._name] = path
            self._file = path.open("xb")
        else:
            self._text = bytearray()

    def _write(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
        elif self._text is not None:
            self._text += data
            if len(self._text) > MAX_SIDECAR_BYTES:
                raise UploadError(f"{self._name}: is too long", hint=f"at most {MAX_SIDECAR_BYTES} bytes")

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self._text is not None:
            text, self._text = bytes(self._text), None
            try:
                self.upload.fields[self._name] = text.decode()
            except UnicodeDecodeError as error:
                if self._given:
                    return  # a file that nobody asked for
                raise UploadError(f"{self._name}: is not UTF-8", hint="send text as UTF-8") from error

    def _finish(self) -> None:
        self.is_whole = True
