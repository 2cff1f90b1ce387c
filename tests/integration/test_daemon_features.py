"""A sidecar that asks for much, dropped into a real daemon: all of it is there, and its record makes it again."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import av
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from lab import Lab

FIELDS = {
    "prompt": [{"at": 0, "text": "a calm sea"}, {"at": 1.2, "text": "a storm"}],
    "frames": 73,
    "num_inference_steps": 3,
    "true_cfg_scale": 2.0,
    "negative_prompt": "blurred",
    "guidance_rescale": 0.5,
    "last_image_weight": 0.5,
    "codec": "hevc",
    "crf": 20,
    "animation": "webp",
    "step_preview": True,
    "keep_latents": True,
}


def test_a_sidecar_that_asks_for_much_gets_it_all_and_its_record_makes_the_same_video(
    running: Lab, end_picture: Path
) -> None:
    shutil.copyfile(end_picture, running.inbox / "beach.last.png")
    running.drop("beach", **FIELDS)
    running.until(lambda: list(running.outputs.glob("beach-*.step.jpg")), "a picture of a step")
    job = running.ended("beach")
    status = running.status(job)
    assert status["request"] | FIELDS == status["request"]
    assert (status["video"]["codec"], status["video"]["frames"]) == ("hevc", 73)
    assert status["versions"].keys() >= {"torch", "diffusers", "framepack-daemon"}
    assert status["memory"]["plan"] == "resident"
    made = {path.name.removeprefix(job) for path in running.outputs.glob(f"{job}.*")}
    assert made == {".mp4", ".webp", ".poster.jpg", ".status.json"}
    with Image.open(running.outputs / f"{job}.webp") as animation:
        assert animation.n_frames > 5
    with av.open(str(running.outputs / f"{job}.mp4")) as container:
        assert json.loads(container.metadata["comment"]) == status["request"]
        assert json.loads(container.metadata["description"])["versions"] == status["versions"]

    done = running.root / "queue" / "done" / job
    assert (done / "latents.safetensors").exists()
    shutil.copyfile(done / "job.json", running.inbox / "again.json")
    shutil.copyfile(done / "beach.png", running.inbox / "again.png")
    shutil.copyfile(done / "beach.last.png", running.inbox / "again.last.png")
    again = running.status(running.ended("again"))
    assert again["video"]["sha256"] != status["video"]["sha256"], "its metadata names another end frame"
    assert (running.frames(again["job"]) == running.frames(job)).all()
