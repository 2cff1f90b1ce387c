"""The original's endpoints as its clients know them, and its mistakes mended; a gateway without a daemon."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from served import Served, finish, folders, served, until
from spool_bench import Bench
from videos import write_video

from framepack_daemon import atomic
from framepack_daemon.job import State

FORM = {
    "prompt": "waves", "video_length": "1", "seed": "7", "use_teacache": "false", "gpu_memory_preservation": "6.0",
    "steps": "2", "cfg": "1.0", "gs": "10.0", "rs": "0.0", "mp4_crf": "18.0", "lora_scale": "1.0",
    "sampling_mode": "reverse",
}  # fmt: skip

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, still: Path) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("web")
    Bench(root, still)
    with served(root, web_max_completed_jobs=2) as gateway:
        yield gateway


@pytest.fixture
def place(gateway: Served, still: Path) -> Iterator[Bench]:
    with folders(gateway, still) as bench:
        yield bench


@pytest.fixture
def job(gateway: Served, place: Bench) -> str:
    return gateway.generate(place.picture, **FORM)


def request_of(place: Bench, job: str) -> dict[str, Any]:
    found = atomic.read_json(place.queue.path(State.PENDING, job) / "job.json")
    assert found is not None
    return found


def test_generate_answers_at_once_with_an_id(gateway: Served, place: Bench) -> None:
    answer = gateway.client.post("/generate", data=FORM, files={"image": ("beach.png", place.picture.read_bytes())})
    assert answer.status_code == 200
    assert set(answer.json()) == {"job_id", "message"}
    assert place.jobs(State.PENDING) == [answer.json()["job_id"]]
    assert list(place.queue.building.iterdir()) == [], "nothing is left of the upload"


def test_generate_has_the_original_s_fields_and_defaults(gateway: Served, place: Bench) -> None:
    given = request_of(place, gateway.generate(place.picture, **FORM | {"lora_path": "ink.safetensors"}))
    assert given["prompt"] == "waves"
    assert (given["seconds"], given["seed"], given["num_inference_steps"], given["crf"]) == (1, 7, 2, 18)
    assert given["loras"] == [{"name": "ink.safetensors", "scale": 1.0}]
    found = request_of(place, gateway.generate(place.picture))
    assert found.pop("seed") >= 0
    assert found == found | {
        "prompt": "A character doing some simple body movements.",
        "seconds": 5.0,
        "cache": "first_block",
        "gpu_memory_preservation": 6.0,
        "num_inference_steps": 25,
        "true_cfg_scale": 1.0,
        "guidance_scale": 10.0,
        "guidance_rescale": 0.0,
        "crf": 16,
        "loras": [],
        "sampling": "inverted_anti_drifting",
    }
    forward = request_of(place, gateway.generate(place.picture, sampling_mode="forward"))
    assert forward["sampling"] == "vanilla"


def test_seed_minus_one_is_drawn_and_the_same_upload_with_a_seed_is_the_same_job(gateway: Served, place: Bench) -> None:
    takes = {gateway.generate(place.picture, **FORM | {"seed": -1}) for _ in range(2)}
    again = {gateway.generate(place.picture, **FORM) for _ in range(2)}
    assert (len(takes), len(again)) == (2, 1)
    assert len(place.jobs(State.PENDING)) == 3


def test_the_picture_is_kept_as_it_came(gateway: Served, place: Bench, job: str) -> None:
    answer = gateway.client.get(f"/input_image/{job}")
    assert answer.content == place.picture.read_bytes()
    assert answer.headers["content-type"] == "image/png"
    again = gateway.client.get(f"/input_image/{job}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("field", "value"),
    [("video_length", "0"), ("video_length", "nan"), ("steps", "101"), ("cfg", "0.5"), ("gs", "x"), ("rs", "2"),
     ("mp4_crf", "16.5"), ("seed", "-2"), ("seed", "9" * 5000), ("use_teacache", "maybe"), ("sampling_mode", "up"),
     ("gpu_memory_preservation", "-1"), ("lora_path", "../x.bin"), ("lora_path", "/etc/x.bin"), ("prompt", " ")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_the_field_s_name(
    gateway: Served, place: Bench, field: str, value: str
) -> None:
    files = {"image": ("beach.png", place.picture.read_bytes())}
    answer = gateway.client.post("/generate", data=FORM | {field: value}, files=files)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"{field}: ")
    assert place.jobs(State.PENDING) == []


def test_a_picture_that_is_none_is_refused(gateway: Served, place: Bench) -> None:
    for files, words in (
        ({"image": ("beach.png", place.picture.read_bytes()[:-40])}, "image: beach.png: ends too early"),
        ({"image": ("beach.png", b"no picture")}, "image: beach.png: "),
        ({"other": ("beach.png", place.picture.read_bytes())}, "image: is missing"),
    ):
        answer = gateway.client.post("/generate", data=FORM, files=files)
        assert (answer.status_code, words in answer.text) == (422, True), answer.text
    assert [*place.jobs(State.PENDING), *place.queue.building.iterdir()] == []


@pytest.mark.parametrize("name", ["../../x/beach", "C:\\pics\\beach", "beach", "beach.exe", ""])
def test_of_a_file_s_name_only_a_stem_is_kept(gateway: Served, place: Bench, name: str) -> None:
    job = gateway.generate(place.picture, name=name or "upload", **FORM)
    assert "/" not in job
    assert "-x-" not in job
    assert gateway.client.get(f"/input_image/{job}").headers["content-type"] == "image/png", "known by its content"


def test_status_has_the_original_s_fields_and_words(gateway: Served, place: Bench, job: str) -> None:
    assert gateway.status(job) == {
        "job_id": job, "status": "pending", "progress": 0, "progress_step": 0, "progress_total": 0,
        "progress_info": "waits for its turn",
    }  # fmt: skip
    place.queue.move(job, State.PENDING, State.PROCESSING)
    now = {"section": 2, "sections": 4, "step": 5, "steps": 10, "fraction": 0.375, "eta_seconds": 12.2}
    place.writer.write(job, State.PROCESSING, progress=now)
    assert gateway.status(job) == {
        "job_id": job, "status": "processing", "progress": 38, "progress_step": 15, "progress_total": 40,
        "progress_info": "section 2/4, step 5/10, 12 s left",
    }  # fmt: skip
    problem = {"code": "x", "message": "no\x1b[2Jmemory", "hint": ""}
    outcome = {"outcome": "failed", "message": "failed", "error": problem, "finished_at": "2026-01-01T00:00:00Z"}
    atomic.write_json(place.queue.path(State.PROCESSING, job) / "outcome.json", outcome)
    place.queue.move(job, State.PROCESSING, State.FAILED)
    assert gateway.status(job)["status"] == "failed - no\\x1b[2Jmemory"
    assert gateway.client.get("/status/nobody-000000000000").status_code == 404


def test_cancel_is_idempotent_and_comes_too_late_for_what_is_completed(gateway: Served, place: Bench, job: str) -> None:
    answers = [gateway.client.post(f"/cancel/{job}") for _ in range(2)]
    assert [(answer.status_code, set(answer.json())) for answer in answers] == [(200, {"message"})] * 2
    assert "already cancelled" in answers[1].text
    assert gateway.status(job)["status"] == "cancelled"
    done = gateway.generate(place.picture, **FORM | {"seed": 8})
    finish(place, done)
    assert "already completed" in gateway.client.post(f"/cancel/{done}").text
    assert gateway.status(done)["status"] == "completed"
    assert gateway.client.post("/cancel/nobody-000000000000").status_code == 404


def test_a_result_is_there_once_it_is_published(gateway: Served, place: Bench, job: str) -> None:
    assert gateway.client.get(f"/result/{job}").status_code == 404
    assert gateway.client.get(f"/download/video/{job}").status_code == 404
    content = finish(place, job)
    result = gateway.client.get(f"/result/{job}").json()
    assert set(result) == {"video_url", "thumbnail_base64"}
    small = Image.open(io.BytesIO(base64.b64decode(result["thumbnail_base64"])))
    assert (small.format, max(small.size) <= 320) == ("JPEG", True)
    video = gateway.client.get(result["video_url"])
    assert (video.content, video.headers["content-type"]) == (content, "video/mp4")
    status = gateway.status(job)
    assert (status["progress"], status["progress_step"], status["progress_total"]) == (100, 2, 2)


def test_videos_come_by_range_and_from_the_browser_s_own_copy(gateway: Served, place: Bench, job: str) -> None:
    content, url = finish(place, job), f"/download/video/{job}"
    whole = gateway.client.get(url)
    part = gateway.client.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    etag = whole.headers["etag"]
    assert gateway.client.get(url, headers={"Range": "bytes=-5", "If-Range": etag}).content == content[-5:]
    assert gateway.client.get(url, headers={"Range": "bytes=-5", "If-Range": '"old"'}).content == content
    assert gateway.client.get(url, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
    assert gateway.client.get(url, headers={"If-None-Match": etag}).status_code == 304
    head = gateway.client.head(url)
    assert (head.headers["content-length"], head.content) == (str(len(content)), b"")


def test_videos_are_listed_and_nothing_else_of_the_folder(gateway: Served, place: Bench, job: str) -> None:
    content = finish(place, job)
    (place.outputs / "beach-1f3a9c02d4e5.preview.mp4").write_bytes(b"x")
    (place.outputs / ".hidden.mp4").write_bytes(b"x")
    (place.outputs / "link.mp4").symlink_to("/etc/passwd")
    assert gateway.client.get("/videos").json() == {"videos": [f"{job}.mp4"]}
    assert gateway.client.get(f"/videos/{job}.mp4").content == content
    for name in (
        "beach-1f3a9c02d4e5.preview.mp4", ".hidden.mp4", "link.mp4", f"{job}.status.json", "..%2f..%2fetc%2fpasswd.mp4",
    ):  # fmt: skip
        assert gateway.client.get(f"/videos/{name}").status_code == 404, name


def test_a_preview_is_given_while_there_is_one(gateway: Served, place: Bench, job: str) -> None:
    assert gateway.client.get(f"/preview/{job}").status_code == 404
    write_video(place.outputs / f"{job}.preview.mp4", frames=12)
    answer = gateway.client.get(f"/preview/{job}")
    assert answer.content == (place.outputs / f"{job}.preview.mp4").read_bytes()
    finish(place, job)
    assert gateway.client.get(f"/preview/{job}").status_code == 404


def test_the_queue_is_listed_in_the_order_in_which_it_runs(gateway: Served, place: Bench, job: str) -> None:
    jobs = [job, *(gateway.generate(place.picture, **FORM | {"seed": seed}) for seed in (8, 9))]
    place.queue.move(jobs[1], State.PENDING, State.PROCESSING)
    listed = gateway.client.get("/queue").json()["queue"]
    assert [(each["job_id"], each["status"]) for each in listed] == [
        (jobs[1], "processing"), (jobs[0], "pending"), (jobs[2], "pending"),
    ]  # fmt: skip
    assert (listed[1]["prompt"], listed[1]["position"]) == ("waves", 1)
    assert gateway.client.get("/worker/status").json() == {"is_running": False, "processing_job_id": jobs[1]}


def test_a_clean_up_keeps_the_newest_and_says_how_many_it_removed(gateway: Served, place: Bench) -> None:
    jobs = [gateway.generate(place.picture, **FORM | {"seed": seed}) for seed in range(4)]
    for job in jobs:
        finish(place, job)
    answer = gateway.client.post("/cleanup_jobs").json()
    assert (answer["removed"], "2 jobs" in answer["message"]) == (2, True)
    assert [gateway.client.get(f"/input_image/{job}").status_code for job in jobs].count(200) == 2


def test_loras_are_listed(gateway: Served, place: Bench) -> None:
    folder = place.root / "loras"
    folder.mkdir(exist_ok=True)
    for name in ("a.safetensors", "b.pt", "c.bin", "d.txt", ".e.bin"):
        (folder / name).touch()
    assert gateway.client.get("/loras").json() == {"loras": ["a.safetensors", "b.pt", "c.bin"]}
    shutil.rmtree(folder)
    assert gateway.client.get("/loras").json() == {"loras": []}


def test_a_job_s_stream_tells_each_change_and_ends_with_its_status(gateway: Served, place: Bench, job: str) -> None:
    with gateway.stream(f"/stream/status/{job}") as events:
        assert json.loads(next(events)["data"])["status"] == "pending"
        place.queue.move(job, State.PENDING, State.PROCESSING)
        seen = next(events)
        assert (seen["event"], json.loads(seen["data"])["status"]) == ("progress", "processing")
        place.queue.move(job, State.PROCESSING, State.PENDING)
        assert json.loads(next(events)["data"])["status"] == "pending"
        finish(place, job)
        rest = list(events)
    assert rest[-1]["event"] == "status"
    assert json.loads(rest[-1]["data"]) == gateway.status(job)
    assert gateway.client.get("/stream/status/nobody-000000000000").status_code == 404


def test_a_video_is_told_of_once_it_is_published(gateway: Served, place: Bench, job: str) -> None:
    with gateway.stream("/video_stream") as events:
        (place.outputs / f"{job}.mp4.part").write_bytes(b"still being written")
        finish(place, job)
        assert next(events)["data"] == f"{job}.mp4"
        assert gateway.client.get(f"/videos/{job}.mp4").status_code == 200


def test_what_the_queue_cannot_take_is_answered_503(gateway: Served, place: Bench) -> None:
    away = place.queue.root.with_name("away")
    place.queue.root.rename(away)
    place.queue.root.write_bytes(b"in the way")
    try:
        files = {"image": ("beach.png", place.picture.read_bytes())}
        answer = gateway.client.post("/generate", data=FORM, files=files)
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, "10")
        ready = gateway.client.get("/readyz")
        assert (ready.status_code, str(place.root) in ready.text) == (503, False), "who has no token learns no path"
        assert gateway.client.get("/healthz").status_code == 200
    finally:
        place.queue.root.unlink()
        away.rename(place.queue.root)
    until(lambda: gateway.client.get("/readyz").status_code == 200)
