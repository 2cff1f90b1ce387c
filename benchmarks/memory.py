"""What each memory plan takes and costs on graphics cards of several sizes, as a Markdown table.

    python benchmarks/memory.py [--budgets 6,8,12,16,24,48] [--plans resident,balanced,low,minimal] [--tiny]

Renders two sections of 640x608 with networks of the real sizes and random weights, each budget and plan in a process of
its own that torch allows no more than the budget. Weights are made in memory: nothing is downloaded, and no file is
written but the video. It takes 45 GiB of main memory, 70 for the plan minimal to pin all it wants to. Without a GPU, or
with --tiny, the same code runs on the CPU with networks of a few megabytes, to try it out; a budget then means nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoFramepackTransformer3DModel
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from framepack_daemon.engine import memory, render, tiny
from framepack_daemon.engine.models import FittingVae, Models, Placement
from framepack_daemon.engine.sources import Sources
from framepack_daemon.errors import OutOfMemoryError
from framepack_daemon.request import Request, build, effective

BUDGETS = (6, 8, 12, 16, 24, 48)  # GB on the box of a card; taken as GiB
ROW_SECONDS = 1200  # for one process
NOISE_VALUES = 1 << 24  # random values, repeated to fill a network
SPREAD = 0.02  # of a weight


@dataclass(frozen=True)
class Size:
    """The configurations of all networks, and what is rendered with them."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    llama: dict[str, Any]
    clip: dict[str, Any]
    siglip: dict[str, Any]
    width: int  # pixels
    height: int
    steps: int


_FRAMEPACK = {"has_image_proj": True, "has_clean_x_embedder": True}
# What diffusers and transformers have as defaults is the real size of transformer, VAE and CLIP.
FULL = Size(
    transformer={**_FRAMEPACK, "image_proj_dim": 1152},
    vae={},
    llama={"vocab_size": 128320, "intermediate_size": 14336, "num_key_value_heads": 8},
    clip={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    siglip={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    width=640,
    height=608,
    steps=4,
)
_SMALL = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
TINY = Size(
    transformer={
        **_FRAMEPACK,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "text_embed_dim": 32,
        "pooled_projection_dim": 32,
        "rope_axes_dim": (4, 6, 6),
        "image_proj_dim": 32,
    },
    vae={"block_out_channels": (12, 12, 12, 12), "layers_per_block": 0, "norm_num_groups": 4},
    llama={**_SMALL, "hidden_size": 32, "vocab_size": 1024},
    clip={**_SMALL, "hidden_size": 32, "projection_dim": 32, "vocab_size": 1024},
    siglip={**_SMALL, "hidden_size": 32, "image_size": 64, "patch_size": 16},
    width=64,
    height=64,
    steps=4,
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budgets", type=_numbers, default=BUDGETS, help="GB, separated by commas")
    parser.add_argument("--plans", type=lambda text: text.split(","), default=memory.PLANS)
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU, to try the script out")
    parser.add_argument("--row", nargs=2, metavar=("BUDGET", "PLAN"), help="one budget and plan, in this process")
    options = parser.parse_args()
    small = options.tiny or not torch.cuda.is_available()
    if options.row:
        print(json.dumps(measure(int(options.row[0]), options.row[1], small=small)))
        return
    _print_head(small=small)
    for budget in options.budgets:
        for plan in options.plans:
            print(_line(budget, plan, _in_its_own_process(budget, plan, small=small)), flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _print_head(*, small: bool) -> None:
    size = TINY if small else FULL
    device = "the CPU, small networks" if small else torch.cuda.get_device_name(0)
    print(f"{device}, torch {torch.__version__}; {size.width}x{size.height}, 2 sections of {size.steps} steps\n")
    heads = ("budget GB", "plan", "chosen", "reckoned GiB", "peak GiB", "reserved GiB", "host GiB", "s a step")
    print(f"| {' | '.join([*heads, 's decoding', 'note'])} |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)


def _in_its_own_process(budget: int, plan: str, *, small: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--row", str(budget), plan, *(["--tiny"] if small else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ROW_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"note": f"took longer than {ROW_SECONDS} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"note": f"ended with code {done.returncode}: {last[0][:120]}"}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _line(budget: int, plan: str, row: dict[str, Any]) -> str:
    room = memory.Room(total=budget, free=budget, is_gpu=True)
    chosen = "yes" if memory.choose("auto", room, preservation=0) == plan else ""
    reckoned = f"{memory.needed(plan, memory.NOMINAL_PIXELS, budget):.1f}"
    keys = ("peak", "reserved", "host", "step", "decoding")
    figures = [f"{row[key]:.2f}" if key in row else "-" for key in keys]
    return f"| {' | '.join([str(budget), plan, chosen, reckoned, *figures, row.get('note', '')])} |"


def measure(budget: int, plan: str, *, small: bool) -> dict[str, Any]:
    """One row: GiB and seconds; where memory runs out, a note that says when."""
    size = TINY if small else FULL
    device = torch.device("cpu") if small else torch.device("cuda", 0)
    if not small:
        allowed = (budget - memory.CONTEXT_GIB) * memory.GIB
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(allowed / whole, 1.0), device)
    try:
        with memory.exhaustion_explained("while the models were made", device, plan):
            models = make(size, device, plan, budget)
        return _render(models, size) | _peaks(device)
    except OutOfMemoryError as error:
        return {"note": error.message} | _peaks(device)


def make(size: Size, device: torch.device, plan: str, budget: float) -> Models:
    """All networks of one size with random weights, placed as the plan wants them on a device of `budget` GiB."""
    main, side = (torch.float32,) * 2 if device.type == "cpu" else (torch.bfloat16, torch.float16)
    tokenizer, tokenizer_2 = tiny.llama_tokenizer(), tiny.clip_tokenizer()
    place = Placement(device, plan, total=budget)
    transformer_kind: Any = HunyuanVideoFramepackTransformer3DModel
    scheduler_kind: Any = FlowMatchEulerDiscreteScheduler
    side_length = size.siglip["image_size"]
    clip = CLIPTextConfig(**size.clip, eos_token_id=tokenizer_2.eos_token_id)
    return Models(
        name="framepack-i2v",
        revision="random",
        device=device,
        transformer=place.transformer(filled(transformer_kind, main, **size.transformer)),
        vae=place.vae(filled(FittingVae, side, **size.vae)),
        scheduler=scheduler_kind(shift=7.0, use_dynamic_shifting=True),
        text_encoder=place.text_encoder(filled(LlamaModel, side, LlamaConfig(**size.llama))),
        tokenizer=tokenizer,
        text_encoder_2=place.small(filled(CLIPTextModel, side, clip)),
        tokenizer_2=tokenizer_2,
        image_encoder=place.small(filled(SiglipVisionModel, side, SiglipVisionConfig(**size.siglip))),
        feature_extractor=SiglipImageProcessorPil(size={"height": side_length, "width": side_length}),
        plan=plan,
    )


def filled(kind: Any, dtype: torch.dtype, *arguments: Any, **options: Any) -> Any:
    """A network on the host: ones in the norms, zeros in the biases, one run of noise over and over elsewhere."""
    with init_empty_weights(include_buffers=False):
        network = kind(*arguments, **options)
    noise = (torch.randn(NOISE_VALUES, generator=torch.Generator().manual_seed(0)) * SPREAD).to(dtype)
    for name, parameter in list(network.named_parameters()):
        owner, _, short = name.rpartition(".")
        weight = torch.empty(parameter.shape, dtype=dtype)
        if weight.ndim == 1:
            weight.fill_(1.0 if short == "weight" else 0.0)
        else:
            for part in weight.view(-1).split(NOISE_VALUES):
                part.copy_(noise[: part.numel()])
        setattr(network.get_submodule(owner), short, torch.nn.Parameter(weight, requires_grad=False))
    return network.eval()


def _render(models: Models, size: Size) -> dict[str, float]:
    fields = {
        "prompt": "The girl dances gracefully, with clear movements, full of charm.",
        "model": "framepack-i2v",
        "frames": 73,
        "num_inference_steps": size.steps,
        "seed": 31337,
        "width": size.width,
        "height": size.height,
    }
    request: Request = effective(build(fields), "framepack-i2v")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        Image.radial_gradient("L").convert("RGB").resize((size.width, size.height)).save(picture)
        started = time.monotonic()
        events = list(render.render(request, models, Sources(picture), Path(folder)))
        seconds = time.monotonic() - started
    steps = [event.seconds for event in events if isinstance(event, render.Step)]
    finished = next(event for event in events if isinstance(event, render.Finished))
    # The first step of all finds out in which order the blocks come, and which kernels are fast.
    return {"step": statistics.median(steps[1:]), "decoding": finished.timings["decode"], "all": seconds}


def _peaks(device: torch.device) -> dict[str, float]:
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / memory.GIB
    if device.type == "cpu":
        return {"host": host}
    return {
        "host": host,
        "peak": torch.cuda.max_memory_allocated(device) / memory.GIB,
        "reserved": torch.cuda.max_memory_reserved(device) / memory.GIB,
    }


if __name__ == "__main__":
    main()
