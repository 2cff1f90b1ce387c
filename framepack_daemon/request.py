"""What a sidecar may ask for: its fields, their ranges, and the messages when it asks for something else.

`Request` is the schema. `build` lays a sidecar over the defaults of its folder; `effective` fills in every default and
draws the seed. Field names are diffusers' where it has one; the original's names are brought to ours by `aliases`, and
what is wrong is put into words by `refusals`. Pure: reads no file and knows neither the queue nor the engine.
"""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from framepack_daemon.aliases import canonical, spelled
from framepack_daemon.errors import RequestError
from framepack_daemon.refusals import ONE_TEXT, TIMED_TEXTS, explain
from framepack_daemon.request_parts import (
    MAX_NAME_CHARACTERS,
    MAX_SECONDS,
    STRICT,
    Lora,
    Prompt,
    TimedText,
    bare_name,
    no_nul,
    not_blank,
)

FPS = 30  # frames per second of every video
LATENT_WINDOW = 9  # latent frames that one section samples
FRAMES_PER_SECTION = LATENT_WINDOW * 4  # 36: the VAE makes four frames of each latent frame
MAX_FRAMES = 3601  # 36 * 100 sections + 1
MAX_SEED = 2**63 - 1
DRAWN_SEEDS = 2**31  # drawn seeds stay below, so that every tool and language can hold them
MAX_TAKES = 100  # jobs that one drop can make

Sampling = Literal["inverted_anti_drifting", "vanilla"]
ModelName = Literal["framepack-i2v", "framepack-f1", "tiny"]

# The order in which each checkpoint was trained to sample.
NATIVE_SAMPLING: dict[str, Sampling] = {
    "framepack-i2v": "inverted_anti_drifting",
    "framepack-f1": "vanilla",
    "tiny": "inverted_anti_drifting",
}

# The bucket size of requests that name none; the tiny model renders on CPUs.
RESOLUTIONS = {"framepack-i2v": 640, "framepack-f1": 640, "tiny": 320}


def _kind_of_prompt(value: Any) -> str:
    return TIMED_TEXTS if isinstance(value, list) else ONE_TEXT


class Request(BaseModel):
    """What one job renders; the schema of a sidecar."""

    model_config = STRICT

    prompt: Annotated[
        Annotated[Prompt, Tag(ONE_TEXT)]
        | Annotated[list[TimedText], Field(min_length=1, max_length=100), Tag(TIMED_TEXTS)],
        Discriminator(_kind_of_prompt),
    ] = Field(
        description="What happens in the video: a text, or texts with the time in seconds from which each holds.",
        examples=["The girl dances gracefully.", [{"at": 0, "text": "She waves."}, {"at": 2.5, "text": "She turns."}]],
    )
    negative_prompt: str = Field(
        "", max_length=10_000, description="What should not appear; has an effect only with true_cfg_scale above 1."
    )
    seconds: float | None = Field(
        None,
        ge=0.1,
        le=MAX_SECONDS,
        description="Length in seconds, to the nearest number of sections of 1.2 s; 5 gives 145 frames. Default 5.",
    )
    frames: int | None = Field(
        None, ge=1, le=MAX_FRAMES, description="Length in frames at 30 a second, exactly; instead of seconds."
    )
    seed: int = Field(-1, ge=-1, le=MAX_SEED, description="-1 draws one; the drawn seed is recorded.")
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] | None = Field(
        None, min_length=1, max_length=MAX_TAKES, description="One job for each of these seeds, from this one drop."
    )
    num_inference_steps: int = Field(25, ge=1, le=100, description="Denoising steps of each section.")
    guidance_scale: float = Field(10.0, ge=1.0, le=32.0, description="Distilled guidance.")
    true_cfg_scale: float = Field(
        1.0, ge=1.0, le=32.0, description="Classifier-free guidance; 1 is off, more doubles the time."
    )
    guidance_rescale: float = Field(0.0, ge=0.0, le=1.0, description="Rescale of the true CFG result; 0 is off.")
    solver: Literal["unipc", "euler"] = Field(
        "unipc", description="How steps are made: UniPC as the reference does, or Euler as diffusers does."
    )
    reference_rounding: bool = Field(
        False, description="Round time steps and latents to bfloat16 as the reference does, to compare with it."
    )
    sampling: Sampling | None = Field(
        None,
        description="Order of the sections: last to first, or first to last. Default: what the model was trained for.",
    )
    model: ModelName | None = Field(None, description="Which model renders. Default: the daemon's setting.")
    resolution: int | None = Field(
        None,
        ge=320,
        le=960,
        multiple_of=32,
        description="Bucket size in pixels: the video's shape follows the picture's. Default 640, for tiny 320.",
    )
    width: int | None = Field(None, ge=64, le=2048, multiple_of=16, description="Width in pixels, with height.")
    height: int | None = Field(None, ge=64, le=2048, multiple_of=16, description="Height in pixels, with width.")
    last_image: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="Says that an end frame belongs to this drop: a file named like the picture, with .last. before "
        "its extension (beach.last.jpg). Filled in by itself where that file is there.",
    )
    last_image_weight: float = Field(
        1.0, ge=0.0, le=1.0, description="How strongly the end frame draws the video to it; 0 is not at all."
    )
    loras: list[Lora] = Field(
        default_factory=list, max_length=16, description="LoRA files of loras_dir to apply, and how strongly."
    )
    continue_from: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description="What the video continues: the id of a done job that kept its latents, or the name of a video "
        "beside the sidecar, named like it (more.mp4). Takes the place of the picture.",
    )
    keep_latents: bool = Field(False, description="Keep what another job needs to continue this one.")
    variations: int = Field(1, ge=1, le=MAX_TAKES, description="So many jobs with different seeds from this one drop.")
    cache: Literal["none", "first_block"] = Field(
        "none", description="Reuse of earlier steps' results: faster, and of lower quality."
    )
    codec: Literal["h264", "hevc", "av1", "h264_nvenc"] = Field(
        "h264", description="Codec of the video; every browser plays h264."
    )
    crf: int = Field(16, ge=1, le=51, description="Quality: 1 is nearly lossless, 51 the smallest file.")
    animation: Literal["none", "webp", "gif"] = Field(
        "none", description="A small animated picture beside the video, for chats and pages."
    )
    step_preview: bool = Field(False, description="A rough picture of the section in work, at most one a second.")
    gpu_memory_preservation: float | None = Field(
        None, ge=0.0, le=128.0, description="GiB of GPU memory to leave free. Default: the daemon's setting."
    )
    priority: int = Field(0, ge=-100, le=100, description="Jobs of a higher priority run first.")
    notify: bool | None = Field(
        None,
        description="Whether a message is sent when this job is done or failed, to the addresses that the daemon has. "
        "Default: as the daemon's settings say.",
    )

    @field_validator("frames", "seed", "num_inference_steps", "resolution", "width", "height", "crf", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """16 for 16.0: the original wrote whole numbers as floats."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _whole_seeds(cls, value: Any) -> Any:
        return [cls._whole(seed) for seed in value] if isinstance(value, list) else value

    _check_negative = field_validator("negative_prompt")(no_nul)

    @field_validator("prompt")
    @classmethod
    def _timed(cls, value: str | list[TimedText]) -> str | list[TimedText]:
        if isinstance(value, str):
            return not_blank(value)
        times = [part.at for part in value]
        if times[0] != 0:
            raise ValueError(f"the first text holds from {times[0]:g} s on; set its at to 0")
        if times != sorted(set(times)):
            raise ValueError("its times do not rise from text to text; put them in order, each time once")
        return value

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("has a seed twice, which makes the same video twice; write each once")
        return value

    @field_validator("loras")
    @classmethod
    def _each_file_once(cls, value: list[Lora]) -> list[Lora]:
        names = [lora.name for lora in value]
        if len(set(names)) < len(names):
            raise ValueError("names a file twice; write each once, with the scale that you want")
        return value

    @field_validator("last_image", "continue_from")
    @classmethod
    def _bare_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        use = {
            "last_image": "put it beside the picture and use beach.last.jpg",
            "continue_from": "put the video beside the sidecar, or write the id of a job",
        }
        return value if value is None else bare_name(value, use[str(info.field_name)])

    @model_validator(mode="after")
    def _together(self) -> Request:
        if self.seconds is not None and self.frames is not None:
            raise ValueError("seconds and frames: both say how long the video is; remove one")
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height: one is given without the other; give both, or use resolution")
        if self.width is not None and self.resolution is not None:
            raise ValueError("resolution: is given beside width and height; remove one of the two ways")
        if self.last_image is not None and self.sampling == "vanilla":
            raise ValueError(
                "last_image: sampling vanilla cannot aim at an end frame; set sampling to inverted_anti_drifting"
            )
        if self.seeds is not None and (self.seed != -1 or self.variations != 1):
            raise ValueError("seeds: stands beside seed or variations, which say the same; keep one of them")
        if not isinstance(self.prompt, str) and self.prompt[-1].at >= self.video_frames / FPS:
            raise ValueError(
                f"prompt: the text at {self.prompt[-1].at:g} s begins after the video's end at "
                f"{self.video_frames / FPS:.2f} s; give it an earlier time, or make the video longer"
            )
        return self

    @property
    def takes(self) -> int:
        """How many jobs one drop of this request makes."""
        return self.variations if self.seeds is None else len(self.seeds)

    @property
    def texts(self) -> list[TimedText]:
        """What happens, in the order of time; the first text holds from 0."""
        return [TimedText(at=0.0, text=self.prompt)] if isinstance(self.prompt, str) else self.prompt

    def text_at(self, seconds: float) -> str:
        """The text that holds at that time of the video."""
        return next(part.text for part in reversed(self.texts) if part.at <= seconds)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is trimmed: because the end is given, or because another video is to go on from it."""
        return self.last_image is not None or self.keep_latents

    @property
    def sections(self) -> int:
        """Number of sections to sample: the reference's for `seconds`, enough for `frames`."""
        if self.frames is not None:
            ideal = (self.frames - 1) / FRAMES_PER_SECTION
            return max(round(ideal) if self.is_whole else math.ceil(ideal), 1)
        return max(round((self.seconds or 5.0) * FPS / FRAMES_PER_SECTION), 1)

    @property
    def video_frames(self) -> int:
        """Frames of the finished video, at 30 a second."""
        rendered = FRAMES_PER_SECTION * self.sections + 1
        if self.is_whole:
            return rendered
        wanted = self.frames if self.frames is not None else max(round((self.seconds or 5.0) * FPS), 1)
        return min(rendered, wanted)

    def as_sidecar(self) -> dict[str, Any]:
        """The request as a JSON object that is itself a valid sidecar."""
        return self.model_dump(exclude_none=True)


def draw_seed() -> int:
    """A fresh random seed."""
    return secrets.randbelow(DRAWN_SEEDS)


def as_take(request: Request) -> dict[str, Any]:
    """The sidecar of `request` as it was asked for, its seed drawn: entered twice, it makes two videos."""
    drawn = {"seed": draw_seed()} if request.seed == -1 and request.seeds is None else {}
    return request.model_dump(exclude_unset=True, exclude_none=True) | drawn


def build(sidecar: dict[str, Any], defaults: dict[str, Any] | None = None) -> Request:
    """The request that `sidecar`, laid over its folder's `defaults`, asks for.

    Raises `RequestError` that names every wrong field.
    """
    over = canonical(sidecar)
    under = canonical(defaults or {})
    for group in ({"seconds", "frames"}, {"resolution", "width", "height"}, {"seeds", "seed"}, {"seeds", "variations"}):
        if group & over.keys():
            # One way of saying the length, the size or the takes replaces the other.
            under = {key: value for key, value in under.items() if key not in group}
    fields = under | over
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        schema = Request.model_json_schema()
        problems = [explain(dict(item), spelled(sidecar), schema) for item in error.errors()]
        raise RequestError(
            "; ".join(message for message, _ in problems),
            hint="; ".join(dict.fromkeys(hint for _, hint in problems if hint)),
        ) from error


def effective(request: Request, model: str, *, variation: int = 0) -> Request:
    """`request` with every default filled in and the seed drawn; `variation` counts the jobs of one drop from 0."""
    name = request.model or model
    filled: dict[str, Any] = {
        "model": name,
        "sampling": request.sampling or NATIVE_SAMPLING[name],
        "seed": _seed(request, variation),
        "variations": 1,
    }
    if request.frames is None and request.seconds is None:
        filled["seconds"] = 5.0
    if request.width is None and request.resolution is None:
        filled["resolution"] = RESOLUTIONS[name]
    fields = request.as_sidecar()
    fields.pop("seeds", None)
    return build(fields | filled)


def _seed(request: Request, variation: int) -> int:
    """The seed of one of the jobs of a drop."""
    if request.seeds is not None:
        return request.seeds[variation]
    return draw_seed() if request.seed == -1 else (request.seed + variation) % (MAX_SEED + 1)
