"""Renders killed at random moments, again and again, end in the video that they give undisturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from crash import THOROUGH

from framepack_daemon.request import build, effective
from framepack_daemon.scratch import PREVIEW

KILLS = 25 if THOROUGH else 8  # of each order

pytestmark = pytest.mark.timeout(900)  # where other work shares the processor


@pytest.mark.parametrize("sampling", ["inverted_anti_drifting", "vanilla"])
def test_renders_killed_at_random_moments_end_in_the_same_video(
    sampling: str, models_dir: Path, picture: Path, tmp_path: Path
) -> None:
    fields = {
        "prompt": "The girl dances gracefully.",
        "frames": 109,
        "seed": 11,
        "num_inference_steps": 2,
        "width": 64,
        "height": 112,
        "sampling": sampling,
    }
    sidecar = effective(build(fields), "tiny").model_dump_json(exclude_none=True)
    scratches = tmp_path / "scratches"
    scratches.mkdir()
    script = Path(__file__).with_name("dying_renders.py")
    command = [sys.executable, script, models_dir, picture, scratches, sidecar, str(KILLS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["kills"] == KILLS
    assert result["same"], result
    assert result["resumed"] > 0
    # Nothing half-written stays; a preview whose section was kept just before the kill is not made any more.
    assert {PREVIEW, *result["left"]} == {PREVIEW, *result["expected"]}
