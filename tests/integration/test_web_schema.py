"""schemathesis over the gateway's own OpenAPI: every check, single requests and sequences of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import paint
from served import served
from spool_bench import SIDECAR, Bench

HOOKS = Path(__file__).parents[1] / "web_pictures.py"
# Not every sidecar of the schema's types makes a job: of two fields that say the length, one has to go.
CONFIG = """
seed = 7

[[operations]]
include-name = "POST /jobs"
checks.positive_data_acceptance.enabled = false
"""

pytestmark = pytest.mark.timeout(300)


def test_the_api_does_what_its_openapi_says(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab", paint(tmp_path / "beach.png"))
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with served(bench.root, web_max_pending=10_000) as gateway:
        gateway.add(bench.picture, SIDECAR)
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
        words = ["--max-examples", "3", "--phases", "examples,coverage,fuzzing,stateful", "--no-color"]
        endless = ["--exclude-path", "/events", "--exclude-path", "/video_stream"]
        own = {"SCHEMATHESIS_HOOKS": "web_pictures", "PYTHONPATH": str(HOOKS.parent), "WEB_PICTURE": str(bench.picture)}
        done = subprocess.run(
            [*command, f"{gateway.url}/openapi.json", *words, *endless],
            env=os.environ | own,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert '"level": "error"' not in gateway.log.read_text()
