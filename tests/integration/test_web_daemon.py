"""The whole way over HTTP with a real daemon: to the video, a cancel in mid-run, a killed gateway, a killed daemon."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest
from lab import QUICK, Lab
from served import Served, served, until

from framepack_daemon.job import State

LONG = QUICK | {"frames": 180, "num_inference_steps": 4}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def gateway(running: Lab) -> Iterator[Served]:
    with served(running.root, running.root / "gateway.log", work_dir=running.work) as gateway:
        yield gateway


def progress_of(gateway: Served, job: str) -> int:
    return int(gateway.status(job)["progress_step"])


def test_from_the_upload_to_the_video(running: Lab, gateway: Served, tmp_path: Path) -> None:
    job = gateway.generate(running.picture, prompt="waves", video_length=1.2, steps=2)
    with gateway.stream(f"/stream/status/{job}") as events:
        seen = [(event["event"], json.loads(event["data"])) for event in events]
    assert seen[-1] == ("status", gateway.status(job))
    assert seen[-1][1]["status"] == "completed", seen[-1]
    steps = [body["progress_step"] for _, body in seen]
    assert steps == sorted(steps)
    assert {body["status"] for _, body in seen} >= {"processing", "completed"}
    result = gateway.client.get(f"/result/{job}").raise_for_status().json()
    (tmp_path / "video.mp4").write_bytes(gateway.client.get(result["video_url"]).raise_for_status().content)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 36
    assert gateway.client.get("/worker/status").json()["is_running"] is True
    assert gateway.client.get("/readyz").json()["daemon"] is True


def test_a_cancel_in_mid_run_and_a_retry(running: Lab, gateway: Served) -> None:
    job = gateway.add(running.picture, LONG)
    until(lambda: progress_of(gateway, job) > 0)
    assert gateway.client.get("/worker/status").json()["processing_job_id"] == job
    until(lambda: gateway.client.get(f"/preview/{job}").status_code == 200)
    assert gateway.client.post(f"/cancel/{job}").status_code == 200
    assert gateway.status(job)["status"] == "cancelled"
    until(lambda: gateway.client.get(f"/preview/{job}").content[4:8] == b"ftyp")
    other = gateway.add(running.picture, QUICK)
    until(lambda: gateway.status(other)["status"] == "completed")
    assert gateway.status(job)["status"] == "cancelled"


def test_gateway_and_daemon_are_killed_meanwhile(running: Lab, gateway: Served) -> None:
    job = gateway.add(running.picture, LONG | {"frames": 108})
    with gateway.stream("/events") as events:
        last = next(events)["id"]
        until(lambda: progress_of(gateway, job) > 0)
        gateway.stop(signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            list(events)
    running.stop(signal.SIGKILL)
    gateway.start(port=gateway.port)
    assert gateway.client.get("/readyz").json()["daemon"] is False
    assert gateway.status(job)["status"] == "processing", "nobody has looked after it yet"
    with gateway.stream("/events", **{"Last-Event-ID": last}) as events:
        first = next(events)
        assert first["event"] == "snapshot", "another process has other events"
        running.start()
        told = next(event for event in events if event["event"] == "video")
        assert json.loads(told["data"]) == {"job_id": job, "name": f"{job}.mp4"}
    assert running.jobs(State.DONE) == [job]
    assert len(gateway.client.get(f"/download/video/{job}").raise_for_status().content) > 0
