"""`demo`: the sample pair from the drop folder to the video, with a daemon of its own where none runs.

It does what a user would do: copies two files into the inbox and waits. The seed in the sidecar is drawn anew each
time, because a pair that is known already would start nothing. The daemon it started is stopped in any case.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from framepack_daemon.cli import completion, machine
from framepack_daemon.cli.context import Face, face, note, say
from framepack_daemon.errors import EXIT_DONE, EXIT_JOB_FAILED, FramepackError
from framepack_daemon.job import REQUEST_FILE, State
from framepack_daemon.request import draw_seed
from framepack_daemon.settings import PREFIX, SECRET, Settings

SAMPLE = "beach"
# Fields that keep the sample small enough for a CPU; a real model gets its own defaults.
SMALL = ("width", "height", "resolution", "frames", "seconds", "num_inference_steps")
START_SECONDS = 60.0  # for the daemon to hold the queue
INTAKE_SECONDS = 120.0  # for the pair to become a job, beyond the time that it has to stand still
RENDER_SECONDS = {"tiny": 900.0}  # for the video
REAL_RENDER_SECONDS = 4 * 3600.0
POLL_SECONDS = 0.2
STOP_SECONDS = 30.0  # beyond the daemon's own stop timeout
LOG_LINES = 15  # of the daemon's log, shown when it ended by itself
LOG_FILE = "demo.log"


class DemoError(FramepackError):
    """The demo did not come to its end."""

    code = "demo"
    exit_code = EXIT_JOB_FAILED


def demo(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The model that renders. Default: tiny.",
            autocompletion=completion.of_setting("model"),
        ),
    ] = None,
) -> None:
    """Make a video of the sample picture, to see that everything works.

    Makes or fetches the model if it is missing, starts a daemon unless one runs, drops the sample pair into the inbox,
    waits for the video, and prints its path.
    """
    from framepack_daemon.cli import waiting

    asked = face(ctx)
    if model is not None:
        asked = Face({**asked.flags, "model": model}, asked.config)
    settings = asked.settings
    _ready_model(settings)
    settings.inbox.mkdir(parents=True, exist_ok=True)
    with _signals(), _daemon(settings) as alive:
        seed = draw_seed()
        _drop(settings, seed)
        status = _follow(asked, seed, alive)
    code = waiting.results(settings.outputs, [status], lambda path: say(str(path)))
    if code == EXIT_DONE:
        _how_to_go_on(settings)
    raise typer.Exit(code)


def _ready_model(settings: Settings) -> None:
    from framepack_daemon import weights

    if weights.present(settings.model, settings.models_dir):
        return
    if settings.model == "tiny":
        note("making the tiny model (once) …")
    else:
        note(f"fetching {settings.model} into {settings.models_dir} (once; some 40 GB) …")
    weights.pull(settings.model, settings.models_dir)


@contextmanager
def _signals() -> Iterator[None]:
    """End by exceptions when told to, so that the daemon is stopped on the way out."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _daemon(settings: Settings) -> Iterator[Callable[[], None]]:
    """A daemon on the queue while the block runs: the one that holds it, or our own.

    Gives a function that raises `DemoError` when our own daemon has ended.
    """
    from framepack_daemon.spool.lock import daemon_runs

    if daemon_runs(settings.queue_dir):
        note("a daemon runs on this queue already; it makes the video")
        yield lambda: None
        return
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    log = settings.work_dir / LOG_FILE
    flags, variables = handed_on(settings)
    command = [sys.executable, "-m", "framepack_daemon", *flags, "run"]
    note(f"starting a daemon; its log: {log}")
    # A session of its own: Ctrl-C comes to us, and we stop the daemon in order.
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=os.environ | variables,
            start_new_session=True,
        )

    def alive() -> None:
        if process.poll() is not None:
            tail = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            note("\n".join(tail))
            raise DemoError(f"the daemon ended with exit code {process.returncode}", hint=f"see {log}")

    try:
        _until(lambda: daemon_runs(settings.queue_dir), START_SECONDS, "the daemon did not start", alive)
        yield alive
    finally:
        _stop(process, settings.stop_timeout_seconds + STOP_SECONDS)


def handed_on(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """Global flags, and variables for what is secret, that make another process's settings equal to these."""
    values = settings.model_dump(exclude_none=True) | {"log_format": "console"}
    flags, variables = [], {}
    for name, value in values.items():
        parts = value if isinstance(value, tuple) else [value]
        words = " ".join(part.get_secret_value() if name in SECRET else str(part) for part in parts)
        if name in SECRET:
            variables[PREFIX + name.upper()] = words
        else:
            flags.append(f"--{name.replace('_', '-')}={words}")
    return flags, variables


def _stop(process: subprocess.Popen[bytes], patience_seconds: float) -> None:
    process.terminate()
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _drop(settings: Settings, seed: int) -> None:
    """Copy the sample pair into the inbox, under a name that is free."""
    samples = resources.files("framepack_daemon") / "samples"
    sidecar = json.loads((samples / f"{SAMPLE}.json").read_text()) | {"seed": seed, "model": settings.model}
    if settings.model != "tiny":
        sidecar = {name: value for name, value in sidecar.items() if name not in SMALL}
    stem = next(name for name in _stems() if not any(settings.inbox.glob(f"{name}.*")))
    note(f"dropping {stem}.jpg and {stem}.json into {settings.inbox}")
    with resources.as_file(samples / f"{SAMPLE}.jpg") as picture:
        shutil.copyfile(picture, settings.inbox / f"{stem}.jpg")
    (settings.inbox / f"{stem}.json").write_text(json.dumps(sidecar, indent=2) + "\n")


def _stems() -> Iterator[str]:
    yield SAMPLE
    for number in range(2, 1000):
        yield f"{SAMPLE}{number}"


def _follow(asked: Face, seed: int, alive: Callable[[], None]) -> dict[str, Any]:
    """Wait for the job with our seed, then for its end; its status."""
    from framepack_daemon.cli import waiting

    settings, queue, outputs = asked.spool
    found: list[str] = []

    def taken() -> bool:
        found.extend(job for state in State for job in queue.names(state) if _seed(queue.path(state, job)) == seed)
        return bool(found)

    _until(taken, settings.settle_seconds + INTAKE_SECONDS, "the pair was not taken from the inbox", alive)
    limit = time.monotonic() + RENDER_SECONDS.get(settings.model, REAL_RENDER_SECONDS)

    def alive_in_time() -> None:
        alive()
        if time.monotonic() > limit:
            raise DemoError("the video took too long", hint=f"see framepack-daemon status {found[0]}")

    return waiting.follow(queue, outputs, found[:1], alive_in_time)[0]


def _seed(folder: Path) -> int | None:
    from framepack_daemon import atomic

    return (atomic.read_json(folder / REQUEST_FILE) or {}).get("seed") if folder.name.startswith(SAMPLE) else None


def _until(true: Callable[[], bool], limit_seconds: float, problem: str, alive: Callable[[], None]) -> None:
    end = time.monotonic() + limit_seconds
    while not true():
        alive()
        if time.monotonic() > end:
            raise DemoError(f"{problem} within {limit_seconds:g} s", hint="see what framepack-daemon doctor says")
        time.sleep(POLL_SECONDS)


def _how_to_go_on(settings: Settings) -> None:
    note("")
    program = Path(sys.executable).parent / "framepack-daemon"
    note(f"Your own: {program} run")
    note(f"then copy a picture and a .json of its name into {settings.inbox}")
    note(f"What a sidecar can say: {program} schema")
    note(f"How things stand: {program} status --watch")
    if settings.model == "tiny" and machine.gpus():
        note("This machine has an NVIDIA GPU. The real model: make demo MODEL=framepack-i2v")
