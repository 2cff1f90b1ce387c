"""Our section loop against diffusers' pipeline: the same weights, noise and steps give the same bits.

Nothing here is compared with a tolerance. The pipeline is subclassed only so that it draws its image latents from the
second generator, as we do, and so that an end frame has the effect on the embeddings that it has in FramePack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import HunyuanVideoFramepackPipeline
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_framepack as theirs

from framepack_daemon.engine import conditioning, decode, render, schedule
from framepack_daemon.engine.models import CROP_START, PROMPT_TEMPLATE
from framepack_daemon.engine.sources import Sources
from framepack_daemon.media import image as pictures
from framepack_daemon.request import Request, build, effective

if TYPE_CHECKING:
    from pathlib import Path

    from framepack_daemon.engine.conditioning import Conditioning
    from framepack_daemon.engine.models import Models

SEED = 11
FRAMES_PER_PIPELINE_SECTION = 33  # how diffusers counts sections


class TwoGenerators(HunyuanVideoFramepackPipeline):
    """Draws image latents from a generator of their own, and looks at pictures as we do."""

    own: torch.Generator
    told: Conditioning

    def prepare_image_latents(self, image: torch.Tensor, *, generator: Any = None, **rest: Any) -> torch.Tensor:
        del generator
        return super().prepare_image_latents(image, generator=self.own, **rest)

    def encode_image(self, image: torch.Tensor, **rest: Any) -> torch.Tensor:
        embeds = super().encode_image(image, **rest)
        return embeds if self.told.last_latents is None else self.told.image_embeds


def pipeline(models: Models, told: Conditioning) -> TwoGenerators:
    built = TwoGenerators(
        text_encoder=models.text_encoder,
        tokenizer=models.tokenizer,
        transformer=models.transformer,
        vae=models.vae,
        scheduler=type(models.scheduler).from_config(models.scheduler.config),
        text_encoder_2=models.text_encoder_2,
        tokenizer_2=models.tokenizer_2,
        image_encoder=models.image_encoder,
        feature_extractor=models.feature_extractor,
    )
    built.set_progress_bar_config(disable=True)
    built.own = conditioning.image_generator(SEED)
    built.told = told
    return built


class Run:
    """Our render, with the frames before they become uint8 and the latents of each checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.finals: dict[int, torch.Tensor] = {}
        self.kept: list[torch.Tensor] = []
        put, save = render.Segments.put, render.checkpoint.Store.save

        def recording_put(segments: Any, section: int, final: torch.Tensor, edge: torch.Tensor | None) -> None:
            self.finals[section] = final.clone()
            put(segments, section, final, edge)

        def recording_save(store: Any, section: int, kept: torch.Tensor, *rest: Any) -> None:
            self.kept.append(kept.clone())
            save(store, section, kept, *rest)

        monkeypatch.setattr(render.Segments, "put", recording_put)
        monkeypatch.setattr(render.checkpoint.Store, "save", recording_save)

    def frames(self, order: schedule.Order) -> torch.Tensor:
        return torch.cat([self.finals[section] for section in order.video_order], dim=2)


def request(sections: int, sampling: str, **more: Any) -> Request:
    fields = {
        "prompt": "The girl dances gracefully.",
        "frames": 36 * sections + 1,
        "seed": SEED,
        "num_inference_steps": 2,
        "solver": "euler",
        "sampling": sampling,
        "width": 64,
        "height": 112,
    }
    return effective(build(fields | more), "tiny")


def theirs_of(models: Models, asked: Request, image: Path, last: Path | None, output: str) -> tuple[Any, Conditioning]:
    first = pictures.load(image)
    end = pictures.load(last) if last else None
    told = conditioning.prepare(asked, models, first, end)
    (text,) = told.prompts.values()
    negative = {}
    if told.negative:
        negative = {
            "negative_prompt_embeds": told.negative.embeds,
            "negative_pooled_prompt_embeds": told.negative.pooled,
            "negative_prompt_attention_mask": told.negative.mask,
        }
    result = pipeline(models, told)(
        image=conditioning.fit(first, told.height, told.width),
        last_image=conditioning.fit(end, told.height, told.width) if end else None,
        prompt_embeds=text.embeds,
        pooled_prompt_embeds=text.pooled,
        prompt_attention_mask=text.mask,
        height=told.height,
        width=told.width,
        num_frames=FRAMES_PER_PIPELINE_SECTION * asked.sections,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        true_cfg_scale=asked.true_cfg_scale,
        generator=torch.Generator().manual_seed(SEED),
        sampling_type=asked.sampling,
        output_type=output,
        **negative,
    )
    return result.frames, told


@pytest.mark.parametrize("sampling", ["inverted_anti_drifting", "vanilla"])
@pytest.mark.parametrize("sections", [1, 2, 3, 6])
def test_latents_and_frames_are_the_pipelines_bit_for_bit(  # noqa: PLR0917 - fixtures
    sections: int, sampling: str, tiny_models: Models, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(sections, sampling)
    run = Run(monkeypatch)
    *_, finished = render.render(asked, tiny_models, Sources(picture), tmp_path)
    assert finished.facts.frames == 36 * sections + 1

    latents, _ = theirs_of(tiny_models, asked, picture, None, "latent")
    assert len(latents) == len(run.kept) == sections
    for whole, kept in zip(latents, run.kept, strict=True):
        made = min(whole.shape[2], schedule.KEPT_FRAMES)
        side = slice(-made, None) if sampling == "vanilla" else slice(made)
        assert torch.equal(kept[:, :, side], whole[:, :, side])

    frames, _ = theirs_of(tiny_models, asked, picture, None, "pt")
    assert frames.shape == (1, 36 * sections + 1, 3, 112, 64)
    order = schedule.Order(backwards=sampling != "vanilla", sections=sections)
    unit = (run.frames(order) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 1, 3, 4)
    assert torch.equal(unit, frames)
    assert all(len(order.span(section)) == part.shape[2] for section, part in run.finals.items())


@pytest.mark.parametrize("more", [{"true_cfg_scale": 2.5, "negative_prompt": "blurred"}, {"guidance_scale": 3.0}])
def test_guidance_is_the_pipelines(
    more: dict[str, Any], tiny_models: Models, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(1, "inverted_anti_drifting", **more)
    run = Run(monkeypatch)
    list(render.render(asked, tiny_models, Sources(picture), tmp_path))
    latents, _ = theirs_of(tiny_models, asked, picture, None, "latent")
    assert torch.equal(run.kept[0][:, :, :10], latents[0])
    plain = request(1, "inverted_anti_drifting")
    assert not torch.equal(theirs_of(tiny_models, plain, picture, None, "latent")[0][0], latents[0])


def test_an_end_frame_anchors_the_first_section_as_in_the_pipeline(
    tiny_models: Models, picture: Path, end_picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(2, "inverted_anti_drifting", last_image=end_picture.name)
    run = Run(monkeypatch)
    *_, finished = render.render(asked, tiny_models, Sources(picture, end_picture), tmp_path)
    latents, _ = theirs_of(tiny_models, asked, picture, end_picture, "latent")
    assert torch.equal(run.kept[-1][:, :, :19], latents[-1])
    assert finished.facts.frames == 73


def test_uint8_frames_are_the_video_processors(tiny_models: Models) -> None:
    frames = torch.randn(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1))
    told: Any = None
    wanted = pipeline(tiny_models, told).video_processor.postprocess_video(frames, output_type="np")
    assert (decode.to_pixels(frames) == (wanted[0] * 255).round()).all()


@pytest.mark.parametrize("prompt", ["A cat.", "Ein Kätzchen {schläft} 🙂 " * 40])
def test_text_embeddings_are_the_pipelines(prompt: str, tiny_models: Models) -> None:
    text = conditioning.encode_text(tiny_models, prompt)
    told: Any = None
    with torch.no_grad():
        embeds, pooled, mask = pipeline(tiny_models, told).encode_prompt(prompt, device=torch.device("cpu"))
    length = int(mask.sum())
    assert torch.equal(text.embeds[:, :length], embeds[:, :length])
    assert not text.embeds[:, length:].any()
    assert text.mask.shape == (1, 512)
    assert int(text.mask.sum()) == length
    assert torch.equal(text.pooled, pooled)


def test_template_is_the_framepack_pipelines() -> None:
    assert theirs.DEFAULT_PROMPT_TEMPLATE == {"template": PROMPT_TEMPLATE, "crop_start": CROP_START}
