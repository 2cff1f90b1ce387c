"""What the gateway has beyond the original: the sidecar's schema, moves, limits, and one stream for everything."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import paint
from PIL import Image
from served import Served, finish, folders, served, until
from spool_bench import SIDECAR, Bench

from framepack_daemon import atomic
from framepack_daemon.job import State

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, still: Path) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("web")
    Bench(root, still)
    limits = {"web_max_pending": 4, "web_max_upload_bytes": 200_000, "web_max_pixels": 1_000_000}
    with served(root, **limits, web_upload_timeout_seconds=1) as gateway:
        yield gateway


@pytest.fixture
def place(gateway: Served, still: Path) -> Iterator[Bench]:
    with folders(gateway, still) as bench:
        yield bench


@pytest.fixture
def job(gateway: Served, place: Bench) -> str:
    return gateway.add(place.picture, SIDECAR)


def next_of(events: Iterator[dict[str, str]], kind: str, job: str = "") -> dict[str, Any]:
    """What the next event of that kind, about that job, says; what an earlier test left may still be told of."""
    found = ((event["event"], json.loads(event["data"])) for event in events)
    return next(said for each, said in found if each == kind and job in ("", said.get("job_id")))


def test_a_job_by_the_sidecar_s_own_schema(gateway: Served, place: Bench, end_picture: Path) -> None:
    sidecar = {"prompt": [{"at": 0, "text": "waves"}], "seeds": [1, 2], "seconds": 1, "priority": 3}
    files = {"image": ("beach.png", place.picture.read_bytes()), "last_image": ("any.PNG", end_picture.read_bytes())}
    answer = gateway.client.post("/jobs", data={"sidecar": json.dumps(sidecar)}, files=files).json()
    assert (answer["job_id"], len(answer["job_ids"])) == (answer["job_ids"][0], 2)
    for job, seed in zip(answer["job_ids"], (1, 2), strict=True):
        request = atomic.read_json(place.queue.path(State.PENDING, job) / "job.json")
        assert request is not None
        assert (request["seed"], request["priority"], request["last_image"]) == (seed, 3, "beach.last.png")
    shown = gateway.client.get(f"/jobs/{answer['job_id']}").json()
    assert (shown["state"], shown["request"]["seed"]) == ("pending", 1)


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [('{"prompt": "x", "second": 3}', "second: unknown field"), ('{"prompt": "x", "crf": 99}', "crf: 99"),
     ("[1]", "at its top"), ('{"prompt": "x"', "sidecar: "), ('{"prompt": "x", "prompt": "y"}', "prompt"),
     ('{"prompt": "x", "continue_from": "nobody-000000000000"}', "image: stands beside"),
     ('{"prompt": "x", "last_image": "other.png"}', "last_image: there is no end frame")],
)  # fmt: skip
def test_a_wrong_sidecar_is_refused_by_the_field_s_name(
    gateway: Served, place: Bench, sidecar: str, words: str
) -> None:
    files = {"image": ("beach.png", place.picture.read_bytes())}
    answer = gateway.client.post("/jobs", data={"sidecar": sidecar}, files=files)
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text
    assert place.jobs(State.PENDING) == []


def test_jobs_are_interrupted_retried_and_removed_by_moves(gateway: Served, place: Bench, job: str) -> None:
    post, delete = gateway.client.post, gateway.client.delete
    assert "it waits" in post(f"/interrupt/{job}").json()["message"]
    place.queue.move(job, State.PENDING, State.PROCESSING)
    assert post(f"/retry/{job}").status_code == 409
    assert "interrupted" in post(f"/interrupt/{job}").json()["message"]
    place.queue.move(job, State.PENDING, State.FAILED)
    assert post(f"/interrupt/{job}").status_code == 409
    assert post(f"/retry/{job}").json()["job_id"] == job
    assert place.jobs(State.PENDING) == [job]
    other = post(f"/retry/{job}", params={"new_seed": True}).json()["job_id"]
    assert place.jobs(State.PENDING) == sorted([job, other])
    assert "removed" in delete(f"/jobs/{job}").json()["message"]
    assert delete(f"/jobs/{job}").status_code == 404
    assert post(f"/retry/{job}").status_code == 404
    assert place.jobs(State.PENDING) == [other]


def test_a_job_that_waits_can_be_moved_up(gateway: Served, place: Bench, job: str) -> None:
    later = gateway.add(place.picture, SIDECAR | {"seed": 8})
    answer = gateway.client.patch(f"/jobs/{later}", json={"priority": 5})
    assert (answer.status_code, answer.json()["priority"]) == (200, 5)
    assert place.queue.waiting() == [later, job]
    for wrong in ({"priority": 101}, {"priority": "5"}, {"priority": 5, "state": "done"}, {}):
        assert gateway.client.patch(f"/jobs/{later}", json=wrong).status_code == 422
    place.queue.move(job, State.PENDING, State.PROCESSING)
    assert gateway.client.patch(f"/jobs/{job}", json={"priority": 1}).status_code == 409


def test_pause_is_a_file(gateway: Served, place: Bench) -> None:
    assert "paused" in gateway.client.post("/pause").json()["message"]
    assert place.queue.paused
    assert gateway.client.get("/queue").json()["paused"] is True
    assert gateway.client.post("/resume").json()["message"] == "resumed"
    assert not place.queue.paused


def test_limits_of_size_pixels_and_jobs(gateway: Served, place: Bench, tmp_path: Path) -> None:
    def post(content: bytes) -> tuple[int, str]:
        answer = gateway.client.post("/generate", data={"seed": "-1"}, files={"image": ("a.png", content)})
        return answer.status_code, answer.headers.get("retry-after", "")

    assert post(b"x" * 300_000)[0] == 413
    assert post(paint(tmp_path / "huge.png", 1200, 1000).read_bytes()[:190_000])[0] == 422
    flat = tmp_path / "flat.png"
    Image.new("1", (1200, 1000)).save(flat)
    assert post(flat.read_bytes())[0] == 422
    assert [post(place.picture.read_bytes())[0] for _ in range(4)] == [200] * 4
    assert post(place.picture.read_bytes()) == (429, "60")
    assert list(place.queue.building.iterdir()) == []


@pytest.mark.usefixtures("place")
def test_an_upload_without_a_length_is_limited_too(gateway: Served) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(30):
            yield b"x" * 10_000

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert gateway.client.post("/generate", content=body(), headers=kind).status_code == 413


def test_an_upload_that_breaks_off_or_stands_still_leaves_nothing(gateway: Served, place: Bench) -> None:
    head = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    )
    for cut in (True, False):
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            client.sendall(head + place.picture.read_bytes()[:300])
            folder = until(lambda: list(place.queue.building.iterdir()))[0]
            until(lambda folder=folder: atomic.is_locked(folder))  # a daemon that starts leaves it alone
            if not cut:
                assert client.recv(100).startswith(b"HTTP/1.1 408 ")
        until(lambda: list(place.queue.building.iterdir()) == [])
    assert place.jobs(State.PENDING) == []


def test_what_a_killed_gateway_leaves_the_daemon_s_start_removes(still: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "other", still)
    with served(bench.root) as gateway, socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(
            b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        until(lambda: list(bench.queue.building.iterdir()))
        gateway.stop(9)
    assert len(list(bench.queue.building.iterdir())) == 1
    bench.door.recover()
    assert [*bench.queue.building.iterdir(), *bench.jobs(State.PENDING), *bench.jobs(State.FAILED)] == []


def test_one_stream_tells_of_everything(gateway: Served, place: Bench, job: str) -> None:
    with gateway.stream("/events") as events:
        first = next(events)
        assert first["event"] == "snapshot"
        assert [each["job_id"] for each in json.loads(first["data"])["queue"]] == [job]
        gateway.client.post("/pause")
        assert next_of(events, "queue") == {"paused": True}
        finish(place, job)
        assert next_of(events, "job", job)["status"] in ("processing", "completed")
        assert next_of(events, "video") == {"job_id": job, "name": f"{job}.mp4"}
        gateway.client.delete(f"/jobs/{job}")
        assert next_of(events, "removed", job) == {"job_id": job}


@pytest.mark.usefixtures("job")
def test_a_stream_goes_on_where_it_broke_and_each_listener_gets_each_event_once(gateway: Served) -> None:
    with gateway.stream("/events") as events:
        place_in_row = next(events)["id"]
    for _ in range(2):
        for word, wanted in (("pause", True), ("resume", False)):
            with gateway.stream("/events") as events:
                next(events)
                gateway.client.post(f"/{word}")
                assert next_of(events, "queue") == {"paused": wanted}
    for _ in range(2):
        with gateway.stream("/events", **{"Last-Event-ID": place_in_row}) as events:
            missed = [next(event for event in events if event["event"] == "queue") for _ in range(4)]
        assert [json.loads(event["data"])["paused"] for event in missed] == [True, False, True, False]
        assert len({event["id"] for event in missed}) == 4
    for unknown in ("0-0", "", "x", place_in_row + "9", "9" * 90):
        with gateway.stream("/events", **{"Last-Event-ID": unknown}) as events:
            assert next(events)["event"] == "snapshot"


def test_two_gateways_serve_one_queue(gateway: Served, place: Bench, job: str) -> None:
    with served(place.root, place.root / "second.log") as second:
        assert second.status(job)["status"] == "pending"
        with second.stream("/events") as events:
            next(events)
            assert gateway.client.post(f"/cancel/{job}").status_code == 200
            assert next_of(events, "job", job)["status"] == "cancelled"
        assert gateway.add(place.picture, SIDECAR | {"seed": 9}) == second.add(place.picture, SIDECAR | {"seed": 9})


def test_the_gateway_s_numbers(gateway: Served) -> None:
    gateway.client.get("/status/nobody-000000000000")
    text = gateway.client.get("/metrics").text
    line = 'framepack_web_requests_total{method="GET",route="/status/{job_id}",status="404"}'
    assert line in text
    until(lambda: "framepack_web_listeners 0.0" in gateway.client.get("/metrics").text)
    assert "nobody" not in text
