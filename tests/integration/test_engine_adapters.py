"""LoRA: files of every key style act as they should, errors name the key, and nothing stays behind."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from diffusers.hooks.group_offloading import _get_top_level_group_offload_hook
from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from framepack_daemon import loras
from framepack_daemon.engine import adapters, lora_weights, models
from framepack_daemon.errors import LoraError
from framepack_daemon.loras import LoraFile
from framepack_daemon.request_parts import Lora

WIDTH, INNER, RANK, ALPHA = 64, 128, 4, 2.0  # the tiny transformer's width and that inside its feed-forward layers
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
# HunyuanVideo's name of a layer, its inputs, and our layers for it with their outputs.
FUSED = {
    "double_blocks.0.img_attn_qkv": (WIDTH, {f"transformer_blocks.0.{name}": WIDTH for name in QKV}),
    "double_blocks.1.txt_mlp.fc1": (WIDTH, {"transformer_blocks.1.ff_context.net.0.proj": INNER}),
    "single_blocks.1.linear1": (
        WIDTH,
        {f"single_transformer_blocks.1.{name}": WIDTH for name in QKV}
        | {"single_transformer_blocks.1.proj_mlp": INNER},
    ),
    "single_blocks.0.linear2": (WIDTH + INNER, {"single_transformer_blocks.0.proj_out": WIDTH}),
}
Tensors = dict[str, torch.Tensor]


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fused_pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Down and up of each layer that HunyuanVideo has."""
    return {
        name: (randn(place, RANK, inputs) / 8, randn(100 + place, sum(outputs.values()), RANK) / 8)
        for place, (name, (inputs, outputs)) in enumerate(FUSED.items())
    }


def split_pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same by our layers."""
    return {
        ours: (down.clone(), part.clone())
        for name, (down, up) in fused_pairs().items()
        for ours, part in zip(FUSED[name][1], up.split(list(FUSED[name][1].values())), strict=True)
    }


def flat(prefix: str, pairs: dict[str, Any], alpha: float = ALPHA) -> Tensors:
    """Keys as kohya's trainers write them."""
    tensors = {}
    for name, (down, up) in pairs.items():
        layer = prefix + name.replace(".", "_")
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
        tensors |= {f"{layer}.alpha": torch.tensor(alpha)}
    return tensors


def dotted(pairs: dict[str, Any], pattern: str = "transformer.{}.lora_{}.weight", parts: str = "A B") -> Tensors:
    return {
        pattern.format(name, part): weight
        for name, pair in pairs.items()
        for part, weight in zip(parts.split(), pair, strict=True)
    }


def times(factor: float, pairs: dict[str, Any]) -> dict[str, Any]:
    return {name: (down, up * factor) for name, (down, up) in pairs.items()}


def comfy(pairs: dict[str, Any]) -> dict[str, Any]:
    """The same under ComfyUI's names."""
    return {name.replace("mlp.fc1", "mlp.0").replace("img_attn_qkv", "img_attn.qkv"): pairs[name] for name in pairs}


HALVED = ALPHA / RANK
DIFFUSERS = json.dumps({"transformer.lora_alpha": 1, "transformer.alpha_pattern": {"to_[qkv]|proj.*": ALPHA, "x": 3}})
RSLORA = json.dumps({"lora_alpha": ALPHA / RANK**0.5, "use_rslora": True})
STYLES: dict[str, Callable[[Path], Any]] = {
    "musubi": lambda path: save_file(flat("lora_unet_", fused_pairs()), path),
    "musubi of framepack": lambda path: save_file(flat("lora_unet_", split_pairs()), path),
    "diffusers": lambda path: save_file(dotted(times(HALVED, split_pairs())), path),
    "diffusers with settings": lambda path: save_file(
        dotted(split_pairs()), path, metadata={"lora_adapter_metadata": DIFFUSERS}
    ),
    "diffusers with rslora": lambda path: save_file(
        dotted(split_pairs()), path, metadata={"lora_adapter_metadata": RSLORA}
    ),
    "peft": lambda path: save_file(
        dotted(times(HALVED, split_pairs()), "base_model.model.{}.lora_{}.default.weight"), path
    ),
    "diffusers of old": lambda path: save_file(
        dotted(times(HALVED, split_pairs()), "transformer.{}.lora.{}.weight", "down up"), path
    ),
    "comfy": lambda path: save_file(
        dotted(times(HALVED, comfy(fused_pairs())), "diffusion_model.{}.lora_{}.weight"), path
    ),
    "half precision": lambda path: save_file(
        {key: tensor.to(torch.float16) for key, tensor in flat("lora_unet_", fused_pairs()).items()}, path
    ),
    "pickle": lambda path: torch.save(flat("lora_unet_", fused_pairs()), path.with_suffix(".pt")),
}


@pytest.fixture(scope="module")
def tiny(models_dir: Path) -> models.Models:
    """The tiny model, of this module alone: no other test sees its transformer."""
    torch.set_num_threads(2)
    return models.load("tiny", models_dir)


@pytest.fixture(scope="module")
def plain(models_dir: Path) -> Any:
    """A transformer that never had a LoRA."""
    return models.load("tiny", models_dir).transformer


@pytest.fixture(scope="module")
def base(plain: Any) -> torch.Tensor:
    """What it predicts."""
    return predict(plain)


@torch.no_grad()
def predict(transformer: Any) -> torch.Tensor:
    """The transformer's output for one fixed input."""
    output: torch.Tensor = transformer(
        hidden_states=randn(1, 1, 16, 9, 8, 8),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=randn(2, 1, 8, 64),
        encoder_attention_mask=torch.ones(1, 8),
        pooled_projections=randn(3, 1, 32),
        image_embeds=randn(4, 1, 4, 32),
        indices_latents=torch.arange(9),
        guidance=torch.tensor([10_000.0]),
        latents_clean=randn(5, 1, 16, 2, 8, 8),
        indices_latents_clean=torch.arange(2),
        latents_history_2x=randn(6, 1, 16, 2, 8, 8),
        indices_latents_history_2x=torch.arange(2),
        latents_history_4x=randn(7, 1, 16, 16, 8, 8),
        indices_latents_history_4x=torch.arange(16),
        return_dict=False,
    )[0]
    return output


def merged(plain: Any, *deltas: tuple[float, dict[str, Any]]) -> torch.Tensor:
    """The output of a copy whose weights were changed by each of (factor, pairs): what LoRA means."""
    transformer = copy.deepcopy(plain)
    for factor, pairs in deltas:
        for name, (down, up) in pairs.items():
            transformer.get_submodule(name).weight.data += factor * up @ down
    return predict(transformer)


def resolve(folder: Path, **scales: float) -> tuple[LoraFile, ...]:
    return loras.resolve([Lora(name=name, scale=scale) for name, scale in scales.items()], folder)


def with_loras(tiny: models.Models, folder: Path, **scales: float) -> torch.Tensor:
    """The output with these files, named without extension."""
    adapters.use(tiny, resolve(folder, **scales))
    return predict(tiny.transformer)


def is_clean(tiny: models.Models, base: torch.Tensor) -> bool:
    layers = [module for module in tiny.transformer.modules() if isinstance(module, LoraLayer)]
    return not layers and torch.equal(predict(tiny.transformer), base)


def near(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("style", STYLES)
def test_every_key_style_adds_what_it_says(style: str, tiny: models.Models, plain: Any, tmp_path: Path) -> None:
    STYLES[style](tmp_path / "style.safetensors")
    wanted = merged(plain, (HALVED, split_pairs()))
    assert not near(wanted, predict(plain))
    assert near(with_loras(tiny, tmp_path, style=1.0), wanted)


def test_a_scale_is_changed_without_reading_the_file_again(
    tiny: models.Models, plain: Any, base: torch.Tensor, tmp_path: Path
) -> None:
    STYLES["musubi"](tmp_path / "style.safetensors")
    files = {scale: resolve(tmp_path, style=scale) for scale in (1.0, -0.5, 0.0)}
    adapters.use(tiny, files[1.0])
    layer = tiny.transformer.transformer_blocks[0].attn.to_q
    (tmp_path / "style.safetensors").unlink()
    for scale, asked in files.items():
        adapters.use(tiny, asked)
        assert near(predict(tiny.transformer), merged(plain, (scale * HALVED, split_pairs())))
    assert torch.equal(predict(tiny.transformer), base)
    assert tiny.transformer.transformer_blocks[0].attn.to_q is layer


def other_pairs() -> dict[str, Any]:
    """Another LoRA: of other ranks, with a layer whose name another one ends in."""
    shapes = {  # rank, inputs, outputs
        "transformer_blocks.0.attn.to_q": (2, WIDTH, WIDTH),
        "proj_out": (8, WIDTH, WIDTH),
        "single_transformer_blocks.0.proj_out": (3, WIDTH + INNER, WIDTH),
        "norm_out.linear": (1, WIDTH, 2 * WIDTH),
    }
    return {
        name: (randn(7 * rank, rank, inputs) / 8, randn(9 * rank, outputs, rank) / 8)
        for name, (rank, inputs, outputs) in shapes.items()
    }


def test_several_loras_add_up_each_with_its_scale_ranks_and_alphas(
    tiny: models.Models, plain: Any, tmp_path: Path
) -> None:
    STYLES["musubi"](tmp_path / "style.safetensors")
    tensors = dotted(other_pairs()) | {"transformer.proj_out.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "other.safetensors")
    factors = {"proj_out": 2.0 / 8}
    other = {name: times(factors.get(name, 1.0), {name: pair})[name] for name, pair in other_pairs().items()}
    both = with_loras(tiny, tmp_path, style=0.5, other=1.5)
    assert near(both, merged(plain, (0.5 * HALVED, split_pairs()), (1.5, other)))
    assert not near(both, merged(plain, (0.5 * HALVED, split_pairs())))
    assert not near(both, merged(plain, (1.5, other)))


def test_one_file_with_the_sum_does_the_same_as_two(tiny: models.Models, tmp_path: Path) -> None:
    pairs, more = split_pairs(), {name: (down.flip(0), up * 0.5) for name, (down, up) in split_pairs().items()}
    save_file(dotted(pairs), tmp_path / "one.safetensors")
    save_file(dotted(more), tmp_path / "two.safetensors")
    # The sum of two products is one product of matrices put side by side.
    both = {
        name: (torch.cat([pairs[name][0], more[name][0]]), torch.cat([pairs[name][1] * 0.8, more[name][1] * -0.3], 1))
        for name in pairs
    }
    save_file(dotted(both), tmp_path / "sum.safetensors")
    apart = with_loras(tiny, tmp_path, one=0.8, two=-0.3)
    assert near(apart, with_loras(tiny, tmp_path, sum=1.0))


def test_what_ran_before_leaves_no_trace(
    tiny: models.Models, base: torch.Tensor, models_dir: Path, tmp_path: Path
) -> None:
    STYLES["musubi"](tmp_path / "style.safetensors")
    save_file(dotted(other_pairs()), tmp_path / "other.safetensors")
    fresh = models.load("tiny", models_dir)
    drawn = torch.get_rng_state()
    wanted = with_loras(fresh, tmp_path, other=1.0, style=0.7)
    for before in ({"style": 1.0}, {"style": 0.7, "other": 1.0}, {"other": -2.0, "style": 3.0}, {}):
        adapters.use(tiny, resolve(tmp_path, **before))
        predict(tiny.transformer)
        assert torch.equal(with_loras(tiny, tmp_path, other=1.0, style=0.7), wanted)
        adapters.use(tiny, ())
        assert is_clean(tiny, base)
    # Numbers that were drawn in passing would change what others draw.
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_file_of_that_name_with_other_content_is_another_lora(
    tiny: models.Models, plain: Any, tmp_path: Path
) -> None:
    for factor in (1.0, 2.0):
        save_file(dotted(times(factor, split_pairs())), tmp_path / "style.safetensors")
        assert near(with_loras(tiny, tmp_path, style=1.0), merged(plain, (factor, split_pairs())))


def replaced(old: str, new: str) -> Tensors:
    return {key.replace(old, new): tensor for key, tensor in dotted(split_pairs()).items()}


def changed(change: Callable[[torch.Tensor], torch.Tensor], end: str = "to_q.lora_A.weight") -> Tensors:
    return {key: change(value) if key.endswith(end) else value for key, value in dotted(split_pairs()).items()}


KEY = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
FIRST = "key transformer.single_transformer_blocks.1.attn.to_q.lora_A.weight"
WRONG: dict[str, tuple[Any, str, str]] = {
    "of another model": (
        {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 64)},
        "key diffusion_model.blocks.0.self_attn.q.lora_A.weight is for a layer that is not there",
        "another model",
    ),
    "one key too many": (
        dotted(split_pairs()) | {"transformer.transformer_blocks.7.attn.to_q.lora_A.weight": torch.zeros(4, 64)},
        "key transformer.transformer_blocks.7.attn.to_q.lora_A.weight is for a layer that is not there",
        "another model",
    ),
    "of a wider model": (
        changed(lambda tensor: tensor.repeat(1, 2)),
        f"{FIRST} has the shape 4 x 128 instead of 4 x 64",
        "another model",
    ),
    "of another rank above than below": (
        changed(lambda tensor: tensor[:3]),
        f"{FIRST} has the shape 3 x 64 instead of 4 x 64",
        "another model",
    ),
    "higher than the layer": (
        changed(lambda tensor: tensor[1:], "proj_mlp.lora_B.weight"),
        "proj_mlp.lora_B.weight has the shape 127 x 4 instead of 128 x 4",
        "another model",
    ),
    "of no rank": (
        changed(lambda tensor: tensor[:, :0], "to_q.lora_B.weight"),
        f"{FIRST} has the shape 4 x 64 instead of 1 x 64",
        "another model",
    ),
    "a convolution": (changed(lambda tensor: tensor[..., None, None]), "shape 4 x 64 x 1 x 1 instead", "another model"),
    "without its other half": (
        {key: value for key, value in dotted(split_pairs()).items() if not key.endswith("proj_mlp.lora_B.weight")},
        "proj_mlp.lora_A.weight has no up matrix beside it",
        "get it again",
    ),
    "an alpha alone": ({"proj_out.alpha": torch.tensor(1.0)}, "key proj_out.alpha has no", "get it again"),
    "for a layer twice": (
        dotted(split_pairs()) | flat("lora_unet_", fused_pairs()),
        "changes the layer single_transformer_blocks.0.proj_out once more",
        "get it again",
    ),
    "for the text encoder": (
        flat("lora_te1_", {"text_model_encoder_layers_0_mlp_fc1": (torch.zeros(4, 64), torch.zeros(64, 4))}),
        "key lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha is for a text encoder",
        "transformer alone",
    ),
    "for the text encoder too": (
        dotted(split_pairs()) | {"text_encoder.layers.0.q.lora_A.weight": torch.zeros(1)},
        "key text_encoder.layers.0.q.lora_A.weight is for a text encoder",
        "transformer alone",
    ),
    "DoRA": (dotted(split_pairs()) | {"transformer.proj_out.dora_scale": torch.ones(1)}, "dora_scale", "without DoRA"),
    "LoHa": ({"lora_unet_proj_out.hada_w1_a": torch.ones(1)}, "key lora_unet_proj_out.hada_w1_a is not", "LoHa"),
    "with biases": (
        dotted(split_pairs()) | {"transformer.proj_out.lora_B.bias": torch.ones(64)},
        "key transformer.proj_out.lora_B.bias is not known",
        "biases",
    ),
    "no LoRA": ({"proj_out.weight": torch.ones(64, 64)}, "key proj_out.weight is not known", "only plain LoRA"),
    "not finite": (changed(lambda tensor: tensor / 0), f"{FIRST} holds values that are not finite", "get it again"),
    "not real": (changed(lambda tensor: tensor.to(torch.int8)), "not finite numbers", "get it again"),
    "empty": ({}, "is empty", "get it again"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_does_not_fit_is_refused_and_leaves_nothing_behind(
    wrong: str, tiny: models.Models, base: torch.Tensor, tmp_path: Path
) -> None:
    tensors, message, hint = WRONG[wrong]
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "wrong.safetensors")
    STYLES["musubi"](tmp_path / "style.safetensors")
    with pytest.raises(LoraError) as caught:
        with_loras(tiny, tmp_path, style=1.0, wrong=1.0)
    assert caught.value.message.startswith("LoRA wrong.safetensors: ")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert is_clean(tiny, base)


def truncated(path: Path) -> None:
    STYLES["musubi"](path)
    path.write_bytes(path.read_bytes()[:-100])


def half_a_pickle(path: Path, *, zipped: bool = True) -> None:
    pickled = path.with_suffix(".pt")
    torch.save(flat("lora_unet_", fused_pairs()), pickled, _use_new_zipfile_serialization=zipped)
    pickled.write_bytes(pickled.read_bytes()[:-2000])


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a truncated file": (truncated, "cannot be opened: "),
    "an empty file": (lambda path: path.touch(), "cannot be opened: "),
    "a page that says not found": (lambda path: path.write_text("<html>404</html>"), "cannot be opened: "),
    "damaged settings": (
        lambda path: save_file(dotted(split_pairs()), path, metadata={"lora_adapter_metadata": "[1]"}),
        "cannot be opened: ",
    ),
    "a pattern that is none": (
        lambda path: save_file(
            dotted(split_pairs()), path, metadata={"lora_adapter_metadata": '{"alpha_pattern": {"(": 1}}'}
        ),
        "cannot be opened: ",
    ),
    "half a pickle": (half_a_pickle, "cannot be opened: "),
    "half a pickle of old": (lambda path: half_a_pickle(path, zipped=False), "cannot be opened: "),
    "an empty pickle": (lambda path: path.with_suffix(".pt").touch(), "cannot be opened: "),
    "a text": (lambda path: path.with_suffix(".pt").write_text("<html>404</html>"), "holds more than weights"),
    "a program": (
        lambda path: path.with_suffix(".pt").write_bytes(pickle.dumps({"proj_out.alpha": Harmful()}, protocol=2)),
        "holds more than weights",
    ),
    "a list": (lambda path: torch.save([torch.ones(1)], path.with_suffix(".pt")), "is not a table of tensors"),
    "a checkpoint": (
        lambda path: torch.save({"step": 1, "model": {}}, path.with_suffix(".bin")),
        "is not a table of tensors",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused(
    damage: str,
    tiny: models.Models,
    base: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = DAMAGED[damage]
    make(tmp_path / "style.safetensors")
    with pytest.raises(LoraError, match=r"^LoRA style\.\w+: ") as caught:
        with_loras(tiny, tmp_path, style=1.0)
    assert message in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "harm").exists()
    assert is_clean(tiny, base)


def test_the_original_names_mean_what_diffusers_says_at_full_size() -> None:
    kind: Any = HunyuanVideoFramepackTransformer3DModel
    with torch.device("meta"):
        transformer = kind(num_layers=1, num_single_layers=1, num_refiner_layers=1, has_image_proj=True)
    known = lora_weights.layers(transformer)
    checked = 0
    for theirs in lora_weights._HUNYUAN:
        name = theirs.format(0)
        targets = known[name.replace(".", "_")]
        up = torch.arange(sum(target.outputs for target in targets)).float()[:, None]
        key = f"{name}.lora_B.weight"
        converted = _convert_hunyuan_video_lora_to_diffusers({key: up})
        parts = up.split([target.outputs for target in targets])
        assert converted.keys() == {f"transformer.{target.name}.lora_B.weight" for target in targets}
        for target, part in zip(targets, parts, strict=True):
            assert torch.equal(converted[f"transformer.{target.name}.lora_B.weight"], part)
        checked += len(targets)
    assert checked == len(set(lora_weights._HUNYUAN)) + 9


def test_a_lora_keeps_its_precision_beside_weights_of_less(models_dir: Path, plain: Any, tmp_path: Path) -> None:
    low = models.load("tiny", models_dir, plan="low")
    before = predict(low.transformer)
    STYLES["musubi"](tmp_path / "style.safetensors")
    effect = with_loras(low, tmp_path, style=1.0) - before
    wanted = merged(plain, (HALVED, split_pairs())) - predict(plain)
    assert (effect - wanted).norm() < 0.2 * wanted.norm()
    layer = low.transformer.transformer_blocks[0].attn.to_q
    assert layer.base_layer.weight.dtype == torch.float8_e4m3fn
    assert layer.lora_A[next(iter(layer.lora_A))].weight.dtype == torch.float32
    adapters.use(low, ())
    assert is_clean(low, before)


def test_a_lora_goes_along_with_blocks_that_pass_over_the_device(
    models_dir: Path, tiny: models.Models, base: torch.Tensor, tmp_path: Path
) -> None:
    minimal = models.load("tiny", models_dir, plan="minimal")
    STYLES["musubi"](tmp_path / "style.safetensors")
    wanted = with_loras(tiny, tmp_path, style=1.0)
    block = minimal.transformer.transformer_blocks[0]
    groups = [_get_top_level_group_offload_hook(block).group]
    assert torch.equal(with_loras(minimal, tmp_path, style=1.0), wanted)
    groups.append(_get_top_level_group_offload_hook(block).group)
    adapters.use(minimal, ())
    groups.append(_get_top_level_group_offload_hook(block).group)
    # On a GPU a group has a list of its weights, made when the group was.
    assert len({id(group) for group in groups}) == 3
    assert is_clean(minimal, base)
