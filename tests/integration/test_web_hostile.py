"""Hundreds of requests that mean no good: each is answered, none with an error or a stranger's file."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Served, served, until
from spool_bench import SIDECAR, Bench

from framepack_daemon.job import State

SECRET = "what nobody may read"
ANSWERED = {200, 307, 400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 416, 422, 429, 431}
# {job} becomes the id of a job that is there.
NAMES = (
    "..", ".", "%2e%2e", "..%2f..%2fsecret.mp4", "%2e%2e%2fsecret.mp4", "..%5c..%5csecret.mp4", "%2fetc%2fpasswd",
    "....//secret.mp4", "%252e%252e%252fsecret.mp4", "{job}%2f..%2f..%2f..%2fsecret.mp4", "{job}%00.mp4", "%00",
    "%ff%fe", "{job}%0d%0aSet-Cookie:x", "~root", "-rf", "%20", "*", "{job}.status.json", ".building", ".trash",
    "pause", "run.json", "a" * 255, "a" * 3000, "%f0%9f%8e%9e" * 60, "%ed%a0%80", "con", "link.mp4", "link", "fifo.mp4",
    "folder.mp4",
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "../../secret", "/etc/passwd", "a" * 300_000, "-1", "1e999", "nan", "9" * 5000, "0x10",
    "\u0661", "\u202e", "{}", "[]", "null", "true", "'; DROP TABLE jobs", "<script>", "${jndi:ldap://x}",
    "\ud7ff\ue000",
)  # fmt: skip
SIDECARS: tuple[Any, ...] = (
    b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"prompt": "x", "seed": 1e400}', b'{"prompt": "\\ud800"}',
    b"[" * 100_000, b'{"a":' * 50_000, b'{"prompt": ' + b"9" * 5000 + b"}", b'{"prompt": "x", "prompt": "y"}',
    {"prompt": "x", "loras": [{"name": "../../secret"}]}, {"prompt": "x", "last_image": "/etc/passwd"},
    {"prompt": "x", "continue_from": "../../secret.mp4"}, {"prompt": "x", "model": "../../x"}, {"prompt": ["x"]},
    {"prompt": "x", "frames": 10**30}, {"prompt": "x", "variations": 10**9}, {"__class__": "x"}, {"prompt": {"at": 0}},
)  # fmt: skip
BODIES = (
    b"", b"{", b"[]", b'{"priority": NaN}', b'{"priority": 1e999}', b'{"priority": "../../x"}', b'{"priority": null}',
    b'{"priority": 3.5}', b'{"priority": true}', b'{"priority": ' + b"9" * 5000 + b"}", b"[" * 50_000, b"\xff",
    b"{}" * 9999,
)  # fmt: skip
KINDS = (
    "", "multipart/form-data", "multipart/form-data; boundary=", "application/json", "text/plain", "*/*;;;=",
    "multipart/form-data; boundary=" + "x" * 5000, 'multipart/form-data; boundary="\xe9"',
)  # fmt: skip
NO_HTTP = (
    b"\x16\x03\x01\x02\x00",
    b"GET\r\n\r\n",
    b"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /cancel/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /cancel/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /queue HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, still: Path) -> Bench:
    root = tmp_path_factory.mktemp("hostile")
    bench = Bench(root / "lab", still)
    for secret in (root / "secret.mp4", root / "secret", bench.root / "secret.mp4"):
        secret.write_text(SECRET)
    for folder in (bench.outputs, bench.queue.folder(State.DONE)):
        (folder / "link.mp4").symlink_to(root / "secret.mp4")
        (folder / "link").symlink_to(root)
    (bench.outputs / "folder.mp4").mkdir()
    os.mkfifo(bench.outputs / "fifo.mp4")
    return bench


@pytest.fixture(scope="module")
def gateway(place: Bench) -> Iterator[Served]:
    with served(place.root, web_max_pending=500, web_upload_timeout_seconds=1) as gateway:
        yield gateway


def harmless(answer: httpx.Response) -> None:
    request = answer.request
    assert answer.status_code in ANSWERED, (request.method, str(request.url)[:200], answer.text[:500])
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text


def routes(gateway: Served) -> list[tuple[str, str]]:
    """Every method and path with a parameter in it."""
    paths = gateway.client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() if "{" in path for method in methods]


def test_names_in_every_path(gateway: Served, place: Bench) -> None:
    job = gateway.add(place.picture, SIDECAR)
    asked = 0
    for (method, path), name in itertools.product(routes(gateway), NAMES):
        if path.startswith("/stream") and name == "{job}":
            continue
        url = path.partition("{")[0] + name.replace("{job}", job)
        body = {"priority": 1} if method == "PATCH" else None
        harmless(gateway.client.request(method, gateway.url + url, json=body))
        asked += 1
    assert asked > 300
    assert gateway.status(job)["status"] == "pending"


def test_texts_in_every_field_and_parameter(gateway: Served, place: Bench) -> None:
    picture = {"image": ("beach.png", place.picture.read_bytes())}
    fields = gateway.client.get("/openapi.json").json()["paths"]["/generate"]["post"]["requestBody"]["content"]
    for place_of, field in enumerate(fields["multipart/form-data"]["schema"]["properties"]):
        for text in TEXTS[place_of % 3 :: 3] if field != "image" else ():
            harmless(gateway.client.post("/generate", data={"seed": "7", field: text}, files=picture))
    for text in TEXTS:
        short = text[:3000]
        harmless(gateway.client.get("/queue", params={"limit": short}))
        harmless(gateway.client.post("/retry/nobody-000000000000", params={"new_seed": short}))
        harmless(gateway.client.post("/generate", data={"seed": "7"}, files={"image": (short, picture["image"][1])}))
        raw = short.encode().replace(b"\0", b"").replace(b"\n", b"")
        for header in ("Range", "If-None-Match", "If-Range", "Authorization", "Accept", "Content-Type", "Origin"):
            harmless(gateway.client.get("/videos", headers={header: raw.strip()}))
    assert all(len(place.queue.names(state)) < 200 for state in State)


def test_sidecars_and_bodies(gateway: Served, place: Bench) -> None:
    job = gateway.add(place.picture, SIDECAR)
    for sidecar in SIDECARS:
        text = sidecar if isinstance(sidecar, bytes) else json.dumps(sidecar).encode()
        files = {"sidecar": ("", text), "image": ("beach.png", place.picture.read_bytes())}
        answer = gateway.client.post("/jobs", files=files)
        harmless(answer)
        assert answer.status_code == 422, sidecar
    for body in BODIES:
        answer = gateway.client.patch(f"/jobs/{job}", content=body, headers={"Content-Type": "application/json"})
        harmless(answer)
        assert answer.status_code in (400, 422), body[:50]


def test_forms_that_are_damaged_cut_or_no_forms(gateway: Served, place: Bench) -> None:
    whole = httpx.Request(
        "POST", gateway.url, data={"seed": "7"}, files={"image": ("beach.png", place.picture.read_bytes())}
    )
    body, kind = whole.read(), whole.headers["Content-Type"]
    chance = random.Random(7)
    for number in range(60):
        damaged = bytearray(body[: chance.randrange(len(body))] if number % 2 else body)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged) or 1) :][:1] = bytes([chance.randrange(256)])
        harmless(gateway.client.post("/generate", content=bytes(damaged), headers={"Content-Type": kind}))
    for odd in KINDS:
        for path in ("/generate", "/jobs"):
            headers = {"Content-Type": odd.encode("latin-1")}
            harmless(gateway.client.post(path, content=body, headers=headers))
    many = b"".join(b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n' % each for each in range(5000))
    harmless(
        gateway.client.post("/generate", content=many, headers={"Content-Type": "multipart/form-data; boundary=x"})
    )


@pytest.mark.parametrize("path", ["/generate", "/jobs", "/page/jobs"])
def test_parts_whose_names_lead_out_of_the_folder_of_the_upload(gateway: Served, place: Bench, path: str) -> None:
    picture = place.picture.read_bytes()
    for first in ("image", "image#", "image#1"):  # a folder that the next could climb from
        for next_one in (f"{first}/../../../../evil", "../../../evil", str(place.root / "evil")):
            files = [
                ("image", ("beach.png", b"", "image/png")),
                (first, ("a.png", picture)),
                (next_one, ("b.png", picture)),
            ]
            harmless(gateway.client.post(path, data={"seed": "7"}, files=files))
    assert [path for path in place.root.parent.rglob("*") if path.name.startswith("evil")] == []


def test_uploads_that_are_cut_half_way(gateway: Served, place: Bench) -> None:
    whole = httpx.Request(
        "POST", gateway.url, data={"seed": "11"}, files={"image": ("beach.png", place.picture.read_bytes())}
    )
    body = whole.read()
    before = sorted(place.jobs(State.PENDING))
    head = (
        f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: {whole.headers['Content-Type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    for cut in range(0, len(body), len(body) // 40):
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            client.sendall(head + body[:cut])
    until(lambda: list(place.queue.building.iterdir()) == [])
    assert sorted(place.jobs(State.PENDING)) == before


def test_bytes_that_are_no_http(gateway: Served) -> None:
    for raw in NO_HTTP:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
            try:
                client.sendall(raw)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(1000)
            except OSError:  # it hangs up
                continue
            assert not answer or answer.split(b" ")[1] in (b"200", b"400", b"403", b"404", b"431"), (raw[:60], answer)


def test_nothing_came_to_stand_beside_the_folders_and_nothing_was_logged_as_an_error(
    gateway: Served, place: Bench
) -> None:
    assert sorted(path.name for path in place.root.parent.iterdir()) == ["lab", "secret", "secret.mp4"]
    assert (place.root.parent / "secret.mp4").read_text() == SECRET
    known = {"inbox", "outputs", "work", "queue", "secret.mp4", "gateway.log"}
    assert {path.name for path in place.root.iterdir()} == known
    log = gateway.log.read_text()
    assert "Traceback" not in log
    assert '"level": "error"' not in log
    assert gateway.process is not None
    assert gateway.process.poll() is None
