"""The memory plans: the same frames from all but the one that stores weights in float8, and what each keeps where."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from test_engine_render import finish, planes, request

from framepack_daemon.engine import checkpoint, memory, models
from framepack_daemon.engine.loader import Loader
from framepack_daemon.engine.models import FittingVae
from framepack_daemon.request import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from framepack_daemon.engine.models import Models


@pytest.fixture(scope="module")
def under(models_dir: Path, tiny_models: Models) -> Callable[[str], Models]:
    """The tiny model under a plan."""
    loaded = {"resident": tiny_models}

    def load(plan: str) -> Models:
        if plan not in loaded:
            loaded[plan] = models.load("tiny", models_dir, plan=plan)
        return loaded[plan]

    return load


@pytest.fixture(scope="module")
def videos(
    under: Callable[[str], Models], still: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[str, Any]]:
    """SHA-256 and planes of one video, rendered under a plan."""
    folder = tmp_path_factory.mktemp("plans")
    rendered: dict[str, tuple[str, Any]] = {}

    def video(plan: str) -> tuple[str, Any]:
        if plan not in rendered:
            asked = request(frames=37, num_inference_steps=2, true_cfg_scale=2.0)
            _, finished = finish(asked, under(plan), still, folder / plan)
            rendered[plan] = finished.facts.sha256, np.stack(planes(finished.video)).astype(int)
        return rendered[plan]

    return video


@pytest.mark.parametrize("plan", ["balanced", "minimal"])
def test_a_plan_that_only_moves_weights_gives_the_same_file(
    plan: str, videos: Callable[[str], tuple[str, Any]]
) -> None:
    assert videos(plan)[0] == videos("resident")[0]


def test_float8_gives_nearly_the_same_frames(videos: Callable[[str], tuple[str, Any]]) -> None:
    difference = np.abs(videos("low")[1] - videos("resident")[1])
    assert 0 < difference.mean() < 4


def test_the_low_plan_stores_the_large_layers_in_float8_and_computes_as_before(under: Callable[[str], Models]) -> None:
    low, full = under("low"), under("resident")
    block = low.transformer.transformer_blocks[0]
    assert block.attn.to_q.weight.dtype == block.ff.net[0].proj.weight.dtype == torch.float8_e4m3fn
    kept = (block.norm1.linear, low.transformer.x_embedder.proj, low.transformer.proj_out)
    assert {layer.weight.dtype for layer in kept} == {torch.float32}
    assert low.dtype == full.dtype == torch.float32


@pytest.mark.parametrize(
    ("plan", "streamed"),
    [
        ("resident", set()),
        ("balanced", {"text_encoder"}),
        ("low", {"text_encoder"}),
        ("minimal", {"text_encoder", "transformer"}),
    ],
)
def test_the_blocks_of_the_large_networks_pass_over_the_device_where_the_plan_says_so(
    plan: str, streamed: set[str], under: Callable[[str], Models]
) -> None:
    networks = ("transformer", "vae", "text_encoder", "text_encoder_2", "image_encoder")
    assert {name for name in networks if _is_group_offload_enabled(getattr(under(plan), name))} == streamed


class Traveller(torch.nn.Module):
    """A network that notes where it was put."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def to(self, place: Any) -> Traveller:  # type: ignore[override]
        self.places.append(str(place))
        return self


@pytest.mark.parametrize(("plan", "places"), [("resident", []), ("balanced", ["cpu:0", "cpu"])])
def test_a_network_is_on_the_device_while_it_is_used_and_off_again_even_after_an_error(
    plan: str, places: list[str], under: Callable[[str], Models]
) -> None:
    kinds = ("vae", "text_encoder_2", "image_encoder", "transformer", "text_encoder")
    travellers: dict[str, Any] = {kind: Traveller() for kind in kinds}
    loaded = dataclasses.replace(under("resident"), plan=plan, device=torch.device("cpu:0"), **travellers)
    for kind in kinds:
        with contextlib.suppress(KeyError), loaded.use(travellers[kind]) as network:
            assert network is travellers[kind]
            raise KeyError(kind)
    assert [travellers[kind].places for kind in kinds] == [places, places, places, [], []]


def test_frames_are_decoded_whole_or_in_tiles_as_their_size_says(under: Callable[[str], Models]) -> None:
    vae = under("minimal").vae
    assert isinstance(vae, FittingVae)
    latents = torch.randn(1, 16, 1, 6, 40, generator=torch.Generator().manual_seed(3))

    def decoded(pixels_that_fit: int) -> torch.Tensor:
        vae.tiles = lambda pixels: pixels > pixels_that_fit
        frames: torch.Tensor = vae.decode(latents, return_dict=False)[0]
        return frames

    with torch.no_grad():
        whole, tiled = decoded(48 * 320), decoded(48 * 320 - 1)
        vae.use_tiling = False
        assert torch.equal(whole, vae.decoder(vae.post_quant_conv(latents)))
    assert not torch.equal(whole, tiled)
    assert vae.tiles(48 * 320)


def test_a_checkpoint_tells_the_plan_it_was_made_under(under: Callable[[str], Models]) -> None:
    environments = {checkpoint.environment(under(plan)) for plan in ("resident", "balanced", "minimal")}
    assert len(environments) == 3


def test_models_are_loaded_anew_only_for_another_plan_and_a_bound_is_its_jobs_own(models_dir: Path) -> None:
    said: list[tuple[str, str]] = []
    loader = Loader(models_dir, "cpu", say=lambda event, **fields: said.append((event, fields["plan"])))
    first = loader.load("tiny")
    assert loader.load("tiny", build({"prompt": "waves", "width": 2048, "height": 2048})) is first
    assert loader.load("tiny", below="low").plan == "minimal"
    assert loader.load("tiny").plan == "resident"
    assert said == [(event, plan) for plan in ("resident", "minimal", "resident") for event in ("loading", "loaded")]


@pytest.mark.parametrize(
    ("fields", "plan"),
    [
        ({}, "resident"),
        ({"gpu_memory_preservation": 6.0}, "balanced"),
        ({"gpu_memory_preservation": 45.0}, "minimal"),
        ({"resolution": 640}, "resident"),
        ({"resolution": 960}, "resident"),
        ({"width": 2048, "height": 2048}, "low"),
    ],
)
def test_a_plan_follows_from_the_size_of_a_job_and_what_it_leaves_free(
    fields: dict[str, Any], plan: str, tmp_path: Path
) -> None:
    loader = Loader(tmp_path, "cpu", "auto", 1.0, room=memory.Room(total=47.5, free=47.3, is_gpu=True))
    assert loader.plan("framepack-i2v", build({"prompt": "waves", **fields})) == plan


def test_the_peaks_of_one_job_are_not_those_of_the_job_before() -> None:
    device = torch.device("cpu")
    memory.forget_peaks(device)
    before = memory.peaks(device).host
    hoard = bytearray(b"1") * (256 * 2**20)
    assert memory.peaks(device).host - before > len(hoard) / 2
    del hoard
    memory.forget_peaks(device)
    assert memory.peaks(device).host - before < 128 * 2**20
    assert memory.peaks(device).gpu == 0


LOADING = """
import resource, sys
from pathlib import Path
from framepack_daemon.engine.loader import Loader
from framepack_daemon.errors import OutOfMemoryError
tried = []
loader = Loader(Path(sys.argv[1]), "cpu", say=lambda event, **fields: tried.append(f"{event} {fields['plan']}"))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 512 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
try:
    loader.load("tiny")
except OutOfMemoryError as error:
    print(error.message, *tried, sep="|")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(loader.load("tiny").plan)
"""


def pad(file: Path, size: int) -> None:
    """Add a tensor of `size` bytes that takes no room on disk to a safetensors file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    end = len(data) - 8 - length
    header["padding"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text + data[8 + length :])
        stream.truncate(8 + len(text) + end + size)


def test_a_plan_that_does_not_load_makes_way_for_the_next_and_is_not_tried_again(
    models_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(models_dir / "tiny", tmp_path / "tiny")
    pad(tmp_path / "tiny/components/vae/diffusion_pytorch_model.safetensors", 4 * 2**30)
    command = [sys.executable, "-c", LOADING, str(tmp_path)]
    message, plan = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert message.split("|") == [
        "cpu ran out of memory while model tiny was loaded on the memory plan minimal",
        *(f"loading {tried}" for tried in memory.PLANS),
    ]
    assert plan == "minimal"
