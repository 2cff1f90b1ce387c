"""What this machine has, found out without torch: GPUs, memory, installed libraries."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
SMI_SECONDS = 20  # nvidia-smi wakes sleeping cards
QUERY = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU; memory is unknown where only the driver's folder tells of it."""

    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs, as nvidia-smi or else the driver's folder lists them."""
    smi = shutil.which("nvidia-smi")
    if smi:
        try:
            listed = subprocess.run(
                [smi, *QUERY], capture_output=True, text=True, timeout=SMI_SECONDS, check=True
            ).stdout.splitlines()
        except (OSError, subprocess.SubprocessError):
            listed = []
        if listed:
            return [_gpu(line) for line in listed]
    return [Gpu(_driver_name(folder)) for folder in sorted(DRIVER_FOLDER.glob("*"))]


def _gpu(line: str) -> Gpu:
    name, *memory = (part.strip() for part in line.rsplit(",", 2))
    sizes = [int(text) * MIB if text.isdigit() else None for text in memory]
    return Gpu(name, *sizes)


def _driver_name(folder: Path) -> str:
    for line in (folder / "information").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Model":
            return value.strip()
    return folder.name


def memory() -> tuple[int, int]:
    """(all, available) bytes of main memory."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    return total, available


def version(library: str) -> str | None:
    """The installed version of a library; None when it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
