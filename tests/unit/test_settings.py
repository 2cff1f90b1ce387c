from __future__ import annotations

import os
from pathlib import Path

import pytest

from framepack_daemon import settings
from framepack_daemon.errors import EXIT_CONFIGURATION, ConfigurationError
from framepack_daemon.settings import Settings, load


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("FRAMEPACK_") or name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "SYSTEM_CONFIG", tmp_path / "no-such-system-config.toml")
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problem(flags: dict[str, object] | None = None, config: Path | None = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(flags or {}, config)
    assert caught.value.exit_code == EXIT_CONFIGURATION
    return caught.value


def test_flag_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "c.toml", "max_attempts = 4\nrescan_seconds = 5\npoll_seconds = 6")
    monkeypatch.setenv("FRAMEPACK_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("FRAMEPACK_RESCAN_SECONDS", "8")
    found, warnings = load({"max_attempts": "9"}, config)
    assert (found.max_attempts, found.rescan_seconds, found.poll_seconds, found.settle_seconds) == (9, 8.0, 6.0, 2.0)
    assert warnings == []


def test_config_file_from_environment_and_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEPACK_CONFIG", str(write(tmp_path / "a.toml", "threads = 2")))
    assert load()[0].threads == 2
    assert load({}, write(tmp_path / "b.toml", "threads = 3"))[0].threads == 3


def test_system_config_counts_when_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load()[0].model == "tiny"
    monkeypatch.setattr(settings, "SYSTEM_CONFIG", write(tmp_path / "etc.toml", 'model = "framepack-f1"'))
    assert load()[0].model == "framepack-f1"


def test_default_folders_follow_the_inbox(tmp_path: Path) -> None:
    found, _ = load({"inbox": "share/in"})
    assert found.inbox == tmp_path / "share/in"
    assert found.queue_dir == tmp_path / "share/queue"
    assert found.loras_dir == tmp_path / "share/loras"
    assert found.outputs == tmp_path / "outputs"


def test_work_dir_is_one_per_queue_and_honours_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, other = load({"inbox": "a/in"})[0].work_dir, load({"inbox": "b/in"})[0].work_dir
    assert one != other
    assert one.parent == tmp_path / "cache/framepack-daemon/work"
    assert len(one.name) == 12
    assert load({"inbox": "a/in"})[0].work_dir == one
    assert load({"inbox": "elsewhere", "queue_dir": "a/queue"})[0].work_dir == one


def test_models_dir_is_the_hugging_face_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load()[0].models_dir == Path("~/.cache/huggingface/hub").expanduser().resolve()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert load()[0].models_dir == tmp_path / "hf/hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load()[0].models_dir == tmp_path / "hub"


def test_folders_are_absolute_and_those_of_a_file_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    found, _ = load({"outputs": "~/out"}, write(tmp_path / "etc/c.toml", 'inbox = "drop"'))
    assert found.inbox == tmp_path / "etc/drop"
    assert found.outputs == Path("~/out").expanduser().resolve()


def test_settings_are_frozen() -> None:
    found, _ = load()
    with pytest.raises(ValueError, match="frozen"):
        found.model = "framepack-i2v"


def test_a_settings_object_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEPACK_MAX_ATTEMPTS", "7")
    assert Settings().max_attempts == 3


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("device", "gpu", "cuda:0,1"),
        ("device", "cuda:", "cuda:0,1"),
        ("model", "framepack", "one of framepack-i2v, framepack-f1, tiny"),
        ("memory", "tiny", "one of auto, resident, balanced, low, minimal"),
        ("threads", "0", "a whole number from 1 to 1024"),
        ("max_attempts", "2.5", "a whole number from 1 to 100"),
        ("rescan_seconds", "nan", "a number from 0.05 to 3600"),
        ("settle_seconds", "soon", "a number from 0 to 3600"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("inbox", "a\0b", "the path of a folder"),
    ],
)
def test_a_wrong_setting_names_itself_its_value_its_origin_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    error = problem({name: value})
    assert error.message.startswith(f"{name}: {value!r} from --{name.replace('_', '-')} ")
    assert allowed in error.hint


def test_the_origin_is_the_variable_or_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "c.toml", "threads = -1")
    assert f"-1 in {config}" in problem({}, config).message
    monkeypatch.setenv("FRAMEPACK_THREADS", "many")
    assert "'many' from FRAMEPACK_THREADS" in problem({}, config).message


def test_every_wrong_setting_is_named_at_once() -> None:
    message = problem({"device": "x", "threads": "y", "inbox": "\0"}).message
    assert all(f"{name}:" in message for name in ("device", "threads", "inbox"))
    assert "queue_dir" not in message


@pytest.mark.parametrize("value", ["auto", "cpu", "cuda", "cuda:0", "cuda:0,1,12"])
def test_devices(value: str) -> None:
    assert load({"device": value})[0].device == value


def test_log_settings_are_read_without_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEPACK_LOG_LEVEL", "DEBUG")
    assert load()[0].log_level == "debug"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEPACK_THREADS", "")
    assert load()[0].threads is None


def test_unknown_variables_are_warned_of_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FRAMEPACK_OUTPUT", "FRAMEPACK_WEB_PORT", "FRAMEPACK_MODEL"):
        monkeypatch.setenv(name, "tiny")
    assert load()[1] == ["FRAMEPACK_OUTPUT is set but is no setting; did you mean FRAMEPACK_OUTPUTS?"]


def test_an_unknown_key_in_the_file_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    error = problem({}, write(tmp_path / "c.toml", "setle_seconds = 1"))
    assert error.message.startswith("setle_seconds: unknown setting in ")
    assert error.hint == "did you mean settle_seconds?"


def test_a_file_that_is_not_there_or_not_toml_says_so(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert str(missing) in problem({}, missing).message
    assert "line 2" in problem({}, write(tmp_path / "c.toml", 'inbox = "a"\nmodel = tiny')).message


def test_one_folder_cannot_have_two_roles() -> None:
    error = problem({"outputs": "inbox"})
    assert error.message.startswith("outputs: ")
    assert "is the inbox already" in error.message


def test_control_characters_of_a_value_do_not_reach_the_message() -> None:
    assert "\x1b" not in problem({"device": "\x1b[2J"}).message


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        if name.endswith("_seconds"):
            assert "econds" in field.description, name
        assert settings.allowed(name)


def test_the_page_on_settings_has_every_setting_with_its_default_and_range() -> None:
    page = (Path(__file__).parents[2] / "docs/settings.md").read_text()
    for name, field in Settings.model_fields.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        if isinstance(field.default, bool):
            assert f"| `{str(field.default).lower()}` |" in row
        elif isinstance(field.default, (int, float)):
            assert f"| `{field.default:g}` |" in row
        assert settings.allowed(name).removeprefix("the path of ") in row
        assert (field.description or "").partition(" Default: ")[0] in row
