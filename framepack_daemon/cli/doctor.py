"""`doctor`: whether the daemon can work here, each line ok or what to do about it.

Every check tries the thing itself (a file is written, a rename done, a frame encoded, a change waited for) and takes
back what it made. torch is not imported: the worker's process finds out what only it can know.
"""

import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import typer

from framepack_daemon.cli import machine, wording
from framepack_daemon.cli.context import console, face, say
from framepack_daemon.errors import EXIT_CONFIGURATION, EXIT_DONE, FramepackError
from framepack_daemon.printable import printable
from framepack_daemon.settings import Settings

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface-hub", "av", "pillow")
ENOUGH_BYTES = 1 << 30  # free space below which a folder is warned of
NOTICE_SECONDS = 5.0  # in which a file's appearance must have been noticed
PROBE = ".framepack-doctor."  # hidden, so that the inbox's scan leaves it alone


class Mark(Enum):
    """What a line says."""

    OK = ("ok", "green")
    NOTE = ("--", "yellow")  # works, with something to know
    BAD = ("no", "bold red")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do where it is not well."""

    mark: Mark
    subject: str
    text: str
    mend: str = ""


def doctor(ctx: typer.Context) -> None:
    """Check whether everything is here that the daemon needs.

    Each line is ok, or says what to do. Exit code 78 if the daemon cannot work as things are.
    """
    from framepack_daemon.spool.lock import daemon_runs

    settings, _, _ = face(ctx).spool
    findings = list(examine(settings))
    _show(findings)
    bad = [finding for finding in findings if finding.mark is Mark.BAD]
    if bad:
        say(f"\nnot usable yet: {', '.join(finding.subject for finding in bad)}")
        raise typer.Exit(EXIT_CONFIGURATION)
    runs = daemon_runs(settings.queue_dir)
    say("\nusable; the daemon runs" if runs else "\nusable; start it with: framepack-daemon run")
    raise typer.Exit(EXIT_DONE)


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, in the order in which one would mend things."""
    yield _libraries()
    gpus = machine.gpus()
    yield _device(settings, gpus)
    yield _memory(settings, gpus)
    yield _model(settings)
    yield _encoding()
    for name in ("inbox", "outputs", "queue_dir", "work_dir"):
        yield _folder(name, getattr(settings, name))
    yield _rename(settings)
    yield _notices(settings.inbox)


def _libraries() -> Finding:
    found = {name: machine.version(name) for name in LIBRARIES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        return Finding(Mark.BAD, "libraries", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Finding(Mark.OK, "libraries", ", ".join(f"{name} {version}" for name, version in found.items()))


def _device(settings: Settings, gpus: list[machine.Gpu]) -> Finding:
    names = ", ".join(gpu.name for gpu in gpus)
    if gpus and settings.device != "cpu":
        if (machine.version("torch") or "").endswith("+cpu"):
            return Finding(
                Mark.BAD if settings.device != "auto" else Mark.NOTE,
                "GPU",
                f"{names}, but this torch is built for the CPU alone",
                "install a torch that is built for CUDA: https://pytorch.org/get-started/locally",
            )
        return Finding(Mark.OK, "GPU", names)
    if settings.device.startswith("cuda"):
        return Finding(
            Mark.BAD,
            "GPU",
            f"none found, and device is {settings.device}",
            "install the NVIDIA driver, or set device = auto",
        )
    found = f"{names} (unused: device is cpu)" if gpus else "no NVIDIA GPU; the CPU renders"
    if settings.model == "tiny":
        return Finding(Mark.OK, "GPU", found)
    return Finding(
        Mark.NOTE,
        "GPU",
        found,
        f"{settings.model} takes hours for each second of video on a CPU; to try out, set model = tiny",
    )


def _memory(settings: Settings, gpus: list[machine.Gpu]) -> Finding:
    total, available = machine.memory()
    words = [f"{wording.size(available)} of {wording.size(total)} free"]
    words += [
        f"GPU {number}: {wording.size(gpu.free_bytes or 0)} of {wording.size(gpu.total_bytes)} free"
        for number, gpu in enumerate(gpus)
        if gpu.total_bytes
    ]
    return Finding(Mark.OK, "memory", f"{'; '.join(words)}; plan {settings.memory}: chosen when the worker loads")


def _model(settings: Settings) -> Finding:
    from framepack_daemon import weights

    here = [name for name in weights.MODEL_NAMES if weights.present(name, settings.models_dir)]
    listed = f"{settings.model} ({', '.join(here) or 'none'} in {settings.models_dir})"
    if settings.model in here:
        return Finding(Mark.OK, "model", listed)
    return Finding(
        Mark.BAD, "model", f"{listed}: is not here, or not whole", f"framepack-daemon models pull {settings.model}"
    )


def _encoding() -> Finding:
    """Encode one frame, decode it, and say with what."""
    import numpy as np

    from framepack_daemon.media import encoders, video

    with tempfile.TemporaryDirectory(prefix="framepack-doctor-") as folder:
        path = Path(folder, "frame.mp4")
        try:
            with video.SegmentWriter(path, 64, 64) as writer:
                writer.write(np.zeros((1, 64, 64, 3), np.uint8))
            video.verify(path, frames=1, width=64, height=64)
        except FramepackError as error:
            return Finding(
                Mark.BAD, "encoding", error.message, "reinstall PyAV with x264: pip install --force-reinstall av"
            )
    return Finding(Mark.OK, "encoding", f"{', '.join(encoders.available_codecs())}; no ffmpeg needed")


def _folder(name: str, folder: Path) -> Finding:
    """Whether a folder, or the one in which it will be made, can be written and has room."""
    from framepack_daemon.spool import watch

    there = _nearest(folder)
    words = f"{folder}, {wording.size(shutil.disk_usage(there).free)} free, {watch.file_system(there) or 'unknown'}"
    if there != folder:
        words += ", will be made"
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return Finding(Mark.BAD, name, f"{words}: {error.strerror}", f"let user {os.getuid()} write in {there}")
    if shutil.disk_usage(there).free < ENOUGH_BYTES:
        return Finding(Mark.NOTE, name, words, "make room: a job needs some hundred MB at times")
    if name == "work_dir" and watch.is_remote(there):
        return Finding(Mark.NOTE, name, words, "set work_dir to a folder on a local disk: it is faster and safer")
    return Finding(Mark.OK, name, words)


def _nearest(folder: Path) -> Path:
    """The folder itself or the closest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _rename(settings: Settings) -> Finding:
    source = _nearest(settings.inbox) / f"{PROBE}{secrets.token_hex(4)}"
    target = _nearest(settings.queue_dir) / source.name
    try:
        source.touch()
        source.rename(target)
    except OSError as error:
        return Finding(
            Mark.NOTE,
            "inbox to queue",
            f"files cannot be renamed from one to the other ({error.strerror}); they are copied",
            "for speed, set queue_dir to a folder on the inbox's file system",
        )
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return Finding(Mark.OK, "inbox to queue", "one file system: drops are taken by rename")


def _notices(inbox: Path) -> Finding:
    from framepack_daemon.spool import watch

    there = _nearest(inbox)
    if watch.is_remote(there):
        return Finding(
            Mark.NOTE, "notices", "none: the inbox is on a network share, and is looked at every poll_seconds instead"
        )
    try:
        noticed = _is_noticed(there)
    except OSError:
        return Finding(Mark.NOTE, "notices", "not tried: the inbox cannot be written")
    if noticed:
        return Finding(Mark.OK, "notices", "a file that appears in the inbox is noticed at once (inotify)")
    return Finding(
        Mark.NOTE,
        "notices",
        "files that appear are not noticed; the inbox is looked at every rescan_seconds instead",
        "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances, or lower rescan_seconds",
    )


def _is_noticed(folder: Path) -> bool:
    """Make a file in a hidden folder of `folder` and wait for the daemon's own bell to ring."""
    from framepack_daemon.spool import watch

    rung = threading.Event()
    with tempfile.TemporaryDirectory(prefix=PROBE, dir=folder) as probe:
        bell = watch.Bell(lambda _: rung.set())
        bell.watch([Path(probe)])
        try:
            Path(probe, "drop").touch()
            return rung.wait(NOTICE_SECONDS)
        finally:
            bell.stop()


def _show(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        word, style = finding.mark.value
        text = Text(printable(finding.text))
        if finding.mend:
            text.append(f"\n→ {printable(finding.mend)}", style)
        table.add_row(Text(word, style), Text(finding.subject, "bold"), text)
    console().print(table)
