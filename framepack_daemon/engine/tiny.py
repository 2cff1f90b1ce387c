"""The model `tiny`: FramePack's own classes at a few megabytes, made on the spot, the same bytes every time.

The transformer is drawn at random; the VAE is laid out by hand, so that a decoded latent has the colours of the
picture it was encoded from. Everything is saved in the layout of the three real repositories, built aside and renamed
into place.
Run as `python -m framepack_daemon.engine.tiny DIR`. Its videos say nothing about FramePack's quality.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from framepack_daemon.atomic import sync_folder
from framepack_daemon.weights import REVISION_FILE, TINY_REVISION

SEED = 31337
TEXT_DIM = 64  # of the Llama embeddings
POOLED_DIM = 32  # of the CLIP embedding
IMAGE_DIM = 32  # of the SigLIP embeddings
# How Llama 3 cuts a text into words.
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<pad>",
)
RGB = 3
VAE_CHANNELS = 10  # 8 carry the picture; with fewer than 10, torch computes small frames by a ten times slower way
CARRIER = 2.0  # a constant far above the colours keeps group normalisation nearly linear


def build(target: Path) -> None:
    """Make the tiny model's three repositories in the folder `target`; others may do so at the same moment."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".tiny.", dir=target.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            _transformer().save_pretrained(aside / "transformer", max_shard_size="1MB")
            _save_components(aside / "components")
            _save_image_encoder(aside / "image_encoder")
        (aside / REVISION_FILE).write_text(f"{TINY_REVISION}\n")
        for path in (aside, *aside.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        _put(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, target: Path) -> None:
    """Rename `aside` to `target`; a whole model of this revision that came first stays, any other makes way."""
    while True:
        try:
            aside.rename(target)
        except OSError:
            revision = target / REVISION_FILE
            if revision.is_file() and revision.read_text().strip() == TINY_REVISION and _same(aside, target):
                return
            old = Path(tempfile.mkdtemp(prefix=".tiny-old.", dir=target.parent))
            try:
                target.rename(old / "tiny")
            except FileNotFoundError:
                continue
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            sync_folder(target.parent)
            return


def _same(left: Path, right: Path) -> bool:
    """Whether two folders hold the same files of the same sizes."""

    def sizes(folder: Path) -> dict[Path, int]:
        return {file.relative_to(folder): file.stat().st_size for file in folder.rglob("*") if file.is_file()}

    return sizes(left) == sizes(right)


def _transformer() -> Any:
    kind: Any = HunyuanVideoFramepackTransformer3DModel
    return kind(
        in_channels=16,
        out_channels=16,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        rope_axes_dim=(4, 6, 6),
        has_image_proj=True,
        image_proj_dim=IMAGE_DIM,
        has_clean_x_embedder=True,
    )


def _save_components(folder: Path) -> None:
    tokenizer = llama_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    text_encoder = LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_DIM,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    text_encoder.save_pretrained(folder / "text_encoder", max_shard_size="500KB")
    tokenizer_2 = clip_tokenizer()
    tokenizer_2.save_pretrained(folder / "tokenizer_2")
    text_encoder_2 = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer_2),
            hidden_size=POOLED_DIM,
            projection_dim=POOLED_DIM,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer_2.bos_token_id,
            eos_token_id=tokenizer_2.eos_token_id,
            pad_token_id=tokenizer_2.pad_token_id,
        )
    )
    text_encoder_2.save_pretrained(folder / "text_encoder_2")
    _vae().save_pretrained(folder / "vae")
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    scheduler(shift=7.0).save_pretrained(folder / "scheduler")


def _save_image_encoder(folder: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )
    SiglipVisionModel(config).save_pretrained(folder / "image_encoder")
    size = {"height": 64, "width": 64}
    SiglipImageProcessorPil(size=size).save_pretrained(folder / "feature_extractor")


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that cuts words as Llama 3 does and knows those of the prompt template.

    Each word of the template is one token, as in Llama 3's own vocabulary; any other text falls into bytes.
    """
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = "|".join(re.escape(token) for token in LLAMA_SPECIAL)
    pieces = re.split(special, str(DEFAULT_PROMPT_TEMPLATE["template"]).partition("{}")[0])
    known = {word for piece in pieces for word, _ in words.pre_tokenize_str(piece)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet + sorted(known - set(alphabet)))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA_SPECIAL])
    begin, end, *_, padding = LLAMA_SPECIAL
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    kind: Any = PreTrainedTokenizerFast
    opened: PreTrainedTokenizerFast = kind(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=padding,
        padding_side="right",
        model_max_length=8192,
    )
    return opened


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{token}</w>" for token in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _vae() -> Any:
    """A VAE with HunyuanVideo's compression that keeps the picture: it blurs down, and up again.

    Its channels carry red, green and blue, their negatives, and a constant with its negative. SiLU of a value less SiLU
    of its negative is the value itself, so activations lose nothing.
    """
    kind: Any = AutoencoderKLHunyuanVideo
    vae = kind(
        block_out_channels=(VAE_CHANNELS,) * 4,
        layers_per_block=0,
        norm_num_groups=1,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if name.endswith("conv2.conv.weight"):
                weight.mul_(0.05)  # what the residual blocks add is a texture
            elif name.endswith(("conv2.conv.bias", "samplers.0.conv.conv.weight", "samplers.0.conv.conv.bias")):
                weight.zero_()
        for name, part in vae.named_modules():
            if name.endswith("samplers.0"):
                _blur(part.conv)
        _carry_colours(vae.encoder.conv_in)
        _carry_colours(vae.decoder.conv_in, gain=1 / 1.5)
        spread = _read_colours(vae.encoder.conv_out, vae.encoder.conv_norm_out, gain=1.5)
        spread.bias[16:] = -12.0  # the log-variance: the posterior is nearly a point
        _read_colours(vae.decoder.conv_out, vae.decoder.conv_norm_out, gain=1.0)
        for conv in (vae.quant_conv, vae.post_quant_conv):
            conv.bias.zero_()
            conv.weight.copy_(torch.eye(conv.weight.shape[0])[..., None, None, None])
    return vae


def _blur(conv: Any) -> None:
    """Each channel to itself, blurred over 3x3 pixels of the newest frame."""
    line = torch.tensor([0.25, 0.5, 0.25])
    for channel in range(conv.conv.weight.shape[0]):
        conv.conv.weight[channel, channel, -1] = torch.outer(line, line)


def _carry_colours(conv: Any, gain: float = 1.0) -> None:
    """The first three channels in, as pairs of a value and its negative, and the constant as the fourth pair."""
    inner = conv.conv
    inner.weight.mul_(0.02)
    inner.bias.zero_()
    for pair in range(RGB):
        inner.weight[2 * pair, pair, -1, 1, 1] += gain
        inner.weight[2 * pair + 1, pair, -1, 1, 1] -= gain
    inner.bias[2 * RGB], inner.bias[2 * RGB + 1] = CARRIER, -CARRIER


def _read_colours(conv: Any, norm: torch.nn.GroupNorm, gain: float) -> Any:
    """The inverse of `_carry_colours`, behind a normalisation whose scale it undoes."""
    colours = 0.3  # mean square that a picture's values have, about
    norm.weight.fill_((2 * (RGB * colours + CARRIER**2) / VAE_CHANNELS) ** 0.5)
    inner = conv.conv
    inner.weight.mul_(0.05)
    inner.bias.zero_()
    for pair in range(RGB):
        inner.weight[pair].zero_()
        inner.weight[pair, 2 * pair, -1, 1, 1] = gain
        inner.weight[pair, 2 * pair + 1, -1, 1, 1] = -gain
    return inner


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the tiny model.")
    parser.add_argument("folder", type=Path, help="where it shall stand")
    build(parser.parse_args().folder)


if __name__ == "__main__":
    main()
