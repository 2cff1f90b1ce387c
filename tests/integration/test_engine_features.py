"""Each field of a sidecar that the engine acts on has its own effect, and no other."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from framepack_daemon.engine import conditioning, continuation, render, sampler, schedule
from framepack_daemon.engine.encodings import Encodings
from framepack_daemon.engine.glimpse import Glimpse
from framepack_daemon.engine.sources import Sources
from framepack_daemon.errors import ContinuationError
from framepack_daemon.media import image as pictures
from framepack_daemon.media import video
from framepack_daemon.request import Request, build, effective

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from framepack_daemon.engine.models import Models

ORDERS = ["inverted_anti_drifting", "vanilla"]
SECTION_SECONDS = 1.2
LUMA = np.array([0.2126, 0.7152, 0.0722])  # ITU-R BT.709


def request(sections: int = 1, **more: Any) -> Request:
    fields = {
        "prompt": "waves",
        "frames": 36 * sections + 1,
        "seed": 11,
        "num_inference_steps": 1,
        "width": 64,
        "height": 112,
    }
    return effective(build(fields | more), "tiny")


class Recorded:
    """A render that has run: its events, and for each section what it sampled and which frames it gave."""

    def __init__(self, asked: Request, models: Models, sources: Sources, scratch: Path) -> None:
        scratch.mkdir(exist_ok=True)
        self.latents: list[torch.Tensor] = []
        self.finals: dict[int, np.ndarray] = {}
        self.previews: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            denoise, put = sampler.denoise, render.Segments.put

            def recording_denoise(context: Any, begin: Any) -> Iterator[Any]:
                for progress in denoise(context, begin):
                    yield progress
                self.latents.append(progress.latents)

            def recording_put(segments: Any, section: int, final: torch.Tensor, edge: torch.Tensor | None) -> None:
                self.finals[section] = render.decode.to_pixels(final)
                put(segments, section, final, edge)

            patch.setattr(sampler, "denoise", recording_denoise)
            patch.setattr(render.Segments, "put", recording_put)
            self.events = list(render.render(asked, models, sources, scratch))
        self.finished = self.events[-1]
        self.order = schedule.Order(backwards=asked.sampling != "vanilla", sections=asked.sections)
        self.frames = np.concatenate([self.finals[section] for section in self.order.video_order])[: asked.video_frames]


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean difference of two RGB pictures in brightness (colours lose half their detail in a video), of 255."""
    return float(np.abs((ours.astype(float) - theirs) @ LUMA).mean())


def rgb(path: Path) -> np.ndarray:
    """Every frame of a video, uint8 (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([video.to_rgb(frame) for frame in container.decode(video=0)])


@pytest.mark.parametrize("sampling", ORDERS)
@pytest.mark.parametrize("sections", [1, 2, 3, 4, 5, 6, 20])
def test_every_number_of_sections_gives_every_frame_at_its_place(
    sections: int, sampling: str, tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    run = Recorded(request(sections, sampling=sampling, crf=1), tiny_models, Sources(picture), tmp_path)
    frames = 36 * sections + 1
    assert run.frames.shape == (frames, 112, 64, 3)
    assert (run.finished.facts.frames, run.finished.facts.seconds) == (frames, frames / 30)
    assert error(rgb(run.finished.video), run.frames) < 4
    neighbours = error(run.frames[1:], run.frames[:-1])
    assert neighbours > 8, "frames have to differ for their order to be seen"
    with av.open(str(run.finished.video)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.duration * stream.time_base) == (frames, Fraction(frames, 30))
        for wanted in {0, frames // 2, frames - 1}:
            time = round(wanted / 30 / stream.time_base)
            container.seek(time, stream=stream)
            found = next(frame for frame in container.decode(stream) if frame.pts >= time)
            assert found.pts == time
            assert error(video.to_rgb(found), run.frames[wanted]) < 6


def test_an_end_frame_draws_the_end_by_its_weight(
    tiny_models: Models, picture: Path, end_picture: Path, tmp_path: Path
) -> None:
    def run(name: str, last: Path | None, **more: Any) -> Recorded:
        last_image = {"last_image": end_picture.name} if last else {}
        asked = request(2, **last_image, **more)
        return Recorded(asked, tiny_models, Sources(picture, last), tmp_path / name)

    without, none = run("without", None), run("none", end_picture, last_image_weight=0)
    half, full = run("half", end_picture, last_image_weight=0.5), run("full", end_picture)
    assert np.array_equal(none.frames, without.frames)
    # The section that is sampled first is the last in the video; the end frame is its neighbour.
    told = conditioning.prepare(request(), tiny_models, pictures.load(picture), pictures.load(end_picture))
    assert told.last_latents is not None
    away = [(run.latents[0] - without.latents[0]).norm() for run in (half, full)]
    assert 0 < away[0] < away[1]
    assert not np.array_equal(full.frames[-1], without.frames[-1])


def test_the_look_of_the_end_frame_takes_part(tiny_models: Models, picture: Path, end_picture: Path) -> None:
    first, last = pictures.load(picture), pictures.load(end_picture)
    alone = conditioning.prepare(request(), tiny_models, first, None).image_embeds
    of_last = conditioning.prepare(request(), tiny_models, last, None).image_embeds
    both = conditioning.prepare(request(), tiny_models, first, last).image_embeds
    assert torch.equal(both, (alone + of_last) / 2)


@pytest.mark.parametrize("sampling", ORDERS)
def test_each_section_is_told_the_text_of_its_time(
    sampling: str, tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    timed = [{"at": 0, "text": "waves"}, {"at": 2 * SECTION_SECONDS, "text": "a storm"}]
    calm = Recorded(request(3, sampling=sampling), tiny_models, Sources(picture), tmp_path / "calm")
    storm = Recorded(request(3, sampling=sampling, prompt=timed), tiny_models, Sources(picture), tmp_path / "storm")
    same = [torch.equal(ours, theirs) for ours, theirs in zip(calm.latents, storm.latents, strict=True)]
    # The last third of the video has another text: backwards that comes first, and all that follows sees it.
    assert same == ([True, True, False] if sampling == "vanilla" else [False, False, False])
    all_storm = Recorded(
        request(3, sampling=sampling, prompt="a storm"), tiny_models, Sources(picture), tmp_path / "all"
    )
    first = 0 if sampling == "inverted_anti_drifting" else 2
    assert torch.equal(all_storm.latents[first], storm.latents[first]) == (first == 0)


def test_what_was_encoded_is_found_again(tiny_models: Models, picture: Path, end_picture: Path) -> None:
    tiny_models.encodings.__init__()
    counts = []
    for seed in (1, 2):
        asked = request(seed=seed, true_cfg_scale=2.0, prompt=[{"at": 0, "text": "a"}, {"at": 0.5, "text": "b"}])
        first, last = pictures.load(picture), pictures.load(end_picture)
        told = conditioning.prepare(asked, tiny_models, first, last)
        counts.append((tiny_models.encodings.misses, tiny_models.encodings.hits))
    assert counts == [(5, 0), (5, 5)]  # two texts, the empty one, two pictures
    fresh = conditioning.Conditioning(**vars(told))
    tiny_models.encodings.__init__()
    again = conditioning.prepare(asked, tiny_models, first, last)
    assert torch.equal(again.image_latents, fresh.image_latents)
    assert torch.equal(again.prompts["b"].embeds, fresh.prompts["b"].embeds)
    other = conditioning.prepare(request(seed=1), tiny_models, first, None)
    assert not torch.equal(other.image_latents, again.image_latents), "each seed draws its own image latents"


def test_the_cache_of_encodings_is_bounded() -> None:
    kept = Encodings(capacity=2)
    for key in (1, 2, 1, 3, 1, 2):
        kept.get(key, torch.device("cpu"), lambda: (torch.zeros(1),))
    assert (kept.hits, kept.misses) == (2, 4)


def test_a_continuation_is_what_a_longer_video_would_have_been(
    tiny_models: Models, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises = [torch.randn(1, 16, 9, 14, 8, generator=torch.Generator().manual_seed(number)) for number in range(3)]

    def of_sections(first: int) -> None:
        following = iter(noises[first:])
        monkeypatch.setattr(sampler, "draw_noise", lambda *_: next(following))

    of_sections(0)
    long = Recorded(request(3, sampling="vanilla"), tiny_models, Sources(picture), tmp_path / "long")
    of_sections(0)
    kept = request(2, sampling="vanilla", keep_latents=True)
    begun = Recorded(kept, tiny_models, Sources(picture), tmp_path / "begun")
    of_sections(2)
    asked = request(1, sampling="vanilla", continue_from="begun-123456789abc", seed=99)
    sources = Sources(picture, latents=begun.finished.latents)
    more = Recorded(asked, tiny_models, sources, tmp_path / "more")
    assert torch.equal(more.latents[0], long.latents[2])
    assert more.finished.facts.frames == 37
    # It begins with the last frame of what it continues; the others are new.
    assert np.array_equal(more.frames, long.frames[72:])


@pytest.mark.parametrize("sections", [1, 2, 4])
def test_backwards_a_continuation_begins_with_the_last_frame(
    sections: int, tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    kept = request(sections, keep_latents=True)
    begun = Recorded(kept, tiny_models, Sources(picture), tmp_path / "begun")
    ending = continuation.load_ending(begun.finished.latents, torch.device("cpu"))
    assert ending.latents.shape[2] == min(9 * sections + int(sections < 4), 27 + (sections == 3))
    last = np.asarray(continuation.last_frame(tiny_models, ending))
    assert error(last, begun.frames[-1]) < 10 < error(last, begun.frames[0])
    sources = Sources(picture, latents=begun.finished.latents)
    more = Recorded(request(1, continue_from="begun-123456789abc"), tiny_models, sources, tmp_path / "more")
    assert error(more.frames[0], begun.frames[-1]) < error(more.frames[0], begun.frames[0])


def test_kept_latents_survive_a_stop_between_sections(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    asked = request(4, keep_latents=True)
    straight = Recorded(asked, tiny_models, Sources(picture), tmp_path / "straight").finished
    (tmp_path / "stopped").mkdir()
    events = render.render(asked, tiny_models, Sources(picture), tmp_path / "stopped")
    next(event for event in events if isinstance(event, render.Section) and event.section == 3)
    events.close()
    *_, resumed = render.render(asked, tiny_models, Sources(picture), tmp_path / "stopped")
    assert resumed.resumed_from == 4
    assert resumed.latents.read_bytes() == straight.latents.read_bytes()


def test_latents_of_another_size_or_of_nothing_are_refused(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    kept = Recorded(request(keep_latents=True), tiny_models, Sources(picture), tmp_path / "kept").finished
    wide = request(continue_from="x", width=128)
    with pytest.raises(ContinuationError, match="64x112 pixels, and this one 128x112"):
        Recorded(wide, tiny_models, Sources(picture, latents=kept.latents), tmp_path / "wide")
    kept.latents.write_bytes(b"nothing")
    with pytest.raises(ContinuationError, match="does not hold the end of a video"):
        Recorded(request(continue_from="x"), tiny_models, Sources(picture, latents=kept.latents), tmp_path / "bad")


def test_a_video_beside_the_sidecar_gives_its_last_frame(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    begun = Recorded(request(2, crf=1), tiny_models, Sources(picture), tmp_path / "begun")
    sources = Sources(video=begun.finished.video)
    more = Recorded(request(1, continue_from="begun.mp4"), tiny_models, sources, tmp_path / "more")
    assert error(more.frames[0], begun.frames[-1]) < error(more.frames[0], begun.frames[0])


@pytest.mark.parametrize("sampling", ORDERS)
def test_the_preview_grows_with_every_section(
    sampling: str, tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    asked = request(4, sampling=sampling, num_inference_steps=2)
    preview, lengths, told = tmp_path / "preview.mp4", [], 0
    for event in render.render(asked, tiny_models, Sources(picture), tmp_path):
        told += getattr(event, "preview", False)
        if preview.exists():
            lengths.append(video.probe(preview).frames)
    # Each shows its section whole, though the next one still changes the 33 frames at the seam.
    assert sorted(set(lengths)) == [
        36 * sections + (sampling == "vanilla") - 3 * (sampling != "vanilla") for sections in (1, 2, 3)
    ]
    assert lengths == sorted(lengths)
    assert told == 3


def test_the_preview_ends_where_the_video_does(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    asked = request(2, frames=60)
    list(render.render(asked, tiny_models, Sources(picture), tmp_path))
    assert video.probe(tmp_path / "preview.mp4").frames == 60 - (73 - 33)


def test_a_video_of_one_section_has_no_preview(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    run = Recorded(request(1), tiny_models, Sources(picture), tmp_path)
    assert not (tmp_path / "preview.mp4").exists()
    assert not any(getattr(event, "preview", False) for event in run.events)


def test_a_glimpse_shows_the_picture_that_the_latents_are_of(tiny_models: Models, picture: Path) -> None:
    image = conditioning.fit(pictures.load(picture), 112, 96)
    told = conditioning.prepare(request(width=96), tiny_models, image, None)
    target = picture.with_name("step.jpg")
    Glimpse(image, told.image_latents).write(told.image_latents.expand(-1, -1, 2, -1, -1), target)
    with Image.open(target) as strip:
        assert strip.size == (2 * 12 * 128 // 14, 128)
        shown = np.asarray(strip.resize((2 * 12, 14), Image.Resampling.BOX))
    small = np.asarray(image.resize((12, 14), Image.Resampling.BOX))
    blank = np.abs(small - small.mean(axis=(0, 1))).mean()
    for half in (shown[:, :12], shown[:, 12:]):
        assert np.abs(half.astype(float) - small).mean() < blank / 2


def test_a_picture_of_the_step_is_written_where_it_is_wanted(
    tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    for name, wanted in (("with", True), ("without", False)):
        run = Recorded(request(step_preview=wanted), tiny_models, Sources(picture), tmp_path / name)
        assert (tmp_path / name / "step.jpg").exists() is wanted
        assert [event.picture for event in run.events if isinstance(event, render.Step)] == [wanted]


@pytest.mark.parametrize(("kind", "suffix"), [("webp", ".webp"), ("gif", ".gif")])
def test_an_animated_picture_is_made_where_it_is_wanted(
    kind: str, suffix: str, tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    finished = Recorded(request(animation=kind), tiny_models, Sources(picture), tmp_path).finished
    assert finished.animation.suffix == suffix
    with Image.open(finished.animation) as animation:
        assert animation.n_frames > 5


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_another_codec_holds_the_same_frames(codec: str, tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    run = Recorded(request(2, codec=codec, crf=1), tiny_models, Sources(picture), tmp_path)
    assert run.finished.facts.codec == codec
    assert error(rgb(run.finished.video), run.frames) < 6


def test_the_video_carries_the_sidecar_that_makes_it_again(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    made = Recorded(request(2, prompt="Wellen 🌊"), tiny_models, Sources(picture), tmp_path / "made").finished
    with av.open(str(made.video)) as container:
        metadata = dict(container.metadata)
    asked = effective(build(json.loads(metadata["comment"])), "framepack-i2v")
    again = Recorded(asked, tiny_models, Sources(picture), tmp_path / "again").finished
    assert again.facts.sha256 == made.facts.sha256
    source = json.loads(metadata["description"])
    assert source["model"] == {"name": "tiny", "revision": tiny_models.revision}
    assert source["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert metadata["title"] == "Wellen 🌊"


def test_rescale_brings_the_spread_of_true_cfg_back(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    results = {}
    for amount in (0.0, 0.5, 1.0):
        asked = request(true_cfg_scale=6.0, negative_prompt="blurred", guidance_rescale=amount)
        results[amount] = Recorded(asked, tiny_models, Sources(picture), tmp_path / str(amount)).latents[0]
    assert torch.allclose(results[0.5], (results[0.0] + results[1.0]) / 2, atol=1e-4)
    assert not torch.allclose(results[0.0], results[1.0], atol=1e-3)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (80, 112), (336, 64), (64, 2048)])
def test_any_size_in_steps_of_sixteen(
    width: int, height: int, tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    finished = Recorded(request(width=width, height=height), tiny_models, Sources(picture), tmp_path).finished
    assert (finished.facts.width, finished.facts.height) == (width, height)
