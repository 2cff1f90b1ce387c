"""What length costs: peak memory of a long video against a short one, and the work for each section at any length.

    python benchmarks/engine.py [--width 64 --height 112] [--steps 1] [--sampling vanilla]

Each video is rendered with the tiny model in a process of its own, on one thread of the CPU. Memory is what the process
holds at most while it renders; beside it what it held once the model was loaded, which no length can change. Work is
the processor's time, which other programs lengthen less than that of the clock; the parts are by the clock. The peak
of one video differs from run to run by some 10 %, by how encoding and decoding fall together; what is held between
sections, in the second table, differs by a few MiB.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from statistics import mean

KIBIBYTES_PER_MEBIBYTE = 1024
SHORT_SECONDS, LONG_SECONDS = 10, 120  # 8 and 100 sections
SECTIONS = (1, 10)  # and those of the long video
FRAMES_PER_SECTION = 36
PARTS = ("encode", "sample", "decode", "write")


def render_here(models_dir: Path, image: Path, sidecar: dict[str, object]) -> dict[str, object]:
    """Render a video in this process; what it took."""
    import torch  # noqa: PLC0415 - not in the process that starts the others

    from framepack_daemon.engine import models, render  # noqa: PLC0415
    from framepack_daemon.engine.sources import Sources  # noqa: PLC0415
    from framepack_daemon.request import build, effective  # noqa: PLC0415

    torch.set_num_threads(1)
    loaded = models.load("tiny", models_dir)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    seconds, resident = [], []
    before_section = time.process_time()
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as folder:
        request = effective(build(sidecar), "tiny")
        for event in render.render(request, loaded, Sources(image), Path(folder)):
            if isinstance(event, render.Section):
                now = time.process_time()
                seconds.append(now - before_section)
                ctypes.CDLL(None).malloc_trim(0)  # what is freed is not held
                resident.append(memory("VmRSS"))
                before_section = now
    assert isinstance(event, render.Finished)
    return {
        "loaded": before,
        "peak": memory("VmHWM"),
        "sections": len(seconds),
        "frames": event.facts.frames,
        "seconds": seconds,
        "resident": resident,
        "parts": event.timings,
    }


def memory(name: str) -> float:
    """MiB of this process, by the kernel's name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / KIBIBYTES_PER_MEBIBYTE


def measure(arguments: argparse.Namespace, models_dir: Path, **length: float) -> dict[str, object]:
    """The same in a process of its own."""
    sidecar = {
        "prompt": "waves",
        "seed": 1,
        "width": arguments.width,
        "height": arguments.height,
        "num_inference_steps": arguments.steps,
        "sampling": arguments.sampling,
        **length,
    }
    command = [sys.executable, __file__, "--child", str(models_dir), json.dumps(sidecar)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)


def print_memory(short: dict[str, object], long: dict[str, object]) -> None:
    """The table of memory."""
    print("| video | sections | model loaded | at most | above the loaded model |")
    print("|---|---|---|---|---|")
    for name, found in ((f"{SHORT_SECONDS} s", short), (f"{LONG_SECONDS} s", long)):
        above = found["peak"] - found["loaded"]
        print(
            f"| {name} | {found['sections']} | {found['loaded']:.0f} MiB | {found['peak']:.0f} MiB | {above:.0f} MiB |"
        )
    above = [found["peak"] - found["loaded"] for found in (short, long)]
    print(f"| ratio | | | {long['peak'] / short['peak']:.3f} | {above[1] / above[0]:.2f} |\n")


def print_work(runs: list[dict[str, object]]) -> None:
    """The table of work for each section; its last tenth shows what grows with what is there already."""
    parts = " | ".join(f"{part}, s" for part in PARTS)
    print(f"| sections | CPU s for each | in the last tenth | MiB held then | {parts} |")
    print("|---|---|---|---|" + "---|" * len(PARTS))
    for found in runs:
        count = found["sections"]
        last = slice(-max(count // 10, 1), None)
        spent = " | ".join(f"{found['parts'].get(part, 0) / count:.3f}" for part in PARTS)
        late, held = mean(found["seconds"][last]), mean(found["resident"][last])
        print(f"| {count} | {mean(found['seconds']):.3f} | {late:.3f} | {held:.0f} | {spent} |")


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64, help="pixels")
    parser.add_argument("--height", type=int, default=112, help="pixels")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--sampling", default="inverted_anti_drifting")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as folder:
        models_dir = Path(folder)
        subprocess.run(
            [sys.executable, "-m", "framepack_daemon.engine.tiny", str(models_dir / "tiny")],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        short = measure(arguments, models_dir, seconds=SHORT_SECONDS)
        runs = [measure(arguments, models_dir, frames=FRAMES_PER_SECTION * sections + 1) for sections in SECTIONS]
        long = measure(arguments, models_dir, seconds=LONG_SECONDS)
    print_memory(short, long)
    print_work([*runs, long])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        picture = Path(str(resources.files("framepack_daemon") / "samples" / "beach.jpg"))
        json.dump(render_here(Path(sys.argv[2]), picture, json.loads(sys.argv[3])), sys.stdout)
    else:
        main()
