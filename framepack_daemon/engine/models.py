"""The neural networks of one model, loaded from local files and checked.

`load` opens the three repositories that `weights.locate` finds with the classes of diffusers and transformers, for the
real models and the tiny one alike. Never touches the network. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from safetensors import SafetensorError
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

from framepack_daemon import weights
from framepack_daemon.engine import memory
from framepack_daemon.engine.encodings import Encodings
from framepack_daemon.errors import DeviceError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path

PROMPT_TEMPLATE = str(DEFAULT_PROMPT_TEMPLATE["template"])
CROP_START = int(str(DEFAULT_PROMPT_TEMPLATE["crop_start"]))  # tokens of the template before the prompt
PIXELS_PER_LATENT = 8 * 8
Network = TypeVar("Network", bound=torch.nn.Module)


@dataclass(frozen=True)
class Models:
    """Everything that turns a picture and a prompt into frames."""

    name: str
    revision: str
    device: torch.device
    # diffusers' classes are not typed.
    transformer: Any  # HunyuanVideoFramepackTransformer3DModel
    vae: Any  # AutoencoderKLHunyuanVideo
    scheduler: Any  # FlowMatchEulerDiscreteScheduler
    text_encoder: LlamaModel
    tokenizer: PreTrainedTokenizerFast
    text_encoder_2: CLIPTextModel
    tokenizer_2: CLIPTokenizer
    image_encoder: SiglipVisionModel
    feature_extractor: SiglipImageProcessorPil
    plan: str = "resident"  # one of `memory.PLANS`
    encodings: Encodings = field(default_factory=Encodings)  # of texts and pictures that these networks have seen

    @contextlib.contextmanager
    def use(self, network: Network) -> Iterator[Network]:
        """`network` on its device for the block; off again behind it, where the plan keeps it off. Do not nest.

        The transformer stays where it is; so does Llama, whose blocks pass over the device while it works.
        """
        moves = self.plan != "resident" and network is not self.transformer and network is not self.text_encoder
        if moves:
            network.to(self.device)
        try:
            yield network
        finally:
            if moves:
                network.to("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype


def load(
    name: str, models_dir: Path, device: str = "cpu", dtype: torch.dtype | None = None, plan: str = "resident"
) -> Models:
    """The networks of model `name`, to work on `device`.

    Args:
        name: one of `weights.MODEL_NAMES`.
        models_dir: where the model files are.
        device: as torch names it, such as "cpu" or "cuda:0".
        dtype: of the transformer; by default bfloat16 on a GPU, with the other networks in float16, and float32 on a
            CPU.
        plan: one of `memory.PLANS`: which networks stay on the device, and in what form.

    Raises:
        WeightsError: files are missing, truncated, or not what they should be.
        DeviceError: there is no such device.
        OutOfMemoryError: the networks do not fit into its memory.
    """
    places = weights.locate(name, models_dir)
    target = usable(device)
    on_cpu = target.type == "cpu"
    main = dtype or (torch.float32 if on_cpu else torch.bfloat16)
    side = torch.float32 if on_cpu else torch.float16
    with memory.exhaustion_explained(f"while model {name} was loaded", target, plan), _explained(name):
        place = Placement(target, plan, memory.room(target).total)
        components, looks = places.components, places.image_encoder
        kind = HunyuanVideoFramepackTransformer3DModel
        return Models(
            name=name,
            revision=places.revision,
            device=target,
            transformer=place.transformer(_network(kind, places.transformer, torch_dtype=main)),
            vae=place.vae(_network(FittingVae, components / "vae", torch_dtype=side)),
            scheduler=_scheduler(components / "scheduler"),
            text_encoder=place.text_encoder(_network(LlamaModel, components / "text_encoder", dtype=side)),
            tokenizer=_open_tokenizer(components / "tokenizer"),
            text_encoder_2=place.small(_network(CLIPTextModel, components / "text_encoder_2", dtype=side)),
            tokenizer_2=_open(CLIPTokenizer, components / "tokenizer_2"),
            image_encoder=place.small(_network(SiglipVisionModel, looks / "image_encoder", dtype=side)),
            feature_extractor=_open(SiglipImageProcessorPil, looks / "feature_extractor"),
            plan=plan,
        )


@dataclass(frozen=True)
class Placement:
    """Brings networks from the host to where a plan wants them, each onto the device only where it stays there."""

    device: torch.device
    plan: str
    total: float  # GiB of the device

    def transformer(self, network: Any) -> Any:
        """The transformer whole, in float8, or block by block."""
        if self.plan == "minimal":
            return memory.stream(network, self.device)
        return (memory.cast(network) if self.plan == "low" else network).to(self.device)

    def text_encoder(self, network: Any) -> Any:
        """Llama: beside the transformer it comes block by block, for the one pass that it has to do for a text."""
        return network.to(self.device) if self.plan == "resident" else memory.stream(network, self.device)

    def vae(self, network: Any) -> Any:
        """The VAE, which knows from now on when to take frames in tiles."""
        size = network.dtype.itemsize
        network.tiles = functools.partial(memory.tiles, self.plan, total=self.total, value_bytes=size)
        return self.small(network)

    def small(self, network: Any) -> Any:
        """A network that `Models.use` moves."""
        return network.to(self.device) if self.plan == "resident" else network


class FittingVae(AutoencoderKLHunyuanVideo):
    """The VAE, which takes frames in tiles where, by `tiles`, whole ones are too large."""

    tiles: Callable[[int], bool] = staticmethod(lambda pixels: True)  # noqa: ARG005  # by the pixels of a frame

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:  # as in diffusers
        """The posterior of frames (1, 3, T, H, W)."""
        vae: Any = super()
        self.use_tiling = self.tiles(x.shape[-2] * x.shape[-1])
        return vae.encode(x, return_dict=return_dict)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        """The frames of latents (1, 16, T, H/8, W/8)."""
        vae: Any = super()
        self.use_tiling = self.tiles(z.shape[-2] * z.shape[-1] * PIXELS_PER_LATENT)
        return vae.decode(z, return_dict=return_dict)


def usable(device: str) -> torch.device:
    """`device` after something was put on it; `DeviceError` where that fails."""
    try:
        target = torch.device(device)
        torch.zeros(1, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"device {device} cannot be used: {str(error).splitlines()[0]}",
            hint="set device to cpu, or see framepack-daemon doctor",
        ) from error
    return target


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what the libraries raise while opening files into errors of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if memory.is_exhaustion(error):
            raise
        raise WeightsError(
            f"model {name} cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint=f"run: framepack-daemon models check {name}",
        ) from error


def _open(kind: Any, folder: Path, **options: Any) -> Any:
    """What `kind` makes of the files in `folder`; the network is never asked."""
    return kind.from_pretrained(folder, local_files_only=True, **options)


def _network(kind: Any, folder: Path, **options: Any) -> Any:
    """A network on the host, for inference only."""
    return _open(kind, folder, **options).eval().requires_grad_(requires_grad=False)


def _scheduler(folder: Path) -> Any:
    # The repository's own setting is HunyuanVideo's fixed shift; FramePack's depends on the number of tokens.
    return _open(FlowMatchEulerDiscreteScheduler, folder, use_dynamic_shifting=True)


def _open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The Llama tokenizer; `WeightsError` unless it cuts the template as the model was trained with.

    LlamaTokenizerFast would replace the file's pre-tokenizer by one that breaks byte-level vocabularies, silently.
    """
    tokenizer: PreTrainedTokenizerFast = _open(PreTrainedTokenizerFast, folder, padding_side="right")
    head = len(tokenizer(PROMPT_TEMPLATE.partition("{}")[0])["input_ids"])
    if head != CROP_START:
        raise WeightsError(
            f"{folder} makes {head} tokens of the prompt template's head instead of crop_start = {CROP_START}",
            hint="the tokenizer is not the model's own, or a library opens it wrongly; pull the model again",
        )
    return tokenizer
