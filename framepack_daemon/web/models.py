"""The shapes of answers, for OpenAPI and for who writes a client. Knows nothing of how they are made."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

EXAMPLE_JOB = "beach-1f3a9c02d4e5"

JobId = Annotated[str, Path(min_length=1, max_length=255, description="A job's id, in full.", examples=[EXAMPLE_JOB])]


def said(message: str, **more: Any) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers like this."""
    return {200: {"content": {"application/json": {"example": {"message": message} | more}}}}


class Message(BaseModel):
    """What was done, in a sentence."""

    message: str


class Accepted(BaseModel):
    """A job that is in the queue."""

    job_id: str = Field(examples=[EXAMPLE_JOB])
    message: str = Field(examples=["waits for its turn"])


class AcceptedJobs(Accepted):
    """The jobs that an upload made: several where it asks for several seeds or variations."""

    job_ids: list[str] = Field(examples=[[EXAMPLE_JOB]], description="In their order; the first is `job_id`.")


class JobStatus(BaseModel):
    """How far a job is."""

    job_id: str = Field(examples=[EXAMPLE_JOB])
    status: str = Field(
        description="`pending`, `processing`, `completed`, `cancelled`, or `failed - ` and the reason.",
        examples=["processing"],
    )
    progress: int = Field(ge=0, le=100, description="Percent.", examples=[43])
    progress_step: int = Field(description="Sampling steps that are done, of all sections.", examples=[43])
    progress_total: int = Field(description="Sampling steps of all sections; 0 until that is known.", examples=[100])
    progress_info: str = Field(examples=["section 2/4, step 18/25, 72 s left"])


class JobSummary(JobStatus):
    """A job in a list."""

    model_config = ConfigDict(extra="allow")

    state: str = Field(
        examples=["processing"], description="The folder it stands in: `pending`, `processing`, `done`, `failed`."
    )
    outcome: str | None = Field(examples=[None], description="`completed`, `failed` or `cancelled`, once it ended.")
    message: str | None = Field(examples=["is being rendered"], description="What goes on, in words.")
    hint: str = Field(examples=[""], description="What to do about a failure.")
    prompt: Any = Field(examples=["waves roll in"], description="As in the sidecar: a text, or texts with times.")
    seed: int | None = Field(examples=[1137251012])
    priority: int = Field(examples=[0])
    eta_seconds: float | None = Field(examples=[72.4])
    submitted_at: str | None = Field(examples=["2026-11-26T11:20:42.021698Z"])
    started_at: str | None = Field(examples=["2026-11-26T11:20:44Z"])
    finished_at: str | None = Field(examples=[None])
    video: str | None = Field(examples=[None], description="Name of the MP4, once it is published.")
    video_url: str | None = Field(examples=[None])
    preview_url: str | None = Field(examples=[f"/preview/{EXAMPLE_JOB}"])
    thumbnail_url: str = Field(examples=[f"/thumbnail/{EXAMPLE_JOB}"])
    position: int | None = Field(None, examples=[None], description="In the line of those that wait, from 1.")


class QueueList(BaseModel):
    """The queue."""

    queue: list[JobSummary]
    counts: dict[str, int] = Field(examples=[{"pending": 2, "processing": 1, "done": 40, "failed": 1}])
    paused: bool


class Result(BaseModel):
    """A finished video."""

    video_url: str = Field(examples=[f"/download/video/{EXAMPLE_JOB}"])
    thumbnail_base64: str | None = Field(description="A small JPEG of the first frame.", examples=["/9j/4AAQSkZJRg…"])


class WorkerStatus(BaseModel):
    """Whether a daemon works on the queue."""

    is_running: bool = Field(examples=[True])
    processing_job_id: str | None = Field(examples=[EXAMPLE_JOB])


class Cleaned(Message):
    """What a clean-up did."""

    removed: int


class Loras(BaseModel):
    """The LoRA files that a request can name."""

    loras: list[str] = Field(examples=[["ink.safetensors"]])


class Videos(BaseModel):
    """The MP4 files in the folder of outputs."""

    videos: list[str] = Field(examples=[[f"{EXAMPLE_JOB}.mp4"]])


def _whole(value: Any) -> Any:
    """5 for 5.0, which JSON does not tell apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Change(BaseModel):
    """What can be changed of a job that waits."""

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: Annotated[int, BeforeValidator(_whole)] = Field(
        ge=-100, le=100, description="Jobs of a higher priority run first.", examples=[5]
    )
