"""From files in a drop folder to job directories, on real folders."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from spool_bench import SIDECAR, Bench

from framepack_daemon.job import State
from framepack_daemon.spool import inbox, submit
from framepack_daemon.spool.groups import halves
from framepack_daemon.spool.inbox import Timing
from framepack_daemon.spool.moves import prune

OTHER_FILE_SYSTEM = Path("/dev/shm")  # a tmpfs: renames from the disk fail with EXDEV


def test_a_pair_becomes_a_job_with_the_files_exactly_as_dropped(bench: Bench) -> None:
    bench.drop()
    job = bench.take_one()
    folder = bench.queue.path(State.PENDING, job)
    assert (folder / "beach.png").read_bytes() == bench.picture.read_bytes()
    assert json.loads((folder / "beach.json").read_text()) == SIDECAR
    request = json.loads((folder / "job.json").read_text())
    assert request["model"] == "tiny"
    assert request["num_inference_steps"] == 25
    assert bench.left() == []
    assert bench.status(job)["state"] == "pending"
    assert not list(bench.queue.building.iterdir())


def test_the_id_is_the_content(bench: Bench) -> None:
    bench.drop("one")
    bench.drop("two")
    one, two = (added.jobs[0] for added in bench.take())
    assert (one.rpartition("-")[0], two.rpartition("-")[0]) == ("one", "two")
    assert one.rpartition("-")[2] == two.rpartition("-")[2]
    bench.drop("one", seed=8)
    assert bench.take_one() != one


def test_the_same_stem_again_is_a_new_job_by_its_content(bench: Bench) -> None:
    bench.drop()
    first = bench.take_one()
    bench.drop(frames=6)
    second = bench.take_one()
    assert bench.jobs(State.PENDING) == sorted([first, second])


@pytest.mark.parametrize("state", list(State))
def test_known_content_is_consumed_in_every_state(bench: Bench, state: State) -> None:
    bench.drop()
    job = bench.take_one()
    if state is not State.PENDING:
        bench.queue.move(job, State.PENDING, state)
    bench.drop()
    (added,) = bench.take()
    assert (added.jobs, added.known) == ([], [job])
    assert bench.left() == []
    assert bench.queue.state_of(job) is state
    assert "dropped again" in bench.status(job)["message"]


def test_a_pruned_job_stays_known_and_a_forgotten_one_does_not(bench: Bench) -> None:
    for forget, known in ((False, True), (True, False)):
        bench.drop("pruned", frames=5, seconds=2 if forget else 1)  # refused: both say the length
        job = bench.take_one()
        assert prune(bench.queue, bench.outputs, keep=0, older_than_seconds=None, videos=False, forget=forget) == [job]
        bench.drop("pruned", frames=5, seconds=2 if forget else 1)
        (added,) = bench.take()
        assert bool(added.known) is known
        shutil.rmtree(bench.queue.path(State.FAILED, job), ignore_errors=True)


def test_a_sidecar_that_an_editor_called_json_txt_is_one(bench: Bench) -> None:
    bench.put("beach.png")
    bench.put("beach.json.txt", SIDECAR)
    job = bench.take_one()
    assert bench.status(job)["request"]["seed"] == SIDECAR["seed"]
    assert bench.status(job)["source"]["sidecar"] == "beach.json.txt"
    bench.put("two.png")
    for name in ("two.json", "two.json.txt"):
        bench.put(name, SIDECAR)
    assert "more than one sidecar" in str(bench.take()[0].refusal)


def test_halves_that_differ_in_case_are_told_of_each_other(bench: Bench) -> None:
    bench.put("Beach.png")
    bench.put("beach.json", SIDECAR)
    assert bench.take() == []
    found = dict(halves(bench.inbox, bench.queue))
    assert found["Beach.png"] == "Beach.json or Beach.txt; the name beach differs in upper and lower case"
    assert found["beach.json"].endswith("; the name Beach differs in upper and lower case")


def test_pictures_in_a_folder_that_is_no_drop_folder_are_told_of(bench: Bench) -> None:
    for folder in ("holiday", "videos", "papers"):
        (bench.inbox / folder).mkdir()
    for name in ("holiday/beach.png", "holiday/beach.json", "videos/poster.jpg", "papers/notes.txt"):
        bench.put(name)
    assert bench.take() == []
    ((name, waits_for),) = halves(bench.inbox, bench.queue, [bench.inbox / "videos"])
    assert name == "holiday/"
    assert "defaults.json" in waits_for
    bench.put("holiday/defaults.json", {})
    bench.put("holiday/beach.json", SIDECAR)
    assert len(bench.take()) == 1
    assert halves(bench.inbox, bench.queue, [bench.inbox / "videos"]) == []


@pytest.mark.parametrize("lone", ["beach.png", "beach.json", "beach.txt", "beach.last.png"])
def test_a_lone_half_waits_and_is_listed(bench: Bench, lone: str) -> None:
    bench.put(lone, None if lone.endswith("png") else b'{"prompt": "waves"}')
    assert bench.take() == []
    assert bench.left() == [lone]
    ((name, waits_for),) = halves(bench.inbox, bench.queue)
    assert name == lone
    assert "beach." in waits_for


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "a.jpg", "a.json"], "more than one image"),
        (["a.png", "a.json", "a.JSON"], "more than one sidecar"),
        (["a.png", "a.json", "a.last.png", "a.last.jpg"], "more than one end frame"),
        ([unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")] + ["é.json"], "more than one image"),
        (["a.sync-conflict-20260101-000000-ABCDEFG.png"], "conflict copy"),
    ],
)
def test_an_ambiguous_set_is_refused_together(bench: Bench, names: list[str], message: str) -> None:
    for name in names:
        bench.put(name, SIDECAR if name.casefold().endswith("json") else None)
    (added,) = bench.take()
    (job,) = added.jobs
    assert added.refusal is not None
    assert message in added.refusal.message
    assert bench.left() == []
    assert bench.files(State.FAILED, job) >= set(names)
    assert bench.status(job)["error"]["hint"]


@pytest.mark.parametrize("name", ["beach.PNG", "beach.Json"])
def test_extensions_are_read_without_case(bench: Bench, name: str) -> None:
    bench.drop()
    path = bench.inbox / name.casefold()
    path.rename(path.with_name(name))
    assert name in bench.files(State.PENDING, bench.take_one())


def test_stems_pair_after_nfc(bench: Bench) -> None:
    bench.put(unicodedata.normalize("NFD", "été.png"))
    bench.put(unicodedata.normalize("NFC", "été.json"), SIDECAR)
    assert bench.take_one().startswith(unicodedata.normalize("NFC", "été-"))


@pytest.mark.parametrize(
    "stem",
    ["-rf", "a b", "new\nline", "\x1b[31mred", "\u202egnp", "🏖", "con", "x" * 250, "%2e%2e", "$(reboot)"],
)
def test_names_of_every_kind_work(bench: Bench, stem: str) -> None:
    bench.drop(stem)
    job = bench.take_one()
    assert job.isprintable()
    assert len(f".{job}.status.json.12345678.tmp".encode()) <= 255
    assert bench.status(job)["source"]["image"] == f"{stem}.png"


def test_a_name_that_is_not_utf8_works(bench: Bench) -> None:
    stem = os.fsdecode(b"caf\xe9")
    bench.drop(stem)
    job = bench.take_one()
    run = bench.queue.run(State.PENDING, job)
    assert run is not None
    assert {item.original for item in run.files} == {f"{stem}.png", f"{stem}.json"}


def test_a_pair_called_like_our_records_works(bench: Bench) -> None:
    bench.drop("job")
    job = bench.take_one()
    assert bench.files(State.PENDING, job) >= {"job.png", "dropped-job.json", "job.json", "run.json"}


@pytest.mark.parametrize("kind", ["symlink", "fifo", "socket", "folder"])
def test_what_is_no_plain_file_is_left_alone(bench: Bench, kind: str) -> None:
    path = bench.inbox / "beach.png"
    bench.put("beach.json", SIDECAR)
    match kind:
        case "symlink":
            path.symlink_to(bench.picture)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as end:
                os.chdir(bench.inbox)
                end.bind("beach.png")
        case "folder":
            path.mkdir()
    assert bench.take() == []
    assert os.path.lexists(path)
    assert [name for name, _ in halves(bench.inbox, bench.queue)] == ["beach.json"]


def test_a_hard_link_is_copied_so_that_its_other_name_cannot_change_the_job(bench: Bench) -> None:
    bench.drop()
    other = bench.root / "other.png"
    other.hardlink_to(bench.inbox / "beach.png")
    job = bench.take_one()
    other.write_bytes(b"changed")
    assert (bench.queue.path(State.PENDING, job) / "beach.png").read_bytes() == bench.picture.read_bytes()


def test_a_text_file_is_a_prompt_and_a_sidecar_wins_over_it(bench: Bench) -> None:
    bench.put("a.png")
    bench.put("a.txt", "\ufeffA dog runs.\r\n".encode())
    bench.drop("b")
    bench.put("b.txt", b"ignored")
    first, second = (added.jobs[0] for added in bench.take())
    assert bench.status(first)["request"]["prompt"] == "A dog runs."
    assert bench.status(second)["request"]["prompt"] == "waves"
    assert "b.txt" in bench.files(State.PENDING, second)
    assert bench.left() == []


def test_a_preset_s_values_apply_beside_it_and_the_sidecar_goes_over_them(bench: Bench) -> None:
    bench.put("zoom/defaults.json", {"prompt": "zoom", "crf": 20, "seconds": 3})
    bench.put("zoom/alone.png")
    bench.put("zoom/both.png")
    bench.put("zoom/both.json", {"prompt": "own", "frames": 5})
    bench.put("plain/ignored.png")
    bench.put("plain/ignored.json", SIDECAR)
    alone, both = (bench.status(added.jobs[0])["request"] for added in bench.take())
    assert (alone["prompt"], alone["crf"], alone["seconds"]) == ("zoom", 20, 3)
    assert (both["prompt"], both["crf"], both["frames"], both.get("seconds")) == ("own", 20, 5, None)
    assert bench.left() == ["plain/ignored.json", "plain/ignored.png", "zoom/defaults.json"]


def test_another_preset_makes_another_job_of_the_same_picture(bench: Bench) -> None:
    bench.put("defaults.json", {"prompt": "one"})
    bench.put("a.png")
    first = bench.take_one()
    bench.put("defaults.json", {"prompt": "two"})
    bench.put("a.png")
    assert bench.take_one() != first


@pytest.mark.parametrize("content", [b'{"prompt": ', b'{"seconds": 1000}', b"[]"])
def test_a_wrong_preset_holds_its_drops_back(bench: Bench, content: bytes) -> None:
    bench.put("defaults.json", content)
    bench.drop()
    assert bench.take() == []
    assert all("defaults.json is wrong" in reason for _, reason in halves(bench.inbox, bench.queue))
    bench.put("defaults.json", b"{}")
    assert len(bench.take()) == 1


def test_an_end_frame_goes_with_its_pair(bench: Bench) -> None:
    bench.put("beach.last.png")
    bench.drop()
    job = bench.take_one()
    assert bench.status(job)["request"]["last_image"] == "beach.last.png"
    assert bench.status(job)["request"]["sampling"] == "inverted_anti_drifting"


def test_a_sidecar_that_speaks_of_an_end_frame_waits_for_it(bench: Bench) -> None:
    bench.drop(last_image="beach.last.png")
    assert bench.take() == []
    assert any("beach.last" in reason for _, reason in halves(bench.inbox, bench.queue))
    bench.put("beach.last.png")
    assert bench.take_one()


def test_variations_are_jobs_and_a_repeat_consumes_them_all(bench: Bench) -> None:
    bench.drop(variations=3, seed=-1)
    (added,) = bench.take()
    assert len(added.jobs) == 3
    assert len({bench.status(job)["request"]["seed"] for job in added.jobs}) == 3
    assert all(bench.status(job)["request"]["variations"] == 1 for job in added.jobs)
    bench.drop(variations=3, seed=-1)
    (again,) = bench.take()
    assert (again.jobs, sorted(again.known)) == ([], sorted(added.jobs))


def test_seeds_are_jobs_that_run_in_their_order_and_a_repeat_consumes_them_all(bench: Bench) -> None:
    seeds = [3, 1, 2]
    bench.put("beach.png")
    bench.put("beach.json", {"prompt": "waves", "seeds": seeds})
    (added,) = bench.take()
    requests = [bench.status(job)["request"] for job in added.jobs]
    assert [request["seed"] for request in requests] == seeds
    assert all("seeds" not in request and request["variations"] == 1 for request in requests)
    assert bench.queue.waiting() == added.jobs
    bench.put("beach.png")
    bench.put("beach.json", {"prompt": "waves", "seeds": seeds})
    (again,) = bench.take()
    assert (again.jobs, again.known) == ([], added.jobs)


@pytest.mark.parametrize("fields", [{"seeds": [1, 1]}, {"seeds": [1], "seed": 1}, {"seeds": [1], "variations": 2}])
def test_seeds_that_say_a_thing_twice_are_refused(bench: Bench, fields: dict[str, object]) -> None:
    bench.put("beach.png")
    bench.put("beach.json", {"prompt": "waves"} | fields)
    (added,) = bench.take()
    assert added.refusal is not None
    assert "seeds" in added.refusal.message


def test_seeds_may_be_submitted_and_one_of_them_taken_again(bench: Bench, picture: Path) -> None:
    sidecar = {"prompt": "waves", "seeds": [8, 9]}
    jobs = submit.submit(bench.queue, bench.outputs, image=picture, sidecar=sidecar, last_image=None, model="tiny")
    assert [bench.status(job)["request"]["seed"] for job in jobs] == [8, 9]
    (take,) = submit.retake(bench.queue, bench.outputs, jobs[0], "tiny")
    assert take not in jobs
    assert bench.status(take)["request"]["seed"] not in (8, 9)


def test_a_bad_sidecar_is_refused_whole(bench: Bench) -> None:
    bench.drop(seconds=1000, frames=None)
    (added,) = bench.take()
    (job,) = added.jobs
    assert bench.files(State.FAILED, job) >= {"beach.png", "beach.json", "run.json", "outcome.json"}
    status = bench.status(job)
    assert (status["state"], status["outcome"]) == ("failed", "failed")
    assert "seconds" in status["error"]["message"]


def test_a_sidecar_of_a_gigabyte_is_refused_without_being_read(bench: Bench) -> None:
    bench.put("beach.png")
    with (bench.inbox / "beach.json").open("wb") as stream:
        stream.truncate(1 << 30)
    started = time.process_time()
    found = bench.scanner.scan()
    assert time.process_time() - started < 1  # a bound on work, not on speed: reading it all takes many times that
    assert "bytes" in str(found.drops[0].refusal)


def test_a_file_is_taken_when_it_has_stood_still_and_not_before(tmp_path: Path, picture: Path) -> None:
    bench = Bench(tmp_path / "b", picture, Timing(settle=0.3, incomplete=30, partner=0.3))
    data = picture.read_bytes()
    bench.put("beach.json", SIDECAR)
    written = threading.Event()

    def write_slowly() -> None:
        with (bench.inbox / "beach.png").open("wb", buffering=0) as stream:
            for start in range(0, len(data), len(data) // 10):
                stream.write(data[start : start + len(data) // 10])
                time.sleep(0.05)
        written.set()

    writer = threading.Thread(target=write_slowly)
    writer.start()
    while not written.is_set():
        assert bench.take() == []
        time.sleep(0.02)
    writer.join()
    (added,) = bench.take_after(10)
    assert (bench.queue.path(State.PENDING, added.jobs[0]) / "beach.png").read_bytes() == data


@pytest.mark.parametrize("whole", ["closes and reopens", "preallocates zeros"])
def test_a_writer_that_pauses_is_waited_for(tmp_path: Path, picture: Path, whole: str) -> None:
    bench = Bench(tmp_path / "b", picture, Timing(settle=0.05, incomplete=30, partner=0.05))
    data = picture.read_bytes()
    bench.put("beach.json", SIDECAR)
    half = data[: len(data) // 2]
    bench.put("beach.png", half + (bytes(len(data) - len(half)) if whole == "preallocates zeros" else b""))
    assert bench.take_after(0.4) == []
    bench.put("beach.png", data)
    (added,) = bench.take_after(10)
    assert added.refusal is None


def test_an_incomplete_file_that_keeps_still_is_refused_in_the_end(tmp_path: Path, picture: Path) -> None:
    bench = Bench(tmp_path / "b", picture, Timing(settle=0.05, incomplete=0.3, partner=0.05))
    bench.put("beach.png", picture.read_bytes()[:100])
    bench.put("beach.json", SIDECAR)
    started = time.monotonic()
    (added,) = bench.take_after(10)
    assert time.monotonic() - started >= 0.3
    assert added.refusal is not None
    assert added.refusal.code == "incomplete_image"


def test_times_on_files_play_no_part(bench: Bench) -> None:
    bench.drop("old")
    bench.drop("new")
    for stem, when in (("old", 0), ("new", 4_000_000_000)):
        for suffix in ("png", "json"):
            os.utime(bench.inbox / f"{stem}.{suffix}", (when, when))
    assert len(bench.take()) == 2


def test_a_file_replaced_in_the_moment_of_taking_goes_back(bench: Bench) -> None:
    bench.drop()
    (drop,) = bench.scanner.scan().drops
    bench.put("new.json", SIDECAR | {"seed": 99}).rename(bench.inbox / "beach.json")
    with pytest.raises(Exception, match="changed while"):
        bench.door.add(drop)
    assert bench.left() == ["beach.json", "beach.png"]
    assert not list(bench.queue.building.iterdir())
    assert bench.status(bench.take_one())["request"]["seed"] == 99


def test_a_late_write_becomes_a_job_of_its_own_content(bench: Bench) -> None:
    bench.drop()
    with (bench.inbox / "beach.json").open("r+b") as late:
        job = bench.take_one()
        late.write(json.dumps(SIDECAR | {"seed": 8}).encode())
    added = bench.door.add_again(bench.queue.path(State.PENDING, job))
    assert added.jobs != [job]
    assert bench.jobs(State.PENDING) == added.jobs
    assert bench.status(added.jobs[0])["request"]["seed"] == 8


def test_the_queue_may_be_on_another_file_system(tmp_path: Path, picture: Path) -> None:
    queue = OTHER_FILE_SYSTEM / f"framepack-test-{os.getpid()}"
    try:
        bench = Bench(tmp_path / "b", picture, queue=queue)
        assert bench.inbox.stat().st_dev != queue.stat().st_dev
        bench.drop(variations=2)
        (added,) = bench.take()
        assert len(added.jobs) == 2
        assert bench.left() == []
        assert (queue / "pending" / added.jobs[0] / "beach.png").read_bytes() == picture.read_bytes()
        assert not list((bench.inbox / ".framepack-daemon").iterdir())
    finally:
        shutil.rmtree(queue, ignore_errors=True)


def test_published_files_copied_back_are_no_drop(bench: Bench) -> None:
    for name in ("b-1f3a9c02d4e5.status.json", "b-1f3a9c02d4e5.poster.jpg", "b-1f3a9c02d4e5.mp4"):
        bench.put(name, None if name.endswith("jpg") else b"{}")
    assert bench.take() == []
    assert halves(bench.inbox, bench.queue) == []


def test_the_inbox_may_be_deleted_and_made_anew(bench: Bench) -> None:
    shutil.rmtree(bench.inbox)
    assert bench.take() == []
    bench.inbox.mkdir()
    bench.drop()
    assert bench.take_one()


def test_thousands_of_names_are_scanned_in_order(bench: Bench) -> None:
    for number in range(3000):
        (bench.inbox / f"lone{number:05}.json").write_bytes(b"{}")
    for stem in ("c", "a", "b"):
        bench.drop(stem)
    assert [added.jobs[0][0] for added in bench.take()] == ["a", "b", "c"]
    assert len(halves(bench.inbox, bench.queue)) == 3000


def test_of_many_pairs_the_first_are_given_before_all_are_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.scanner.timing = replace(bench.scanner.timing, judge=0.0)
    monkeypatch.setattr(inbox, "JUDGE_SHARE", 0.0)
    stems = ["a", "b", "c", "d"]
    for stem in stems:
        bench.drop(stem)
    bench.put("a.json", b"[]")
    for stem in stems:
        found = bench.scanner.scan()
        assert [drop.stem for drop in found.drops] == [stem]
        assert found.due_seconds == (0.05 if stem != "d" else None)
        bench.door.add(found.drops[0])
    assert bench.left() == []


def test_submit_copies_and_a_new_seed_makes_a_new_take(bench: Bench, picture: Path) -> None:
    (job,) = submit.submit(
        bench.queue, bench.outputs, image=picture, sidecar=dict(SIDECAR), last_image=None, model="tiny"
    )
    assert picture.exists()
    again = submit.submit(
        bench.queue, bench.outputs, image=picture, sidecar=dict(SIDECAR), last_image=None, model="tiny"
    )
    assert again == [job]
    (take,) = submit.retake(bench.queue, bench.outputs, job, "tiny")
    assert take != job
    assert bench.status(take)["request"] | {"seed": 7} == bench.status(job)["request"]


def test_an_end_frame_for_a_model_that_cannot_aim_at_it_is_refused(bench: Bench) -> None:
    bench.drop(model="framepack-f1")
    bench.put("beach.last.png")
    (added,) = bench.take()
    assert added.refusal is not None
    assert "vanilla" in added.refusal.message
    assert bench.jobs(State.FAILED) == added.jobs
