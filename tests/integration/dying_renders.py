"""Kill renders at random moments until they end: `python dying_renders.py MODELS IMAGE FOLDER SIDECAR KILLS`.

Loads the tiny model once; each attempt is a fork of this process. Prints how it went as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from framepack_daemon.engine import models, render
from framepack_daemon.engine.sources import Sources
from framepack_daemon.request import Request, build

POLL_SECONDS = 0.002
STARTS = "starts.txt"  # a line for each attempt that came as far as sampling: the section that it resumed, or 0


def fork(request: Request, loaded: models.Models, image: Path, scratch: Path) -> int:
    """Render in a process of its own; its id."""
    child = os.fork()
    if child:
        return child
    for event in render.render(request, loaded, Sources(image), scratch):
        if isinstance(event, render.Started):
            with (scratch / STARTS).open("a") as file:
                file.write(f"{event.resumed_section or 0} {event.note}\n")
    os._exit(0)


def attempt(child: int, seconds: float) -> bool:
    """Let a render run so long, then kill it; whether it had not ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return False
        time.sleep(POLL_SECONDS)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    models_dir, image, folder, sidecar, kills = sys.argv[1:]
    torch.set_num_threads(1)
    loaded = models.load("tiny", Path(models_dir))
    request, picture = build(json.loads(sidecar)), Path(image)
    numbers = random.Random(1)

    def new(name: str) -> Path:
        scratch = Path(folder) / name
        scratch.mkdir()
        return scratch

    def digest(scratch: Path) -> str:
        return hashlib.sha256((scratch / render.VIDEO).read_bytes()).hexdigest()

    started = time.monotonic()
    undisturbed = new("undisturbed")
    assert not attempt(fork(request, loaded, picture, undisturbed), float("inf"))
    section_seconds = (time.monotonic() - started) / request.sections

    hits, scratches = 0, [new("0")]
    while hits < int(kills):
        child = fork(request, loaded, picture, scratches[-1])
        if attempt(child, numbers.uniform(0, 2.2 * section_seconds)):
            hits += 1
        else:
            scratches.append(new(str(len(scratches))))
    attempt(fork(request, loaded, picture, scratches[-1]), float("inf"))

    starts = [line.split(maxsplit=1) for scratch in scratches for line in (scratch / STARTS).read_text().splitlines()]
    result = {
        "kills": hits,
        "videos": len(scratches),
        "resumed": sum(start[0] != "0" for start in starts),
        "notes": [start[1] for start in starts if len(start) > 1],
        "same": all(digest(scratch) == digest(undisturbed) for scratch in scratches),
        "left": sorted({path.name for path in scratches[0].iterdir()} - {STARTS}),
        "expected": sorted({path.name for path in undisturbed.iterdir()} - {STARTS}),
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
