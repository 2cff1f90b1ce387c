"""Who may ask the gateway: by name, origin and site, each alone enough to refuse, and by token."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, served

TOKEN = "a-secret-of-our-own"
STUDIO = "https://studio.example"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("guard")
    with served(root, web_hosts="render.example", web_cors_origins=STUDIO) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway on every address, whose token the service manager gives."""
    root = tmp_path_factory.mktemp("closed")
    (root / "framepack_web_token").write_text(TOKEN + "\n")
    words = ("--host", "0.0.0.0")
    with served(root, None, *words, web_cors_origins=STUDIO, credentials=root) as gateway:
        yield gateway


LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    "headers",
    [{}, {"Host": "localhost:1234"}, {"Host": "192.168.1.7:8000"}, {"Host": "[::1]:8000"}, {"Host": "Render.example"},
     {"Host": "render.example", "Origin": "http://render.example"},
     {"Host": "render.example", "Origin": "https://render.example:443"},
     {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, LINK,
     {"Origin": STUDIO, "Sec-Fetch-Site": "cross-site"}],
)  # fmt: skip
def test_who_is_let_in(gateway: Served, headers: dict[str, str]) -> None:
    assert gateway.client.get("/queue", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "localhost.evil.example"}, {"Host": "127.0.0.1.evil.example"},
     {"Host": "evil.example@localhost"}, {"Host": "localhost:8000:8000"}, {"Host": ""}, {"Host": "localhost, evil"},
     {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost.evil.example"},
     {"Origin": f"{STUDIO}.evil.example"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "file://"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "odd"}],
)  # fmt: skip
def test_who_is_refused_whatever_is_asked(gateway: Served, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/queue"), ("POST", "/pause"), ("OPTIONS", "/queue"), ("GET", "/nothing")):
        answer = gateway.client.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)
        assert answer.json()["detail"].partition(":")[0] in next(iter(headers)), "names the header"
    assert gateway.client.get("/queue").json()["paused"] is False


def test_a_link_from_elsewhere_shows_and_does_nothing(gateway: Served) -> None:
    assert gateway.client.post("/pause", headers=LINK).status_code == 403


def test_scripts_of_a_listed_origin_may_read_and_of_no_other(gateway: Served) -> None:
    asks = {
        "Origin": STUDIO,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "content-type",
    }
    preflight = gateway.client.options("/jobs/x", headers=asks)
    assert preflight.headers["access-control-allow-origin"] == STUDIO
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    assert gateway.client.get("/queue", headers={"Origin": STUDIO}).headers["access-control-allow-origin"] == STUDIO
    assert "access-control-allow-origin" not in gateway.client.get("/queue").headers


def test_without_the_token_there_is_nothing_but_the_probes(closed: Served) -> None:
    for path in ("/queue", "/openapi.json", "/metrics", "/nothing", "/healthz/", "//healthz"):
        for given in ({}, {"Authorization": "Bearer x"}, {"Authorization": TOKEN}, {"Authorization": "Bearer \xe9"}):
            answer = closed.client.get(path, headers={key: value.encode("latin-1") for key, value in given.items()})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert closed.client.get("/healthz").status_code == 200
    assert closed.client.get("/readyz").status_code == 200
    assert closed.client.get("/queue", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    preflight = {"Origin": STUDIO, "Access-Control-Request-Method": "GET"}
    assert closed.client.options("/queue", headers=preflight).status_code == 200, "it has no token yet"


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (("--host", "0.0.0.0"), {}, "FRAMEPACK_WEB_TOKEN"),
        (("--host", "::"), {}, "FRAMEPACK_WEB_TOKEN"),
        (("--host", "render.example"), {}, "FRAMEPACK_WEB_TOKEN"),
        (("--no-auth",), {"FRAMEPACK_WEB_TOKEN": TOKEN}, "not both"),
        ((), {"FRAMEPACK_WEB_PORT": "99999"}, "FRAMEPACK_WEB_PORT"),
        ((), {"FRAMEPACK_WEB_CORS_ORIGINS": "*"}, "FRAMEPACK_WEB_CORS_ORIGINS"),
    ],
)
def test_what_is_not_safe_or_wrong_does_not_start(
    tmp_path: Path, words: tuple[str, ...], environment: dict[str, str], told: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "framepack_daemon", "serve", *words],
        env=os.environ | {"FRAMEPACK_INBOX": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, told in done.stderr, "Traceback" in done.stderr) == (78, True, False), done.stderr
    assert TOKEN not in done.stderr


def test_a_port_that_is_taken_is_said(gateway: Served, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "framepack_daemon", "serve", "--port", str(gateway.port)],
        env=os.environ | {"FRAMEPACK_INBOX": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "--port" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_a_place_without_anything_yet_is_no_error(gateway: Served) -> None:
    assert gateway.client.get("/videos").json() == {"videos": []}
    assert gateway.client.get("/loras").json() == {"loras": []}
    assert gateway.client.get("/queue").json()["queue"] == []
    assert gateway.client.post("/cleanup_jobs").json()["removed"] == 0
