"""What a section is sampled from: the texts, the pictures, and the size of the video.

`prepare` puts the picture into the nearest bucket, encodes the texts with Llama and CLIP and the pictures with SigLIP
and the VAE, each only once while the models stay loaded. All of it follows from the request, the pictures and the
weights, so nothing here is ever checkpointed. Knows nothing of sections or files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.video_processor import VideoProcessor
from PIL import Image

from framepack_daemon.engine.encodings import Tensors
from framepack_daemon.engine.models import CROP_START, PROMPT_TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from framepack_daemon.engine.models import Models
    from framepack_daemon.request import Request

# (height, width) in pixels of the buckets around 640 (FramePack, diffusers_helper/bucket_tools.py).
BUCKETS = (
    (416, 960),
    (448, 864),
    (480, 832),
    (512, 768),
    (544, 704),
    (576, 672),
    (608, 640),
    (640, 608),
    (672, 576),
    (704, 544),
    (768, 512),
    (832, 480),
    (864, 448),
    (960, 416),
)
BUCKET_RESOLUTION = 640
MULTIPLE = 16  # pixels: VAE 8, patch 2
PROMPT_TOKENS = 256  # the prompt is cut there
TEXT_TOKENS = 512  # the embeddings are padded to that
CLIP_TOKENS = 77
SKIPPED_LAYERS = 2  # Llama's last hidden layers, which are not used


@dataclass(frozen=True)
class Text:
    """An encoded prompt."""

    embeds: torch.Tensor  # (1, 512, D), the transformer's dtype
    mask: torch.Tensor  # (1, 512), 1 where there is a token
    pooled: torch.Tensor  # (1, P)


@dataclass(frozen=True)
class Conditioning:
    """All that the transformer is told besides the history."""

    height: int  # pixels
    width: int  # pixels
    prompts: Mapping[str, Text]  # each of the request's texts, encoded
    negative: Text | None  # None when true CFG is off
    image_embeds: torch.Tensor  # (1, N, S), the transformer's dtype; with an end frame, the weighted mean of both
    image_latents: torch.Tensor  # (1, 16, 1, H/8, W/8) float32
    last_latents: torch.Tensor | None  # of the end frame, likewise, times its weight


@torch.no_grad()
def prepare(request: Request, models: Models, image: Image.Image, last_image: Image.Image | None) -> Conditioning:
    """The conditioning of `request` with its pictures, both RGB and upright."""
    height, width = frame_size(request, image)
    generator = image_generator(request.seed)
    first = _encode_picture(models, fit(image, height, width), generator)
    image_embeds, last_latents = first.embeds, None
    if last_image is not None:
        weight = request.last_image_weight
        last = _encode_picture(models, fit(last_image, height, width), generator)
        image_embeds = (image_embeds + weight * last.embeds) / (1 + weight)
        last_latents = weight * last.latents
    return Conditioning(
        height=height,
        width=width,
        prompts={part.text: encode_text(models, part.text) for part in request.texts},
        negative=encode_text(models, request.negative_prompt) if request.true_cfg_scale > 1 else None,
        image_embeds=image_embeds,
        image_latents=first.latents,
        last_latents=last_latents,
    )


def image_generator(seed: int) -> torch.Generator:
    """The random numbers with which the VAE encodes pictures; those of the section noise come from `seed` itself."""
    digest = hashlib.sha256(f"image latents {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def frame_size(request: Request, image: Image.Image) -> tuple[int, int]:
    """(height, width) in pixels of the video: as asked for, or of the bucket nearest to the picture's shape."""
    if request.height is not None and request.width is not None:
        return request.height, request.width
    height, width = nearest_bucket(image.height, image.width)
    scale = (request.resolution or BUCKET_RESOLUTION) / BUCKET_RESOLUTION / MULTIPLE
    return round(height * scale) * MULTIPLE, round(width * scale) * MULTIPLE


def nearest_bucket(height: int, width: int) -> tuple[int, int]:
    """The bucket whose sides are nearest in proportion; of two equally near ones the taller, as in the reference."""
    return min(reversed(BUCKETS), key=lambda bucket: abs(height * bucket[1] - width * bucket[0]))


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """`image` resized until it covers the frame, then cut to it around its centre."""
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = (resized.width - width) / 2, (resized.height - height) / 2
    return resized.crop((round(left), round(top), round(left + width), round(top + height)))


def encode_text(models: Models, prompt: str) -> Text:
    """Llama's hidden states of `prompt` without the template's head, zeros behind them, and CLIP's pooled state."""
    return Text(*models.encodings.get(("text", prompt), models.device, lambda: _encode_text(models, prompt)))


@torch.no_grad()
def _encode_text(models: Models, prompt: str) -> Tensors:
    tokens = models.tokenizer(
        PROMPT_TEMPLATE.replace("{}", prompt),
        max_length=PROMPT_TOKENS + CROP_START,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).to(models.device)
    with models.use(models.text_encoder) as encoder:
        hidden = encoder(**tokens, output_hidden_states=True).hidden_states[-(SKIPPED_LAYERS + 1)]
    length = int(tokens["attention_mask"].sum()) - CROP_START
    embeds = hidden.new_zeros(1, TEXT_TOKENS, hidden.shape[-1], dtype=models.dtype)
    embeds[:, :length] = hidden[:, CROP_START : CROP_START + length]
    mask = embeds.new_zeros(1, TEXT_TOKENS)
    mask[:, :length] = 1
    tokens_2 = models.tokenizer_2(
        prompt, max_length=CLIP_TOKENS, padding="max_length", truncation=True, return_tensors="pt"
    )
    with models.use(models.text_encoder_2) as encoder:
        pooled = encoder(tokens_2["input_ids"].to(models.device)).pooler_output
    return embeds, mask, pooled.to(models.dtype)


@dataclass(frozen=True)
class _Picture:
    embeds: torch.Tensor  # (1, N, S), the transformer's dtype
    latents: torch.Tensor  # (1, 16, 1, H/8, W/8) float32


def _encode_picture(models: Models, image: Image.Image, generator: torch.Generator) -> _Picture:
    """A picture of the video's size; its latents are drawn with `generator`, and all else is kept for other jobs."""
    key = "picture", image.size, hashlib.sha256(image.tobytes()).digest()
    embeds, moments = models.encodings.get(key, models.device, lambda: _look_and_encode(models, image))
    latents: torch.Tensor = DiagonalGaussianDistribution(moments).sample(generator=generator)
    return _Picture(embeds, (latents * models.vae.config.scaling_factor).to(torch.float32))


@torch.no_grad()
def _look_and_encode(models: Models, image: Image.Image) -> Tensors:
    """(SigLIP's last hidden state, mean and log-variance of the VAE's posterior) of a picture."""
    pixels = VideoProcessor(vae_scale_factor=MULTIPLE).preprocess(image)  # (1, 3, H, W) float32 in [-1, 1]
    inputs = models.feature_extractor(images=(pixels + 1) / 2, return_tensors="pt", do_rescale=False).to(
        device=models.device, dtype=models.image_encoder.dtype
    )
    with models.use(models.image_encoder) as encoder:
        embeds = encoder(**inputs).last_hidden_state.to(models.dtype)
    with models.use(models.vae) as vae:
        moments = vae.encode(pixels.unsqueeze(2).to(models.device, vae.dtype)).latent_dist.parameters
    return embeds, moments
