"""Drops that continue a done job, or a video beside their sidecar."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from spool_bench import Bench
from videos import write_video

from framepack_daemon import atomic
from framepack_daemon.errors import FramepackError, RequestError
from framepack_daemon.job import OUTCOME_FILE, Role, Run, State
from framepack_daemon.spool import submit
from framepack_daemon.spool.capture import DropChangedError
from framepack_daemon.spool.groups import halves
from framepack_daemon.spool.inbox import Timing
from framepack_daemon.spool.moves import prune

MORE = {"prompt": "on", "frames": 5, "seed": 1}
LATENTS = b"the end of a video"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


def end(bench: Bench, job: str, *, latents: bytes | None = LATENTS, width: int = 80) -> str:
    """The pending job, done."""
    video = {"file": f"{job}.mp4", "width": width, "height": 64, "sha256": ""}
    folder = bench.queue.path(State.PENDING, job)
    atomic.write_json(
        folder / OUTCOME_FILE, {"outcome": "completed", "finished_at": "2026-01-01T00:00:00Z", "video": video}
    )
    if latents is not None:
        (folder / "latents.safetensors").write_bytes(latents)
    bench.queue.move(job, State.PENDING, State.DONE)
    bench.keeper.moved(job, State.DONE)
    return job


def first(bench: Bench, *, latents: bytes | None = LATENTS, **fields: Any) -> str:
    """A done job that can be continued."""
    bench.drop(keep_latents=True, **fields)
    return end(bench, bench.take_one(), latents=latents)


def record(bench: Bench, state: State, job: str) -> Run:
    run = bench.queue.run(state, job)
    assert run is not None
    return run


def refused(bench: Bench) -> FramepackError:
    """Scan once; why the one drop was refused. Nothing of it is left in the inbox."""
    (added,) = bench.take()
    assert added.refusal is not None
    assert bench.jobs(State.FAILED) == added.jobs
    assert bench.status(added.jobs[0])["error"]["hint"]
    return added.refusal


# -- a job -------------------------------------------------------------------------------------------------------------


def test_a_sidecar_alone_continues_a_done_job_with_copies_of_what_it_takes(bench: Bench) -> None:
    source = first(bench)
    bench.put("more.json", MORE | {"continue_from": source})
    job = bench.take_one()
    bench.queue.discard(bench.queue.path(State.DONE, source))

    assert bench.left() == []
    folder, run = bench.queue.path(State.PENDING, job), record(bench, State.PENDING, job)
    assert {item.role: item.name for item in run.files} == {
        Role.IMAGE: "continued.png",
        Role.LATENTS: "continued.safetensors",
        Role.SIDECAR: "more.json",
    }
    assert (folder / "continued.png").read_bytes() == bench.picture.read_bytes()
    assert (folder / "continued.safetensors").read_bytes() == LATENTS
    assert json.loads((folder / "more.json").read_text()) == MORE | {"continue_from": source}
    request = bench.status(job)["request"]
    assert (request["width"], request["height"], request["model"]) == (80, 64, "tiny")
    assert request["continue_from"] == source
    assert "resolution" not in request
    assert run.continued is not None
    assert run.continued.job == source


def test_dropped_again_it_starts_nothing_and_its_request_is_a_sidecar(bench: Bench) -> None:
    source = first(bench)
    bench.put("more.json", MORE | {"continue_from": source})
    job = bench.take_one()
    bench.put("more.json", MORE | {"continue_from": source})
    (added,) = bench.take()
    assert (added.jobs, added.known) == ([], [job])
    shutil.copyfile(bench.queue.path(State.PENDING, job) / "job.json", bench.inbox / "again.json")
    again = bench.take_one()
    assert bench.status(again)["request"] == bench.status(job)["request"]


def test_another_end_makes_another_job(bench: Bench) -> None:
    source = first(bench)
    bench.put("more.json", MORE | {"continue_from": source})
    job = bench.take_one()
    (bench.queue.path(State.DONE, source) / "latents.safetensors").write_bytes(b"another")
    bench.put("more.json", MORE | {"continue_from": source})
    assert bench.take_one() != job


@pytest.mark.parametrize("state", [State.PENDING, State.PROCESSING])
def test_it_waits_while_the_job_is_on_its_way(bench: Bench, state: State) -> None:
    bench.drop(keep_latents=True)
    source = bench.take_one()
    bench.queue.move(source, State.PENDING, State.PROCESSING)
    if state is State.PENDING:
        bench.queue.move(source, State.PROCESSING, State.PENDING)
    bench.put("more.json", MORE | {"continue_from": source})
    assert bench.take() == []
    assert halves(bench.inbox, bench.queue) == [("more.json", f"{source} to be done: it is {state}")]
    if state is State.PROCESSING:
        bench.queue.move(source, State.PROCESSING, State.PENDING)
    end(bench, source)
    assert bench.take_one().startswith("more-")


def test_a_job_that_runs_again_in_the_moment_of_taking_is_waited_for(bench: Bench) -> None:
    source = first(bench)
    bench.put("more.json", MORE | {"continue_from": source})
    (drop,) = bench.scanner.scan().drops
    bench.queue.move(source, State.DONE, State.PENDING)
    with pytest.raises(DropChangedError, match="it is pending"):
        bench.door.add(drop)
    assert bench.left() == ["more.json"]
    assert not list(bench.queue.building.iterdir())


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ("unknown", "there is no job", "status"),
        ("failed", "has no video, it failed", "retry"),
        ("cancelled", "has no video, it was cancelled", "retry"),
        ("kept nothing", "kept nothing to go on from", 'with "keep_latents": true; or copy outputs/'),
        ("pruned", "was pruned", 'copy outputs/SOURCE.mp4 to more.mp4 beside the sidecar, and write "continue_from"'),
    ],
)
def test_a_job_that_cannot_be_continued_is_refused_with_the_mend(
    bench: Bench, change: str, message: str, hint: str
) -> None:
    source = first(bench, latents=None if change == "kept nothing" else LATENTS)
    folder = bench.queue.path(State.DONE, source)
    match change:
        case "unknown":
            bench.queue.discard(folder)
        case "failed" | "cancelled":
            atomic.write_json(folder / OUTCOME_FILE, {"outcome": change})
            bench.queue.move(source, State.DONE, State.FAILED)
        case "pruned":
            prune(bench.queue, bench.outputs, keep=0, older_than_seconds=None, videos=False, forget=False)
    bench.put("more.json", MORE | {"continue_from": source})
    (added,) = bench.take()
    assert added.refusal is not None
    assert message in added.refusal.message
    assert source in added.refusal.message
    assert hint.replace("SOURCE", source) in added.refusal.hint
    assert bench.files(State.FAILED, added.jobs[0]) >= {"more.json", "run.json", "outcome.json"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 80, "height": 64}, None),
        ({"width": 64, "height": 64}, "goes on with the 80x64 of beach-"),
        ({"resolution": 320}, "goes on with the 80x64 of beach-"),
        ({"model": "tiny"}, None),
        ({"model": "framepack-i2v"}, "cannot go on from what tiny made"),
        ({"seconds": 1000}, "seconds"),
        ({"continue_from": 5}, "continue_from"),
        ({"continue_from": "elsewhere"}, "neither the id of a job nor the name of a video"),
        ({"continue_from": "x" * 10_000}, "xx… is neither"),
    ],
)
def test_size_and_model_are_those_of_the_job(bench: Bench, fields: dict[str, Any], message: str | None) -> None:
    source = first(bench)
    bench.put("more.json", {"prompt": "on", "continue_from": source} | fields)
    if message is None:
        assert bench.take_one()
    else:
        assert message in refused(bench).message
        assert not [name for name in bench.files(State.FAILED, bench.jobs(State.FAILED)[0]) if "continued" in name]


def test_one_framepack_model_may_continue_the_other(bench: Bench) -> None:
    source = first(bench, model="framepack-i2v")
    bench.put("f1/defaults.json", {"model": "framepack-f1", "resolution": 640})
    bench.put("f1/more.json", MORE | {"continue_from": source})
    bench.put("more.json", MORE | {"continue_from": source})
    found = [bench.status(added.jobs[0])["request"] for added in bench.take()]
    assert [request["model"] for request in found] == ["framepack-i2v", "framepack-f1"]
    assert {request["width"] for request in found} == {80}


def test_each_seed_of_a_drop_gets_the_end(bench: Bench) -> None:
    source = first(bench)
    bench.put("more.json", {"prompt": "on", "continue_from": source, "seeds": [5, 3]})
    (added,) = bench.take()
    assert [bench.status(job)["request"]["seed"] for job in added.jobs] == [5, 3]
    for job in added.jobs:
        assert (bench.queue.path(State.PENDING, job) / "continued.safetensors").read_bytes() == LATENTS


def test_an_end_frame_may_come_with_it(bench: Bench) -> None:
    source = first(bench)
    bench.put("more.last.png")
    bench.put("more.json", MORE | {"continue_from": source, "last_image": "more.last.png"})
    job = bench.take_one()
    assert bench.files(State.PENDING, job) >= {"more.last.png", "continued.png", "continued.safetensors"}


@pytest.mark.parametrize("named", ["a job", "a video"])
def test_a_picture_beside_it_contradicts(bench: Bench, clip: Path, named: str) -> None:
    source = first(bench)
    bench.put("more.png")
    bench.put("more.mp4", clip)
    bench.put("more.json", MORE | {"continue_from": source if named == "a job" else "more.mp4"})
    assert "more.png: stands beside" in refused(bench).message
    assert bench.left() == (["more.mp4"] if named == "a job" else [])


def test_what_continues_can_be_continued(bench: Bench, clip: Path) -> None:
    bench.put("one.mp4", clip)
    bench.put("one.json", MORE | {"continue_from": "one.mp4"})
    one = end(bench, bench.take_one())
    bench.put("two.json", MORE | {"continue_from": one})
    two = end(bench, bench.take_one(), latents=b"two")
    bench.put("three.json", MORE | {"continue_from": two})
    three = bench.take_one()
    folder, run = bench.queue.path(State.PENDING, three), record(bench, State.PENDING, three)
    video = run.file(Role.VIDEO)
    assert video is not None
    assert (folder / video.name).read_bytes() == clip.read_bytes()
    assert (folder / "continued.safetensors").read_bytes() == b"two"
    assert bench.status(three)["source"] == {"image": None, "video": "continued.mp4", "sidecar": "three.json"}


# -- a video -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("more.mp4", "more.mp4"),
        ("more.MP4", "more.mp4"),
        (unicodedata.normalize("NFD", "é.mp4"), unicodedata.normalize("NFC", "é.mp4")),
    ],
)
def test_a_video_beside_its_sidecar_is_taken_with_it(bench: Bench, clip: Path, name: str, named: str) -> None:
    bench.put(name, clip)
    bench.put(f"{Path(named).stem}.json", MORE | {"continue_from": named})
    job = bench.take_one()
    assert bench.left() == []
    run = record(bench, State.PENDING, job)
    video = run.file(Role.VIDEO)
    assert video is not None
    assert (bench.queue.path(State.PENDING, job) / video.name).read_bytes() == clip.read_bytes()
    assert bench.status(job)["source"] == {"image": None, "video": name, "sidecar": f"{Path(named).stem}.json"}
    assert bench.status(job)["request"]["continue_from"] == named


@pytest.mark.parametrize("beside", [None, {"prompt": "waves"}, {"prompt": "waves", "continue_from": "more.mkv"}])
@pytest.mark.parametrize("picture", [False, True])
def test_a_video_that_no_sidecar_names_is_left_alone(
    bench: Bench, clip: Path, beside: dict[str, Any] | None, *, picture: bool
) -> None:
    bench.put("defaults.json", {"prompt": "waves"})
    bench.put("more.mp4", clip)
    if beside:
        bench.put("more.json", beside)
    if picture:
        bench.put("more.png")
    taken = bench.take()
    assert len(taken) == picture
    assert "more.mp4" in bench.left()
    assert not any(name.endswith(".mp4") for name, _ in halves(bench.inbox, bench.queue))


def test_it_waits_for_the_video(bench: Bench, clip: Path) -> None:
    bench.put("more.json", MORE | {"continue_from": "more.mp4"})
    assert bench.take() == []
    assert halves(bench.inbox, bench.queue) == [("more.json", "the video more.mp4")]
    bench.put("more.mp4", clip)
    assert bench.take_one()


@pytest.mark.parametrize("named", ["clip.mp4", "More.mp4", "more.more.mp4"])
def test_a_video_of_another_name_is_refused_and_stays(bench: Bench, clip: Path, named: str) -> None:
    bench.put(named, clip)
    bench.put("more.json", MORE | {"continue_from": named})
    refusal = refused(bench)
    assert "not called like its sidecar" in refusal.message
    assert "call the video more.mp4" in refusal.hint
    assert bench.left() == [named]


def test_two_videos_of_one_name_are_refused_together(bench: Bench, clip: Path) -> None:
    bench.put("more.mp4", clip)
    bench.put("more.MP4", clip)
    bench.put("more.json", MORE | {"continue_from": "more.mp4"})
    assert "more than one video" in refused(bench).message
    assert bench.left() == []


def test_a_video_that_is_still_copied_is_waited_for(tmp_path: Path, picture: Path, clip: Path) -> None:
    bench = Bench(tmp_path / "b", picture, Timing(settle=0.05, incomplete=30, partner=0.05))
    data = clip.read_bytes()
    bench.put("more.mp4", data[: len(data) // 2])
    bench.put("more.json", MORE | {"continue_from": "more.mp4"})
    assert bench.take_after(0.4) == []
    bench.put("more.mp4", data)
    (added,) = bench.take_after(20)
    assert added.refusal is None


@pytest.mark.parametrize(("content", "code"), [(b"half", "incomplete_clip"), (b"text " * 99, "bad_clip")])
def test_a_video_that_cannot_be_used_is_refused(bench: Bench, clip: Path, content: bytes, code: str) -> None:
    data = clip.read_bytes()
    bench.put("more.mp4", data[: len(data) // 2] if content == b"half" else content)
    bench.put("more.json", MORE | {"continue_from": "more.mp4"})
    refusal = refused(bench)
    assert refusal.code == code
    assert refusal.message.startswith("more.mp4: ")
    assert bench.left() == []


# -- presets, retakes, directories -------------------------------------------------------------------------------------


def test_a_preset_gives_the_prompt_but_not_what_is_continued(bench: Bench, clip: Path) -> None:
    bench.put("defaults.json", {"prompt": "waves"})
    bench.put("more.mp4", clip)
    bench.put("more.json", {"continue_from": "more.mp4"})
    assert bench.status(bench.take_one())["request"]["prompt"] == "waves"
    bench.put("defaults.json", {"prompt": "waves", "continue_from": "more.mp4"})
    bench.put("more.png")
    assert bench.take() == []
    assert "defaults.json is wrong: continue_from" in halves(bench.inbox, bench.queue)[0][1]


@pytest.mark.parametrize("form", ["job", "video"])
def test_another_take_continues_the_same(bench: Bench, clip: Path, form: str) -> None:
    source = first(bench)
    bench.put("more.mp4", clip)
    bench.put("more.json", MORE | {"continue_from": source if form == "job" else "more.mp4"})
    job = bench.take_one()
    bench.queue.discard(bench.queue.path(State.DONE, source))
    (take,) = submit.retake(bench.queue, bench.outputs, job, "tiny")
    assert take != job
    assert bench.status(take)["request"] | {"seed": 1} == bench.status(job)["request"]
    old, new = record(bench, State.PENDING, job), record(bench, State.PENDING, take)
    assert [(item.role, item.sha256) for item in old.files if item.role is not Role.SIDECAR] == [
        (item.role, item.sha256) for item in new.files if item.role is not Role.SIDECAR
    ]
    assert new.continued == old.continued


def test_a_mended_sidecar_goes_on_from_the_same_end(bench: Bench) -> None:
    source = first(bench)
    bench.put("more.json", MORE | {"continue_from": source})
    job = bench.take_one()
    bench.queue.discard(bench.queue.path(State.DONE, source))
    for fields in ({"seconds": 1000}, None, {"prompt": "mended"}):  # wrong ones in between
        (folder,) = (
            bench.queue.path(state, name)
            for state in (State.PENDING, State.FAILED)
            for name in bench.jobs(state)
            if name.startswith("more-")
        )
        whole = json.dumps(MORE | {"frames": None, "continue_from": source} | (fields or {}))
        (folder / "more.json").write_text(whole if fields else whole[:-9])
        added = bench.door.add_again(folder)
    assert added.refusal is None
    assert added.jobs != [job]
    request = bench.status(added.jobs[0])["request"]
    assert (request["prompt"], request["width"], request["model"]) == ("mended", 80, "tiny")
    run = record(bench, State.PENDING, added.jobs[0])
    assert {item.role for item in run.files} == {Role.IMAGE, Role.LATENTS, Role.SIDECAR}


def test_a_sidecar_that_now_names_another_job_takes_the_end_of_that(bench: Bench) -> None:
    source, other = first(bench), first(bench, latents=b"other", prompt="other")
    bench.put("more.json", MORE | {"continue_from": source})
    folder = bench.queue.path(State.PENDING, bench.take_one())
    (folder / "more.json").write_text(json.dumps(MORE | {"continue_from": other}))
    (job,) = bench.door.add_again(folder).jobs
    assert (bench.queue.path(State.PENDING, job) / "continued.safetensors").read_bytes() == b"other"
    run = record(bench, State.PENDING, job)
    assert run.continued is not None
    assert run.continued.job == other

    folder = bench.queue.path(State.PENDING, job)
    (folder / "more.json").write_text(json.dumps(MORE))
    refusal = bench.door.add_again(folder).refusal
    assert refusal is not None
    assert "holds 0 pictures" in refusal.message


@pytest.mark.parametrize("form", ["job", "video", "job that runs", "unnamed video"])
def test_a_directory_put_into_pending_by_hand(bench: Bench, clip: Path, form: str) -> None:
    source = first(bench)
    if form == "job that runs":
        bench.queue.move(source, State.DONE, State.PENDING)
    place = bench.queue.path(State.PENDING, "mine")
    place.mkdir()
    named = {"video": "more.mp4", "unnamed video": None}.get(form, source)
    (place / "more.json").write_text(json.dumps(MORE | {"continue_from": named}))
    if "video" in form:
        shutil.copyfile(clip, place / "more.mp4")
    if form == "unnamed video":
        shutil.copyfile(bench.picture, place / "more.png")
    (place / "latents.safetensors").write_bytes(b"kept by an earlier run")
    added = bench.door.add_again(place)
    if form == "job that runs":
        assert added.refusal is not None
        assert "it is pending" in added.refusal.message
        return
    assert added.refusal is None
    run = record(bench, State.PENDING, added.jobs[0])
    roles = {
        "job": {Role.IMAGE, Role.LATENTS},
        "video": {Role.VIDEO},
        "unnamed video": {Role.IMAGE, Role.ASIDE},
    }[form]
    assert {item.role for item in run.files} == {Role.SIDECAR, *roles}
    assert "latents.safetensors" not in bench.files(State.PENDING, added.jobs[0])


def test_a_done_continuation_runs_again_by_moving_it(bench: Bench) -> None:
    source = first(bench)
    bench.put("more.json", MORE | {"continue_from": source})
    job = end(bench, bench.take_one(), latents=b"more")
    bench.queue.discard(bench.queue.path(State.DONE, source))
    bench.keeper.tidy(frozenset())
    bench.queue.move(job, State.DONE, State.PENDING)
    bench.keeper.tidy(frozenset())
    assert bench.jobs(State.PENDING) == [job]
    assert bench.status(job)["state"] == "pending"


# -- without a drop folder ---------------------------------------------------------------------------------------------


def enter(bench: Bench, sidecar: dict[str, Any], video: Path | None = None) -> list[str]:
    return submit.submit(
        bench.queue, bench.outputs, image=None, sidecar=sidecar, last_image=None, model="tiny", video=video
    )


def test_submit_takes_a_job_or_a_video_in_place_of_a_picture(bench: Bench, clip: Path) -> None:
    source = first(bench)
    (job,) = enter(bench, MORE | {"continue_from": source})
    assert job.startswith("beach-")
    assert bench.status(job)["request"]["width"] == 80
    (job,) = enter(bench, MORE | {"continue_from": "clip.mp4"}, clip)
    assert job.startswith("clip-")
    assert bench.files(State.PENDING, job) >= {"clip.mp4", "clip.json"}
    assert clip.exists()


def test_submit_writes_nothing_when_the_job_cannot_be_continued_now(bench: Bench) -> None:
    source = first(bench)
    bench.queue.move(source, State.DONE, State.PROCESSING)
    with pytest.raises(FramepackError, match="it is processing"):
        enter(bench, MORE | {"continue_from": source})
    with pytest.raises(RequestError, match="no job"):
        enter(bench, MORE | {"continue_from": "beach-000000000000"})
    assert bench.jobs(State.PENDING) == bench.jobs(State.FAILED) == []


def test_a_lone_sidecar_is_read_once_while_it_stays_as_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from framepack_daemon.spool import inbox

    reads: list[Path] = []
    monkeypatch.setattr(inbox, "continued_by", reads.append)
    lone = bench.put("lone.json", MORE)
    for _ in range(3):
        assert bench.take() == []
    assert reads == [lone]
    bench.put("lone.json", MORE | {"seed": 22})
    bench.take()
    assert reads == [lone, lone]
