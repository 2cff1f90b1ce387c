from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from PIL import Image
from videos import write_video

from framepack_daemon import __version__, atomic
from framepack_daemon.cli import main
from framepack_daemon.cli.demo import handed_on
from framepack_daemon.job import OUTCOME_FILE, State
from framepack_daemon.logs import OURS
from framepack_daemon.settings import Settings, load
from framepack_daemon.spool import status
from framepack_daemon.spool.queue import Queue

COMMANDS = (
    *("run", "serve", "demo", "doctor", "models", "submit", "status", "cancel", "interrupt", "retry", "remove"),
    *("pause", "resume", "prune", "check", "schema"),
)
PATIENCE_SECONDS = 30.0

pytestmark = pytest.mark.timeout(60)


@dataclass
class Place:
    """A folder of our own, and the command run in it."""

    root: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def queue(self) -> Queue:
        return Queue(self.root / "queue")

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def call(self, *words: str) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) of a command."""
        self.capsys.readouterr()
        code = main(words)
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def ok(self, *words: str) -> str:
        code, out, err = self.call(*words)
        assert code == 0, err
        return out

    def submit(self, *more: str) -> str:
        return self.ok("submit", "pic.png", "--prompt", "waves", *more).strip()

    def status(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("status", job, "--json"))
        return found

    def overview(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("status", "--json"))
        return found


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """A command configures the logs of its process; here that is the tests' own."""
    root, ours = logging.getLogger(), logging.getLogger(OURS)
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    for name in [name for name in os.environ if name.upper().startswith("FRAMEPACK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "models"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "pic.png")
    return Place(tmp_path, capsys)


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "framepack_daemon", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in the background, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no threads run here
    )


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def finish(place: Place, job: str, outcome: dict[str, Any], state: State) -> None:
    """End a job as the daemon does: running, then the outcome, then the folder, then the status file."""
    queue, writer = place.queue, status.StatusWriter(place.queue, place.outputs)
    queue.move(job, State.PENDING, State.PROCESSING)
    progress = {"section": 1, "sections": 1, "step": 2, "steps": 4, "fraction": 0.5, "eta_seconds": 1.0}
    writer.write(job, State.PROCESSING, progress=progress)
    atomic.write_json(queue.path(State.PROCESSING, job) / OUTCOME_FILE, outcome)
    queue.move(job, State.PROCESSING, state)
    writer.write(job, state)


DONE = {"outcome": "completed", "video": {"file": "made.mp4", "width": 64, "height": 64, "seconds": 1, "bytes": 9}}
FAILED = {"outcome": "failed", "error": {"code": "x", "message": "the card is on fire", "hint": "put it out"}}


@pytest.fixture
def held(place: Place) -> Iterator[None]:
    """The lock that a running daemon holds."""
    place.queue.make()
    with (place.root / "queue/.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def test_help_names_every_command_and_fits_80_columns(place: Place) -> None:
    text = place.ok("--help")
    for command in COMMANDS:
        assert f"│ {command} " in text, command
    assert max(map(len, text.splitlines())) <= 80
    assert "--rescan-seconds" not in text


def test_every_setting_is_a_flag(place: Place) -> None:
    text = place.ok("--help-all")
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in text, name
    assert "true|false" in next(line for line in text.splitlines() if "--gallery" in line)


def test_version_and_module(place: Place) -> None:
    assert place.ok("--version") == f"framepack-daemon {__version__}\n"
    assert start("--version").communicate()[0] == f"framepack-daemon {__version__}\n"


def test_demo_hands_its_settings_to_the_daemon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = "json://localhost/?key=secret,with-a-comma json://localhost/2"
    given = {"inbox": "in box", "threads": "2", "settle_seconds": "0.5", "log_format": "console", "notify_urls": urls}
    settings, _ = load(given)
    flags, variables = handed_on(settings)
    assert "secret" not in " ".join(flags)  # other users see them
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = [word.removeprefix("--").partition("=") for word in flags]
    assert load({name.replace("-", "_"): value for name, _, value in words})[0] == settings
    assert place.ok(*flags, "status", "--json")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--device", "gpu", "status"], 78, "device: 'gpu' from --device is not allowed"),
        (["--config", "none.toml", "status"], 78, "none.toml"),
        (["submit", "pic.png"], 2, "prompt: is missing"),
        (["submit", "pic.png", "--prompt", "x", "--set", "sconds=3"], 2, "did you mean seconds?"),
        (["submit", "absent.png", "--prompt", "x"], 2, "absent.png"),
        (["submit", "--prompt", "x"], 2, "nothing to begin with"),
        (["submit", "pic.png", "--continue", "pic.mp4", "--prompt", "x"], 2, "pic.png: stands beside"),
        (["submit", "--continue", "pic.mp4", "--prompt", "x"], 2, "pic.mp4: there is no such video"),
        (["submit", "--continue", "pic-1f3a9c02d4e5", "--prompt", "x"], 2, "pic-1f3a9c02d4e5: no such job"),
        (["submit", "pic.png", "--inbox", "x"], 2, "--inbox is a setting and stands before the command"),
        (["statu"], 2, "status"),
        (["prune"], 2, "--keep"),
        (["prune", "--older-than", "soon"], 2, "7d"),
    ],
)
def test_what_goes_wrong_is_said_with_its_exit_code(place: Place, words: list[str], code: int, said: str) -> None:
    found, out, err = place.call(*words)
    assert (found, out) == (code, "")
    assert said in err
    assert not (place.root / "queue").exists()


def test_a_file_that_cannot_be_written_is_no_traceback(place: Place) -> None:
    place.root.joinpath("queue").write_text("in the way")
    code, _, err = place.call("submit", "pic.png", "--prompt", "x")
    assert code == 2
    assert err.startswith("error: ")


def test_an_unknown_variable_is_warned_of(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEPACK_INBOXX", "x")
    code, out, err = place.call("status", "--json")
    assert code == 0
    assert "did you mean FRAMEPACK_INBOX?" in err
    assert json.loads(out)["counts"]


def test_submit_prints_the_id_alone_and_says_that_no_daemon_runs(place: Place) -> None:
    code, out, err = place.call("submit", "pic.png", "--prompt", "waves", "--set", "frames=5")
    assert code == 0
    assert out.count("\n") == 1
    assert "no daemon" in err
    folder = place.queue.path(State.PENDING, out.strip())
    request = json.loads((folder / "job.json").read_text())
    assert (request["prompt"], request["frames"]) == ("waves", 5)
    assert json.loads((folder / "pic.json").read_text())["seed"] == request["seed"] >= 0
    assert (place.root / "pic.png").exists()


@pytest.mark.usefixtures("held")
def test_submit_beside_a_daemon_says_nothing_more(place: Place) -> None:
    assert place.call("submit", "pic.png", "--prompt", "waves")[2] == ""
    assert place.overview()["daemon"]["running"]


def test_the_same_picture_twice_is_two_jobs_unless_the_seed_is_given(place: Place) -> None:
    assert place.submit() != place.submit()
    assert place.submit("--set", "seed=3") == place.submit("--set", "seed=3")
    assert place.overview()["counts"]["pending"] == 3


def test_variations_print_an_id_each(place: Place) -> None:
    assert len(set(place.submit("--set", "variations=3").splitlines())) == 3


def test_seeds_print_an_id_each_in_their_order(place: Place) -> None:
    jobs = place.submit("--set", "seeds=[9, 8]").splitlines()
    assert [place.status(job)["request"]["seed"] for job in jobs] == [9, 8]


def test_submit_continues_a_job_by_the_beginning_of_its_id(place: Place) -> None:
    source = place.submit("--set", "keep_latents=true")
    code, _, err = place.call("submit", "--continue", source[:6], "--prompt", "on")
    assert (code, "it is pending" in err) == (2, True)
    folder = place.queue.path(State.PENDING, source)
    (folder / "latents.safetensors").write_bytes(b"latents")
    atomic.write_json(folder / OUTCOME_FILE, DONE | {"video": {"width": 96, "height": 64}})
    place.queue.move(source, State.PENDING, State.DONE)
    job = place.ok("submit", "--continue", source[:6], "--prompt", "on").strip()
    assert job.startswith("pic-")
    assert place.status(job)["request"]["continue_from"] == source
    assert place.status(job)["request"]["width"] == 96


def test_submit_continues_a_video_given_or_beside_the_sidecar(place: Place) -> None:
    (place.root / "far").mkdir()
    write_video(place.root / "far" / "more.MP4")
    (place.root / "far" / "more.json").write_text('{"prompt": "on", "continue_from": "more.MP4", "seed": 4}')
    job = place.ok("submit", "--sidecar", "far/more.json").strip()
    assert place.ok("submit", "--continue", "far/more.MP4", "-p", "on", "-s", "seed=4").strip() == job
    assert place.status(job)["source"]["video"] == "more.MP4"
    assert (place.root / "far" / "more.MP4").exists()


def test_check_knows_what_a_sidecar_can_continue(place: Place) -> None:
    for named, said in {"more.mp4": "from more.mp4", "beach-1f3a9c02d4e5": "from beach-1f3a9c02d4e5"}.items():
        (place.root / "more.json").write_text(json.dumps({"prompt": "x", "continue_from": named}))
        assert said in place.ok("check", "more.json")
    for named, said in {"clip.mp4": "call the video more.mp4", "clip": "write an id like"}.items():
        (place.root / "more.json").write_text(json.dumps({"prompt": "x", "continue_from": named}))
        assert said in place.call("check", "more.json")[2]
    (place.root / "defaults.json").write_text('{"continue_from": "more.mp4"}')
    assert "belongs to one drop" in place.call("check", "defaults.json")[2]


@pytest.mark.parametrize(
    ("outcome", "state", "code"), [(DONE, State.DONE, 0), (FAILED, State.FAILED, 1)], ids=["done", "failed"]
)
def test_wait_ends_with_the_job(place: Place, outcome: dict[str, Any], state: State, code: int) -> None:
    job = place.submit("--set", "seed=3")
    daemon = threading.Thread(target=finish, args=(place, job, outcome, state))
    daemon.start()
    found, out, err = place.call("submit", "pic.png", "--prompt", "waves", "--set", "seed=3", "--wait")
    daemon.join()
    assert found == code
    assert out.splitlines() == [job, *([str(place.outputs / "made.mp4")] if code == 0 else [])]
    if code:
        assert f"error: {job}: the card is on fire\nhint: put it out\n" in err


def test_wait_for_a_job_that_is_removed(place: Place) -> None:
    job = place.submit("--set", "seed=3")
    waiting = start("submit", "pic.png", "--prompt", "waves", "--set", "seed=3", "--wait")
    assert waiting.stdout is not None
    assert waiting.stdout.readline().strip() == job
    place.queue.discard(place.queue.path(State.PENDING, job))
    _, err = waiting.communicate()
    assert waiting.returncode == 1
    assert "was removed" in err


def test_ctrl_c_while_waiting_leaves_the_job(place: Place) -> None:
    waiting = start("submit", "pic.png", "--prompt", "waves", "--wait")
    assert waiting.stdout is not None
    assert waiting.stderr is not None
    job = waiting.stdout.readline().strip()
    while "waits for its turn" not in waiting.stderr.readline():
        pass
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate()
    assert waiting.returncode == 130
    assert "in the queue all the same" in err
    assert "Traceback" not in err
    assert place.queue.state_of(job) is State.PENDING


def test_status_counts_and_shows_every_state_and_the_lone_halves(place: Place) -> None:
    waiting, done, failed = place.submit(), place.submit(), place.submit()
    finish(place, done, DONE, State.DONE)
    finish(place, failed, FAILED, State.FAILED)
    (place.root / "inbox").mkdir()
    (place.root / "inbox/lone.json").write_text("{}")
    found = place.overview()
    assert found["counts"] == {"pending": 1, "processing": 0, "done": 1, "failed": 1}
    assert [(row["job"], row["position"]) for row in found["pending"]] == [(waiting, 1)]
    assert found["done"][0]["video"]["file"] == "made.mp4"
    assert found["failed"][0]["error"]["hint"] == "put it out"
    assert [half["name"] for half in found["halves"]] == ["lone.json"]
    assert not found["daemon"]["running"]
    text = place.ok("status")
    for part in (waiting, done, failed, "the card is on fire (put it out)", "lone.json", "no daemon runs"):
        assert part in text


def test_the_folder_is_the_state_where_the_status_file_lags(place: Place) -> None:
    job = place.submit()
    place.queue.move(job, State.PENDING, State.PROCESSING)
    row = place.overview()["processing"][0]
    assert (row["job"], row["state"], row["message"]) == (job, "processing", "is being rendered")
    status.path(place.outputs, job).unlink()
    assert place.overview()["processing"][0]["source"]["image"] == "pic.png"


def test_status_reads_no_more_status_files_than_it_shows(place: Place) -> None:
    jobs = [place.submit() for _ in range(4)]
    for job in jobs:
        status.path(place.outputs, job).write_text('{"message": "read"}')
    rows = json.loads(place.ok("status", "--json", "--rows", "2"))["pending"]
    assert [row["job"] for row in rows] == jobs[:2]
    assert "and 2 more" in place.ok("status", "--rows", "2")


def test_watch_says_each_change_where_there_is_no_terminal(place: Place) -> None:
    watching = start("status", "--watch", "--json")
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["counts"]["pending"] == 0
    place.submit()
    assert json.loads(watching.stdout.readline())["counts"]["pending"] == 1
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate()
    assert (watching.returncode, err) == (0, "")


def test_moves_answer_for_each_job_and_go_on_after_one_that_is_unknown(place: Place) -> None:
    one, other = place.submit(), place.submit()
    code, out, err = place.call("cancel", one, "nosuch", other)
    assert code == 2
    assert out.splitlines() == [f"{one}: cancelled", f"{other}: cancelled"]
    assert "error: nosuch: no such job" in err
    assert place.overview()["counts"]["failed"] == 2
    place.ok("retry", one)
    assert place.overview()["pending"][0]["message"] == "waits for its turn"
    place.ok("remove", one, other)
    assert set(place.overview()["counts"].values()) == {0}


def test_a_job_is_named_by_its_beginning(place: Place) -> None:
    job = place.submit()
    assert json.loads(place.ok("status", job[:8], "--json"))["job"] == job
    assert "request.prompt" in place.ok("status", job[:8])
    assert place.call("interrupt", job[:8])[1].startswith(job)


def test_a_new_seed_makes_a_new_job(place: Place) -> None:
    job = place.submit()
    again = place.ok("retry", "--new-seed", job).strip()
    assert again != job
    assert place.overview()["counts"]["pending"] == 2


def test_pause_and_resume(place: Place) -> None:
    place.ok("pause")
    assert place.overview()["paused"]
    assert "paused" in place.ok("status")
    place.ok("resume")
    assert not place.overview()["paused"]


def test_prune_says_what_it_removed(place: Place) -> None:
    old, new = place.submit(), place.submit()
    finish(place, old, DONE | {"finished_at": "2020-01-01T00:00:00Z"}, State.DONE)
    finish(place, new, DONE | {"finished_at": "2020-01-02T00:00:00Z"}, State.DONE)
    assert place.ok("prune", "--keep", "1").splitlines() == [old, "1 job removed"]
    assert place.ok("prune", "--older-than", "52w", "--forget").splitlines()[-1] == "2 jobs removed"
    assert place.overview()["counts"]["done"] == 0


def test_check_says_ok_or_what_is_wrong(place: Place) -> None:
    files = {
        "good.json": '{"prompt": "x", "frames": 37}',
        "wrong.json": '{"prompt": "x", "crf": 99}',
        "note.txt": "waves",
    }
    for name, text in files.items():
        (place.root / name).write_text(text)
    code, out, err = place.call("check", *files, "absent.json")
    assert code == 2
    assert out.splitlines() == [
        "good.json: ok, 37 frames (1.23 s) in 1 section, around 640 pixels",
        "note.txt: ok, 145 frames (4.83 s) in 4 sections, around 640 pixels",
    ]
    assert "error: wrong.json: crf: 99 is out of range\nhint: crf is a whole number from " in err
    assert "error: absent.json: is not there" in err
    assert place.call("check", "good.json")[0] == 0


def test_check_lays_a_sidecar_over_the_defaults_beside_it(place: Place) -> None:
    (place.root / "defaults.json").write_text('{"prompt": "x", "width": 64, "height": 96}')
    (place.root / "beach.json").write_text('{"frames": 2}')
    assert "beach.json: ok, 2 frames (0.07 s) in 1 section, 64x96" in place.ok("check", "beach.json")
    (place.root / "defaults.json").write_text('{"crf": 20}')
    assert "defaults.json: ok" in place.ok("check", "defaults.json")


def test_check_escapes_the_names_of_files(place: Place) -> None:
    name = "a\x1b[2Jb.json"
    (place.root / name).write_text('{"prompt": "x"}')
    (place.root / f"no{name}").write_text("{")
    _, out, err = place.call("check", name, f"no{name}")
    assert "\x1b" not in out + err.replace("\x1b[31m", "")
    assert r"a\x1b[2Jb.json" in out


def test_schema_is_json_and_names_the_aliases(place: Place) -> None:
    schema = json.loads(place.ok("schema"))
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["seconds"]["description"]
    assert schema["properties"]["video_length"]["description"] == "Another name of seconds."
    assert "reverse" in schema["properties"]["sampling_mode"]["description"]


def test_doctor_says_for_each_line_ok_or_what_to_do_and_leaves_nothing(place: Place) -> None:
    (place.root / "inbox").mkdir()
    before = sorted(place.root.rglob("*"))
    code, out, _ = place.call("doctor")
    assert code == 78
    assert "not usable yet: model" in out
    assert "framepack-daemon models pull tiny" in out
    for subject in ("libraries", "memory", "encoding", "inbox", "outputs", "queue_dir", "work_dir", "notices"):
        assert f"ok  {subject} " in out, subject
    assert "inotify" in out
    assert sorted(place.root.rglob("*")) == before


def test_doctor_names_a_folder_that_cannot_be_made(place: Place) -> None:
    code, out, _ = place.call("--outputs", "/proc/1/outputs", "doctor")
    assert code == 78
    assert "no  outputs" in out


def test_models_are_listed_and_checked(place: Place) -> None:
    text = place.ok("models", "list")
    assert "framepack-f1" in text
    assert text.count("not here") == 3
    code, out, err = place.call("models", "check", "framepack-i2v")
    assert (code, out) == (2, "")
    assert "framepack-daemon models pull framepack-i2v" in err
    assert "there is no model big" in place.call("models", "pull", "big")[2]


NO_TORCH = """
import sys
from framepack_daemon.cli import main
main(sys.argv[1:])
heavy = {"torch", "diffusers", "transformers", "accelerate"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["status"],
        ["status", "--json"],
        ["submit", "pic.png", "--prompt", "x"],
        ["check", "defaults.json"],
        ["schema"],
        ["doctor"],
        ["models", "list"],
    ],
    ids=" ".join,
)
def test_no_command_imports_torch(place: Place, words: list[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words], cwd=place.root, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_status_starts_fast(place: Place) -> None:
    def once() -> float:
        begin = os.times()
        subprocess.run(
            [sys.executable, "-m", "framepack_daemon", "status"], cwd=place.root, capture_output=True, check=True
        )
        end = os.times()
        return end.children_user + end.children_system - begin.children_user - begin.children_system

    # Seconds of a processor, which a busy machine hardly changes: 0.35 of them, and more than 2 with torch.
    assert min(once() for _ in range(3)) < 1.0
