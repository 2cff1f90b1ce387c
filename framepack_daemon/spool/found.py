"""A directory that was found in the queue: the drop that its files make, by their record or by their names.

Somebody put it there by hand, changed a file in it, or a crash left it half done. Its records are the daemon's own and
are made anew.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from framepack_daemon.errors import FramepackError
from framepack_daemon.job import (
    CONTINUED_FILE,
    CONTINUED_STEM,
    DEFAULTS_FILE,
    JOB_ID,
    LATENTS_FILE,
    OUTCOME_FILE,
    OWN_FILES,
    REQUEST_FILE,
    Role,
    Run,
)
from framepack_daemon.media import clip
from framepack_daemon.media import image as pictures
from framepack_daemon.spool import names
from framepack_daemon.spool.capture import signature
from framepack_daemon.spool.drop import Drop, Part, continued_by, sidecar_bytes
from framepack_daemon.spool.queue import read_run

_ROLES = {
    names.Kind.IMAGE: Role.IMAGE,
    names.Kind.END_FRAME: Role.END_FRAME,
    names.Kind.SIDECAR: Role.SIDECAR,
    names.Kind.PROMPT: Role.SIDECAR,
    names.Kind.VIDEO: Role.VIDEO,
}


def drop_in(place: Path, name: str) -> Drop:
    """The drop in `place`, a directory called `name` where it stood; what is wrong with its files is its refusal."""
    run = read_run(place)
    known = JOB_ID.fullmatch(run.job if run else name)
    continued = run.continued if run else None
    before = continued.job if continued else None
    named = next((continued_by(path, before) for path in _dropped(place) if _role(path, run) is Role.SIDECAR), None)
    if named != before or not continued:
        continued = None
        _discard_copies(place)
    parts = []
    for path in _dropped(place):
        role = _role(path, run)
        if names.is_video(path.name) and not continued:
            # One that the sidecar does not name is only taken along.
            role = Role.VIDEO if named and names.is_same(path.name, named) else Role.ASIDE
        parts.append(Part(role, path.name, path))
    defaults = place / DEFAULTS_FILE
    for own in (REQUEST_FILE, OUTCOME_FILE, LATENTS_FILE):
        (place / own).unlink(missing_ok=True)
    drop = Drop(
        known["stem"] if known else name,
        tuple(parts),
        defaults=sidecar_bytes(defaults) if signature(defaults) else None,
        continued=continued,
    )
    return replace(drop, refusal=_unusable(drop, place))


def _dropped(place: Path) -> list[Path]:
    """The files that are not the daemon's own records."""
    return [
        path
        for path in sorted(place.iterdir())
        if path.name not in OWN_FILES and not path.name.startswith(".") and signature(path) is not None
    ]


def _role(path: Path, run: Run | None) -> Role:
    """What a file is, by the record or else by its name."""
    recorded = next((item.role for item in run.files if item.name == path.name), None) if run else None
    if recorded or path.name == CONTINUED_FILE:
        return recorded or Role.LATENTS
    read = names.read(path.name)
    return _ROLES[read.kind] if read else Role.ASIDE


def _discard_copies(place: Path) -> None:
    """Remove what was copied from a job that is not continued any more, or was copied in part before a crash."""
    if not (place / CONTINUED_FILE).exists():
        return
    for path in _dropped(place):
        if path.stem == CONTINUED_STEM and _role(path, None) in (Role.IMAGE, Role.VIDEO):
            path.unlink()
    (place / CONTINUED_FILE).unlink()  # last: as long as it is there, a crash leads here again


def _unusable(drop: Drop, place: Path) -> FramepackError | None:
    """Why the pictures and videos of the drop cannot be used: nobody has looked into them yet."""
    try:
        for part in drop.of(Role.IMAGE, Role.END_FRAME):
            pictures.check(place / part.name)
        for part in drop.of(Role.VIDEO):
            clip.check(place / part.name)
    except FramepackError as error:
        return error
    return None
