"""`check` and `schema`: what a sidecar may say, and whether one says it right."""

import json
import unicodedata
from pathlib import Path
from typing import Annotated, Any

import typer

from framepack_daemon.aliases import ALIASES, describe
from framepack_daemon.cli.context import report, say
from framepack_daemon.errors import EXIT_DONE, FramepackError, RequestError
from framepack_daemon.printable import printable
from framepack_daemon.request import FPS, Request, build
from framepack_daemon.strict_json import MAX_SIDECAR_BYTES


def check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Sidecars, or defaults.json.", show_default=False)
    ],
) -> None:
    """Check sidecars: each is ok, or what is wrong with it and how to mend it.

    A defaults.json beside a sidecar counts, as it does in the inbox. Exit code 2 if any file is wrong.
    """
    code = EXIT_DONE
    for file in files:
        try:
            say(f"{printable(file)}: ok, {_describe(_request(file))}")
        except FramepackError as error:
            report(type(error)(f"{file}: {error.message}", hint=error.hint))
            code = error.exit_code
    raise typer.Exit(code)


def _request(file: Path) -> Request:
    from framepack_daemon.spool import continuation, groups, names

    fields = _fields(file)
    if names.is_defaults(file.name):
        return groups.preset_request(fields)
    beside = file.with_name(names.DEFAULTS_NAME)
    request = build(fields, _fields(beside) if beside.is_file() else None)
    stem = unicodedata.normalize("NFC", file.stem)
    if request.continue_from and (wrong := continuation.misnamed(stem, request.continue_from)):
        raise wrong
    return request


def _fields(file: Path) -> dict[str, Any]:
    """The fields that a file gives: a JSON object's, or the prompt that a .txt is."""
    from framepack_daemon.spool.drop import sidecar_fields

    if not file.is_file():
        raise RequestError("is no plain file" if file.exists() else "is not there", hint="name a sidecar")
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_SIDECAR_BYTES + 1)
    except OSError as error:
        raise RequestError(f"cannot be read: {error.strerror}") from error
    return sidecar_fields(file.name, data)


def _describe(request: Request) -> str:
    frames = request.video_frames
    size = f"{request.width}x{request.height}" if request.width else f"around {request.resolution or 640} pixels"
    if request.continue_from:
        size = f"going on from {request.continue_from}"
    sections = f"{request.sections} section{'s' if request.sections > 1 else ''}"
    times = f", {request.takes} times" if request.takes > 1 else ""
    return f"{frames} frames ({frames / FPS:.2f} s) in {sections}, {size}{times}"


def schema() -> None:
    """Print the JSON Schema of a sidecar."""
    say(json.dumps(_schema(), indent=2))


def _schema() -> dict[str, Any]:
    """`Request`'s schema with the original's names, which a sidecar may use as well."""
    found = Request.model_json_schema()
    found["title"] = "framepack-daemon sidecar"
    for alias in ALIASES:
        found["properties"][alias] = {"description": describe(alias), "deprecated": True}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
