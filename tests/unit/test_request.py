"""What a sidecar may say, and the forty ways of saying it wrong. Run as a script, it prints the messages."""

from __future__ import annotations

import json

import pytest

from framepack_daemon.errors import RequestError, RequestIncompleteError
from framepack_daemon.request import build, effective
from framepack_daemon.strict_json import parse_json

MINIMAL = {"prompt": "waves"}


def wrong(**fields: object) -> bytes:
    """A sidecar with a good prompt and these fields."""
    return json.dumps(MINIMAL | fields).encode()


# (what stands in the file, a part of the message, a part of the hint)
WRONG: list[tuple[bytes, str, str]] = [
    (b"", "is empty", '{"prompt"'),
    (b"   \n", "is empty", '{"prompt"'),
    (b'{"prompt": "waves"', "ends too early, at line 1", "closing }"),
    (b'{"prompt": "waves', "begins at line 1, column 12 has no end", 'close it with a "'),
    (b'{"prompt": "waves",}', "a comma too many", "remove that comma"),
    (b"{'prompt': 'waves'}", "line 1, column 2: quotes that JSON does not know", 'double quotes, as in "prompt"'),
    ('{“prompt”: "waves"}'.encode(), "quotes that JSON does not know", 'double quotes, as in "prompt"'),
    (b"{prompt: 1}", "a name without quotes", 'double quotes, as in "prompt"'),
    (b'{"prompt": "a" "seed": 1}', "no comma before this", "add it"),
    (b'{"prompt" "a"}', "no colon before this", "add it"),
    (b'{"prompt": "a"}\n{"prompt": "b"}', "line 2, column 1: something follows", "keep one object"),
    (b'{"prompt": "a"} // a comment', "line 1, column 17: a comment", "remove it"),
    (b'{\n  # a comment\n  "prompt": "a"\n}', "line 2, column 3: a comment", "remove it"),
    (b'{"prompt": "a", "use_teacache": False}', "True and False are not JSON", "true or false"),
    (b'{"prompt": "a", "model": None}', "None is not JSON", "null"),
    (b'{"prompt": "a", "crf": +5}', "not a number as JSON writes it", "5 for +5"),
    (b'{"prompt": "a\nb"}', "a line break inside a text", "\\n"),
    (b'{"prompt": "a\tb"}', "a tab inside a text", "\\t"),
    (b'{"prompt": "a\x07b"}', "a control character inside a text", "remove it"),
    (b'{"prompt": "C:\\dir"}', "a backslash that means nothing", "\\\\"),
    (b"waves", "line 1, column 1: is not JSON", '{"prompt"'),
    (b'{"prompt": "' + b"x" * (1 << 20) + b'"}', "is 1048590 bytes long", "at most 1048576"),
    (b'{"\\u001b[31m": 1, "prompt": "a"}', "\\x1b[31m: unknown field", "known fields"),
    (b'{"' + b"x" * 1000 + b'": 1, "prompt": "a"}', "x…: unknown field", "known fields"),
    (b'{"\\ud800": 1, "prompt": "a"}', "the name of a field: has half a character", "again"),
    (b'\xef\xbb\xbf{"prompt": "waves"}', "byte order mark", "UTF-8 without"),
    ('{"prompt": "waves"}'.encode("utf-16"), "UTF-16", "UTF-8 without"),
    (b'{"prompt": "caf\xe9"}', "byte 15 is not UTF-8", "save it as UTF-8"),
    (b'["waves"]', "holds a list at its top", "must be an object"),
    (b'"waves"', "holds text at its top", "must be an object"),
    (b"[" * 100_000, "nested too deeply", "flat object"),
    (b'{"prompt": "a", "prompt": "b"}', "prompt: is given twice", "remove one"),
    (b'{"prompt": "a", "seconds": NaN}', "seconds: NaN is not a finite number", "from 0.1 to 120"),
    (b'{"prompt": "a", "seconds": -Infinity}', "seconds: -Infinity is not a finite number", "from 0.1 to 120"),
    (b'{"prompt": "a", "seconds": 1e999}', "seconds: Infinity is not a finite number", "from 0.1 to 120"),
    (b'{"prompt": "a", "seed": ' + b"9" * 4301 + b"}", "seed: 9999", "a whole number from 0"),
    (b'{"prompt": "\\ud800"}', "prompt: has half a character", "again"),
    (b'{"prompt": "a\\u0000b"}', "prompt: has a NUL", "remove it"),
    (b"{}", "prompt: is missing", "add prompt"),
    (wrong(prompt=""), "prompt: is empty", "write prompt"),
    (wrong(prompt=" \n"), "prompt: is blank", "say what happens"),
    (wrong(prompt="x" * 10_001), "prompt: is too long", "at most 10000"),
    (wrong(prompt=5), "prompt: 5 is a number", "text in quotes"),
    (wrong(prompt=[]), "prompt: is empty", "write prompt"),
    (wrong(prompt=[5]), "prompt[0]: 5 is a number", 'like [{"at": 0'),
    (wrong(prompt=[{"at": 1, "text": "a"}]), "prompt: the first text holds from 1 s on", "set its at to 0"),
    (wrong(prompt=[{"at": "0", "text": "a"}]), 'prompt[0].at: "0" is text', "a number from 0 to 120"),
    (wrong(prompt=[{"at": 0, "text": " "}]), "prompt[0].text: is blank", "say what happens"),
    (wrong(prompt=[{"at": 0, "txt": "a"}]), "prompt[0].text: is missing; prompt[0].txt: unknown", 'like [{"at": 0'),
    (wrong(prompt=[{"at": 0, "text": "a"}] * 2), "prompt: its times do not rise", "in order"),
    (
        wrong(seconds=2, prompt=[{"at": 0, "text": "a"}, {"at": 2, "text": "b"}]),
        "prompt: the text at 2 s begins after the video's end at 2.00 s",
        "earlier time",
    ),
    (wrong(stpes=25), "stpes: unknown field", "did you mean steps?"),
    (wrong(colour="red"), "colour: unknown field", "known fields: prompt"),
    (wrong(seconds=500), "seconds: 500 is out of range", "from 0.1 to 120"),
    (wrong(seconds="5"), 'seconds: "5" is text', "a number from 0.1 to 120"),
    (wrong(seconds=5, frames=100), "seconds and frames", "remove one"),
    (wrong(frames=0), "frames: 0 is out of range", "from 1 to 3601"),
    (wrong(frames=37.5), "frames: 37.5 is not a whole number", "a whole number from 1 to 3601"),
    (wrong(seed=-2), "seed: -2 is out of range", "-1 (draw one) or a whole number from 0"),
    (wrong(seed=True), "seed: is true", "a whole number"),
    (wrong(seed=2**63), "seed: 9223372036854775808 is out of range", "a whole number from 0"),
    (b'{"prompt": "a", "seed": 1e999}', "seed: Infinity is not a whole number", "a whole number from 0"),
    (wrong(gs=99), "gs: 99 is out of range", "gs is a number from 1 to 32"),
    (wrong(sampling_mode="sideways"), 'sampling_mode: "sideways" is not a choice', "reverse or forward"),
    (wrong(transformer_model="f2"), 'transformer_model: "f2" is not a choice', "base or f1"),
    (wrong(cache="teacache"), 'cache: "teacache" is not a choice', "none or first_block"),
    (wrong(use_teacache="on"), 'use_teacache: "on" is not a choice', "false or true"),
    (wrong(codec="h265"), 'codec: "h265" is not a choice', "codec is h264 or hevc"),
    (wrong(notify="me"), 'notify: "me" is text', "notify is true or false"),
    (wrong(notify=["json://elsewhere/"]), "notify: ", "notify is true or false"),
    (wrong(seeds=[]), "seeds: is empty", "remove the field"),
    (wrong(seeds=[1, 1]), "seeds: has a seed twice", "each once"),
    (wrong(seeds=[1, -1]), "seeds[1]: -1 is out of range", "a whole number from 0"),
    (wrong(seeds=[1.5]), "seeds[0]: 1.5 is not a whole number", "a whole number from 0"),
    (wrong(seeds=7), "seeds: 7 is a number", "like [1, 2, 3]"),
    (wrong(seeds=list(range(101))), "seeds: has 101 parts", "at most 100"),
    (wrong(seeds=[1, 2], seed=3), "seeds: stands beside seed", "keep one"),
    (wrong(continue_from="../more.mp4"), "continue_from: must be the bare name", "the id of a job"),
    (wrong(keep_latents="yes"), 'keep_latents: "yes" is text', "true or false"),
    (wrong(gpu_memory_preservation=-1), "gpu_memory_preservation: -1 is out of range", "from 0 to 128"),
    (wrong(priority=1.5), "priority: 1.5 is not a whole number", "from -100 to 100"),
    (wrong(prompt={}), "prompt: {} is an object", "text in quotes"),
    (wrong(prompt=None), "prompt: is null", "text in quotes"),
    (wrong(Prompt="b"), "Prompt: unknown field", "did you mean prompt?"),
    (wrong(num_frames=9), "num_frames: unknown field", "did you mean frames?"),
    (wrong(model="../../secret"), 'model: "../../secret" is not a choice', "tiny"),
    (wrong(lora_path="/etc/passwd"), "lora_path: must be the bare name", "into loras_dir"),
    (wrong(lora_path="a.pt", lora_scale="1"), 'lora_scale: "1" is text', "a number from -10 to 10"),
    (wrong(lora_path="a.pt", loras=[]), "loras and lora_path: are two names", "remove one"),
    (wrong(last_image="~root"), "last_image: must be the bare name", "beach.last.jpg"),
    (wrong(last_image="a\0b"), "last_image: has a NUL", "remove it"),
    (wrong(last_image=".."), "last_image: must be the bare name", "beach.last.jpg"),
    (wrong(resolution=10_000), "resolution: 10000 is ", "from 320 to 960"),
    (wrong(num_inference_steps=0), "num_inference_steps: 0", "from 1 to 100"),
    (
        wrong(steps=25, num_inference_steps=25),
        "steps and num_inference_steps: are two names of one field",
        "remove one",
    ),
    (wrong(width=100, height=64), "width: 100 is not a multiple of 16", "from 64 to 2048"),
    (wrong(width=16, height=64), "width: 16 is out of range", "from 64 to 2048"),
    (wrong(width=64), "one is given without the other", "give both"),
    (wrong(resolution=640, width=64, height=64), "resolution: is given beside", "remove one"),
    (wrong(model="sora"), 'model: "sora" is not a choice', "framepack-i2v"),
    (wrong(sampling="backwards"), "sampling:", "inverted_anti_drifting"),
    (wrong(crf=52), "crf: 52", "from 1 to 51"),
    (wrong(last_image="../../etc/passwd"), "last_image: must be the bare name", "beach.last.jpg"),
    (wrong(last_image="/etc/passwd"), "last_image: must be the bare name", "beach.last.jpg"),
    (wrong(last_image="b.last.jpg", sampling="vanilla"), "last_image: sampling vanilla", "inverted_anti_drifting"),
    (wrong(loras="x"), 'loras: "x" is text', 'like [{"name"'),
    (wrong(loras=[{"name": "~/x"}]), "loras[0].name: must be the bare name", "into loras_dir"),
    (wrong(loras=[{"name": "x", "scale": 11}]), "loras[0].scale: 11 is out of range", "from -10 to 10"),
    (wrong(loras=[{"nam": "x"}]), "loras[0].name: is missing; loras[0].nam: unknown field", 'like [{"name"'),
    (wrong(loras=[{"name": "x"}] * 2), "loras: names a file twice", "each once"),
    (wrong(variations=1000), "variations: 1000", "from 1 to 100"),
    (wrong(guidance_scale=None), "guidance_scale: is null", "a number from 1 to 32"),
    (wrong(seconds=500, crf=99), "seconds: 500 is out of range; crf: 99", "crf is"),
]


def complaint(data: bytes) -> RequestError:
    """What is said of a wrong sidecar."""
    with pytest.raises(RequestError) as caught:
        effective(build(parse_json(data)), "tiny")
    return caught.value


@pytest.mark.parametrize(("data", "message", "hint"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_sidecar_is_told_what_is_wrong_and_how_to_mend_it(data: bytes, message: str, hint: str) -> None:
    error = complaint(data)
    assert message in error.message
    assert hint in error.hint


def test_the_messages_differ_from_one_another() -> None:
    messages = [complaint(data).message for data, *_ in WRONG]
    assert len(set(messages)) >= 40


def test_no_message_speaks_of_the_machinery() -> None:
    for data, *_ in WRONG:
        said = complaint(data)
        text = f"{said.message} {said.hint}"
        assert text.isprintable()
        assert len(said.message) < 200
        for jargon in ("pydantic", "Expecting", "delimiter", "str_", "int_", "dict", "surrogates", "NoneType", "Value"):
            assert jargon not in text


def test_a_document_that_breaks_off_anywhere_may_still_be_on_its_way() -> None:
    whole = rb'{"prompt": "caf\u00e9 \n", "x": [true, null, -2, 1.5e+1, NaN, -Infinity], "y": {"z": false}}'
    parse_json(whole)
    for end in range(len(whole)):
        for filling in (b"", bytes(20)):
            with pytest.raises(RequestIncompleteError):
                parse_json(whole[:end] + filling)


@pytest.mark.parametrize("data", [b'{"prompt": "a" "b"}', b"[]", wrong(crf=99)])
def test_a_document_that_is_wrong_is_not_waited_for(data: bytes) -> None:
    assert not isinstance(complaint(data), RequestIncompleteError)


@pytest.mark.parametrize(
    ("seconds", "sections", "frames"),
    [(0.1, 1, 3), (1, 1, 30), (1.2, 1, 36), (1.3, 1, 37), (5, 4, 145), (6, 5, 180), (60, 50, 1800), (120, 100, 3600)],
)
def test_seconds_give_the_reference_s_sections_trimmed_when_over(seconds: float, sections: int, frames: int) -> None:
    request = build(MINIMAL | {"seconds": seconds})
    assert (request.sections, request.video_frames) == (sections, frames)


def test_any_length_is_rendered_in_full_and_never_longer_than_asked() -> None:
    for tenths in range(1, 1201):
        request = build(MINIMAL | {"seconds": tenths / 10})
        assert request.sections == max(round(tenths / 10 * 30 / 36), 1)
        assert request.video_frames == min(36 * request.sections + 1, round(tenths / 10 * 30))
    for frames in range(1, 3602):
        request = build(MINIMAL | {"frames": frames})
        assert request.video_frames == frames
        assert 36 * (request.sections - 1) + 1 < max(frames, 2) <= 36 * request.sections + 1


@pytest.mark.parametrize(("frames", "sections"), [(1, 1), (36, 1), (37, 1), (38, 2), (73, 2), (74, 3), (3601, 100)])
def test_frames_are_exact(frames: int, sections: int) -> None:
    request = build(MINIMAL | {"frames": frames})
    assert (request.sections, request.video_frames) == (sections, frames)


@pytest.mark.parametrize(("frames", "rendered"), [(1, 37), (50, 37), (60, 73), (73, 73), (100, 109)])
def test_with_an_end_frame_nothing_is_trimmed(frames: int, rendered: int) -> None:
    assert build(MINIMAL | {"frames": frames, "last_image": "beach.last.jpg"}).video_frames == rendered


def test_the_original_s_names_are_understood() -> None:
    original = {
        "video_length": 5.0, "gs": 9.0, "cfg": 2.0, "rs": 0.5, "mp4_crf": 18.0, "n_prompt": "blur", "steps": 20,
        "use_teacache": True, "sampling_mode": "forward", "transformer_model": "f1", "lora_path": "a.pt",
        "lora_scale": 0.5,
    }  # fmt: skip
    ours = {
        "seconds": 5.0, "guidance_scale": 9.0, "true_cfg_scale": 2.0, "guidance_rescale": 0.5, "crf": 18,
        "negative_prompt": "blur", "num_inference_steps": 20, "cache": "first_block",
        "sampling": "vanilla", "model": "framepack-f1", "loras": [{"name": "a.pt", "scale": 0.5}],
    }  # fmt: skip
    assert build(MINIMAL | original) == build(MINIMAL | ours)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"frames": 40},
        {"width": 64, "height": 80},
        {"seed": 5},
        {"model": "tiny"},
        {"seeds": [5]},
        {"prompt": [{"at": 0, "text": "a"}, {"at": 2, "text": "b"}]},
        {"loras": [{"name": "x"}], "codec": "hevc"},
    ],
)
def test_the_effective_request_is_a_sidecar_that_asks_for_the_same(fields: dict[str, object]) -> None:
    once = effective(build(MINIMAL | fields), "framepack-f1")
    again = effective(build(parse_json(json.dumps(once.as_sidecar()).encode())), "framepack-i2v")
    assert again == once


def test_a_seed_is_drawn_and_variations_follow_one_another() -> None:
    drawn = {effective(build(MINIMAL), "tiny").seed for _ in range(20)}
    assert len(drawn) > 1
    assert min(drawn) >= 0
    request = build(MINIMAL | {"seed": 7})
    assert [effective(request, "tiny", variation=number).seed for number in range(3)] == [7, 8, 9]


def test_seeds_give_a_job_each() -> None:
    request = build(MINIMAL | {"seeds": [5, 3]}, {"seed": 1, "variations": 9})
    assert request.takes == 2
    made = [effective(request, "tiny", variation=number) for number in range(2)]
    assert [(one.seed, one.seeds, one.takes) for one in made] == [(5, None, 1), (3, None, 1)]


def test_the_preset_s_variations_stand_beside_a_sidecar_s_seed_and_give_way_to_its_seeds() -> None:
    assert build(MINIMAL | {"seed": 1}, {"variations": 3}).takes == 3
    assert build(MINIMAL | {"seed": 1}, {"seeds": [2, 3]}).takes == 1


def test_a_timed_prompt_holds_from_its_time_on() -> None:
    request = build({"prompt": [{"at": 0, "text": "a"}, {"at": 2.5, "text": "b"}]})
    assert [request.text_at(time) for time in (0.0, 2.49, 2.5, 4.8)] == ["a", "a", "b", "b"]
    assert build(MINIMAL).text_at(99.0) == "waves"


@pytest.mark.parametrize("nothing", [None, "", "none"])
def test_the_original_s_form_without_a_lora_asks_for_none(nothing: object) -> None:
    assert build(MINIMAL | {"lora_path": nothing, "lora_scale": 1.0}).loras == []


def test_a_sidecar_s_way_of_saying_length_and_size_replaces_the_preset_s() -> None:
    preset = {"seconds": 3, "resolution": 480, "prompt": "preset"}
    request = build({"frames": 10, "width": 64, "height": 64}, preset)
    assert (request.frames, request.seconds, request.resolution, request.prompt) == (10, None, None, "preset")


def table() -> str:
    """What is said of each wrong sidecar, as Markdown."""
    rows = ["| sidecar | message | hint |", "|---|---|---|"]
    for data, *_ in WRONG:
        shown = repr(data)[2:-1]
        error = complaint(data)
        cells = [f"`{shown if len(shown) < 60 else shown[:57] + '...'}`", error.message, error.hint]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())  # noqa: T201
