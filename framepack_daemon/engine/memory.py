"""Memory plans: which networks stay on the device, which pass over it, and in what form.

`choose` takes the fastest plan that fits the device's free memory, `lower` the one to try when that was too much;
`cast` and `stream` bring a network into the form that a plan wants. What a plan needs is reckoned from the sizes below,
upwards where in doubt. Knows no jobs, and loads nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.hooks.group_offloading import apply_group_offloading

from framepack_daemon.errors import OutOfMemoryError

# From the fastest to the one that needs the least; docs/memory.md says what each does.
PLANS = ("resident", "balanced", "low", "minimal")
GIB = 2**30

# Billions of parameters, at 2 bytes each in bfloat16 and float16.
TRANSFORMER = 12.874  # 20 double blocks of 0.340, 40 single blocks of 0.142, 0.414 around them
CASTABLE = 9.133  # of those, in the layers that are kept in float8, at 1 byte
DOUBLE_BLOCK = 0.340
AROUND_BLOCKS = 0.414
ENCODERS = 7.505 + 0.123 + 0.428  # Llama, CLIP, SigLIP
VAE = 0.246
_BILLION = 1e9 / GIB  # GiB of a billion bytes

WEIGHTS_GIB = {
    "resident": (TRANSFORMER + ENCODERS + VAE) * 2 * _BILLION,  # 21.18e9 * 2 bytes = 39.4 GiB
    "balanced": (TRANSFORMER + VAE) * 2 * _BILLION,  # 13.12e9 * 2 = 24.4 GiB
    "low": (CASTABLE + (TRANSFORMER - CASTABLE + VAE) * 2) * _BILLION,  # 9.13e9 + 3.99e9 * 2 = 15.9 GiB
    "minimal": (2 * DOUBLE_BLOCK + AROUND_BLOCKS) * 2 * _BILLION,  # one block works, the next one arrives: 2.0 GiB
}
CONTEXT_GIB = 0.6  # of CUDA itself, outside torch's allocator
NOMINAL_PIXELS = 640 * 608  # of a frame, until a job says otherwise

# The widest moment of a single block: 20 tensors of 3072 values of 2 bytes for each token (query, key and value, the
# MLP before and after its activation, the rotation in float32). A section's tokens are of 16x16 pixels each, of 9
# latent frames, 2 clean ones, and about 0.6 for the compressed history; and 1,300 more of text and image.
TOKEN_BYTES = 20 * 3072 * 2
SECTION_FRAMES = 9 + 2 + 0.6
TOLD_TOKENS = 1300
# The VAE decodes 5 latent frames into 17 at a time, and holds four tensors of 256 channels at full size.
VAE_BYTES_PER_PIXEL = 4 * 256 * 17  # times the bytes of a value
# Its attention over n = 5 * height/8 * width/8 places makes a mask and scores of n^2 values, some in float32.
VAE_ATTENTION_BYTES = 14
TILE_PIXELS = 256 * 256
DECODED_BYTES_PER_PIXEL = 3 * 69 * 2 * 3  # a window of 69 frames, its tiles, and what is blended
TILING_SHARE = 0.9  # of a device's memory that whole frames may fill

HOST_RESERVE_GIB = 4.0  # to leave to the host when memory is pinned

Network = TypeVar("Network", bound=torch.nn.Module)


@dataclass(frozen=True)
class Room:
    """A device's memory before anything of ours is in it, in GiB."""

    total: float
    free: float
    is_gpu: bool


def room(device: torch.device) -> Room:
    """The memory of `device` at this moment."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(total / GIB, free / GIB, is_gpu=True)
    page = os.sysconf("SC_PAGE_SIZE")
    return Room(os.sysconf("SC_PHYS_PAGES") * page / GIB, _free_host_gib(), is_gpu=False)


def _free_host_gib() -> float:
    return _field("/proc/meminfo", "MemAvailable")


def _field(file: str, name: str) -> float:
    """GiB of a field of the kernel's, which counts in KiB."""
    lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024 / GIB


@dataclass(frozen=True)
class Peaks:
    """The most that this process had at once, in bytes."""

    gpu: int  # of torch's allocator; 0 on a CPU
    host: int  # resident, what is mapped from files included


def forget_peaks(device: torch.device) -> None:
    """Begin to measure anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # a kernel without it leaves the peak since the process began
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peaks(device: torch.device) -> Peaks:
    """The peaks since they were last forgotten."""
    host = int(_field("/proc/self/status", "VmHWM") * GIB)
    return Peaks(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0, host)


def lower(plan: str) -> str | None:
    """The plan that needs less than `plan`; None when there is none."""
    return next(iter(PLANS[PLANS.index(plan) + 1 :]), None)


def choose(
    setting: str,
    room: Room,
    preservation: float,
    *,
    model: str = "framepack-i2v",
    pixels: int = NOMINAL_PIXELS,
    below: str | None = None,
) -> str:
    """The plan for a job.

    Args:
        setting: "auto", or a plan, which is then taken whatever is free.
        room: of the device, before anything of ours was in it.
        preservation: GiB of it to leave free.
        model: one of `weights.MODEL_NAMES`.
        pixels: of a frame.
        below: a plan on which the job ran out of memory: only a lower one will do, if there is one.
    """
    allowed = PLANS if setting == "auto" else PLANS[PLANS.index(setting) :]
    if below is not None:
        allowed = tuple(plan for plan in allowed if PLANS.index(plan) > PLANS.index(below)) or PLANS[-1:]
    # On a CPU the plans share one memory: there is nothing to move.
    if setting != "auto" or model == "tiny" or not room.is_gpu:
        return allowed[0]
    available = room.free - preservation
    return next((plan for plan in allowed if needed(plan, pixels, room.total) <= available), PLANS[-1])


def needed(plan: str, pixels: int, total: float) -> float:
    """GiB of a GPU of `total` GiB that a FramePack model needs for frames of so many pixels."""
    tokens = pixels / 256 * SECTION_FRAMES + TOLD_TOKENS
    sampling = tokens * TOKEN_BYTES / GIB
    decoding = decoding_gib(pixels, tiled=tiles(plan, pixels, total))
    if plan == "minimal":  # the VAE comes when the blocks have gone
        return max(WEIGHTS_GIB[plan] + sampling, VAE * 2 * _BILLION + decoding) + CONTEXT_GIB
    return WEIGHTS_GIB[plan] + max(sampling, decoding) + CONTEXT_GIB


def tiles(plan: str, pixels: int, total: float, value_bytes: int = 2) -> bool:
    """Whether the VAE of a FramePack model takes frames of so many pixels in tiles, which changes them a little.

    Follows from the plan, the size and the device's whole memory in GiB, not from what is free: a seed gives the same
    video whatever ran before.
    """
    if plan in ("low", "minimal"):
        return True
    weights = WEIGHTS_GIB[plan] * value_bytes / 2
    return weights + decoding_gib(pixels, tiled=False, value_bytes=value_bytes) + CONTEXT_GIB > total * TILING_SHARE


def decoding_gib(pixels: int, *, tiled: bool, value_bytes: int = 2) -> float:
    """GiB that the VAE works in, beside its weights."""
    at_once = min(pixels, TILE_PIXELS) if tiled else pixels
    places = 5 * at_once / 64
    work = max(at_once * VAE_BYTES_PER_PIXEL * value_bytes, places**2 * VAE_ATTENTION_BYTES)
    return (work + pixels * DECODED_BYTES_PER_PIXEL) / GIB


def limit(device: torch.device, room: Room, preservation: float) -> None:
    """Keep this process from taking the `preservation` GiB of a GPU that are to stay free: it runs out before."""
    if device.type == "cuda":
        share = (room.free - preservation) / room.total
        torch.cuda.set_per_process_memory_fraction(min(max(share, 0.0), 1.0), device)


def cast(transformer: Any) -> Any:
    """The transformer with most of its weights kept in float8, each layer cast while it works (plan low)."""
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=transformer.dtype)
    return transformer


def stream(network: Network, device: torch.device) -> Network:
    """A network on the host whose blocks pass over `device` one after another, the next one while one works."""
    on_gpu = device.type == "cuda"
    apply_group_offloading(
        network,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=on_gpu,
        # Without a stream of its own for what has passed, at most two blocks are there at once.
        record_stream=False,
        # Pinned once, a block travels faster; but pinned memory is lost to everybody else.
        low_cpu_mem_usage=on_gpu and _pinned_gib(network) + HOST_RESERVE_GIB > _free_host_gib(),
    )
    return network


def _pinned_gib(network: torch.nn.Module) -> float:
    """GiB that the network takes in pinned memory, where torch rounds each tensor up to a power of two."""
    return sum(1 << (tensor.nbytes - 1).bit_length() for tensor in network.parameters()) / GIB


@contextlib.contextmanager
def exhaustion_explained(what: str, device: torch.device, plan: str) -> Iterator[None]:
    """Turns what the libraries raise when memory is used up, on the device or the host, into `OutOfMemoryError`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError) as error:
        if not is_exhaustion(error):
            raise
        hint = "free its memory" if lower(plan) else "free its memory, or ask for a smaller resolution"
        if device.type == "cuda":
            hint += ", or lower gpu_memory_preservation"
        raise OutOfMemoryError(f"{device} ran out of memory {what} on the memory plan {plan}", hint=hint) from error


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory is used up; on the CPU and in pinned memory torch has no type for that."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
        signs = ("can't allocate memory", "Cannot allocate memory", "out of memory", "ALLOC_FAILED")
        return any(sign in str(error) for sign in signs)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))
