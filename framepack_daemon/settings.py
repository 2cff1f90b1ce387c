"""What an operator can set: one frozen object, its sources in a fixed order, and messages for what is wrong.

`load` lays flags over the environment (`FRAMEPACK_*`) over a TOML file over the defaults, and remembers for each value
where it came from, so that a message can say so. Each field carries the text of its command-line flag.
Reads the environment and one file; looks at no folder, and knows neither the queue nor the command line.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from framepack_daemon.errors import ConfigurationError
from framepack_daemon.printable import printable
from framepack_daemon.request import ModelName

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "FRAMEPACK_"
CONFIG_VARIABLE = "FRAMEPACK_CONFIG"
WEB_PREFIX = "FRAMEPACK_WEB_"  # the gateway's own settings
SYSTEM_CONFIG = Path("/etc/framepack-daemon/config.toml")
SECRET = {"notify_urls"}  # settings whose value no message shows

DEVICE_PATTERN = r"^(auto|cpu|cuda|cuda:\d{1,3}(,\d{1,3})*)$"


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except RuntimeError as error:  # of ~name, where nobody is called so
        raise ValueError(str(error)) from error


def _text_file(path: Path) -> Path:
    if path.suffix != ".prom":
        raise ValueError("node_exporter would not read it")
    return _absolute(path)


def _with_scheme(address: SecretStr) -> SecretStr:
    if "://" not in address.get_secret_value():
        raise ValueError("no URL")
    return address


def _words(value: Any) -> Any:
    """The words of a text; commas and spaces are between them."""
    return re.split(r"[\s,]+", value.strip(" ,").lower()) if isinstance(value, str) else value


def _addresses(value: Any) -> Any:
    """The URLs in a text; a comma may be part of one, unless another URL follows."""
    return re.split(r"[\s,]+(?=[\w+.-]+://)", value.strip(" ,")) if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _beside_inbox(name: str) -> Callable[[dict[str, Any]], Path]:
    return lambda values: values["inbox"].parent / name


def _default_work_dir(values: dict[str, Any]) -> Path:
    """A folder of its own for each queue: two daemons on one machine never share scratch."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    queue = hashlib.sha256(os.fsencode(values["queue_dir"])).hexdigest()[:12]
    return cache / "framepack-daemon" / "work" / queue


def _default_models_dir() -> Path:
    """Where the Hugging Face libraries keep their files."""
    if hub := os.environ.get("HF_HUB_CACHE"):
        return Path(hub)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface") / "hub"


Folder = Annotated[Path, AfterValidator(_absolute)]
Address = Annotated[SecretStr, AfterValidator(_with_scheme)]
Occasion = Literal["done", "failed", "queue_empty", "circuit_open"]


class Settings(BaseSettings):
    """The daemon's settings; folders are absolute, times are in seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX, env_ignore_empty=True)

    inbox: Folder = Field(default=Path("inbox"), description="Folder in which pictures and sidecars are dropped.")
    outputs: Folder = Field(default=Path("outputs"), description="Folder for videos, posters and status files.")
    queue_dir: Folder = Field(
        default_factory=_beside_inbox("queue"),
        description="Folder of the jobs, a sub-folder for each state. Default: queue beside the inbox.",
    )
    work_dir: Folder = Field(
        default_factory=_default_work_dir,
        description="Scratch for jobs that run, on a local disk. Default: a folder of this queue's own in ~/.cache.",
    )
    models_dir: Folder = Field(
        default_factory=_default_models_dir, description="Folder of the model files. Default: the Hugging Face cache."
    )
    loras_dir: Folder = Field(
        default_factory=_beside_inbox("loras"), description="Folder of the LoRA files. Default: loras beside the inbox."
    )
    model: ModelName = Field(
        default="tiny", description="Model for jobs that name none; tiny is a toy for trying things out."
    )
    device: str = Field(
        default="auto",
        pattern=DEVICE_PATTERN,
        description="auto (every NVIDIA GPU, else the CPU), cpu, cuda (every GPU), or cuda:0,1 (these GPUs).",
        json_schema_extra={"allowed": "auto, cpu, cuda, or cuda: and GPU numbers like cuda:0,1"},
    )
    memory: Literal["auto", "resident", "balanced", "low", "minimal"] = Field(
        default="auto", description="Memory plan, from the fastest to the smallest; auto fits it to what is free."
    )
    gpu_memory_preservation: float = Field(
        default=1.0, ge=0, le=128, description="GiB of each GPU to leave free; 6 keeps a desktop usable."
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads of a worker. Default: one for each core."
    )
    rescan_seconds: float = Field(
        default=10.0,
        ge=0.05,
        le=3600,
        description="Seconds between two looks at a local inbox, beside the system's notices.",
    )
    poll_seconds: float = Field(
        default=2.0,
        ge=0.05,
        le=3600,
        description="Seconds between two looks at an inbox on a network share, where there are no notices.",
    )
    settle_seconds: float = Field(
        default=2.0, ge=0, le=3600, description="Seconds for which a file must stand still to be taken."
    )
    incomplete_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86400,
        description="Seconds more for a file that stands still but is not whole; then it is refused.",
    )
    partner_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="Seconds that a picture waits for a sidecar where defaults.json has a prompt for it.",
    )
    max_attempts: int = Field(
        default=3, ge=1, le=100, description="Attempts at a job whose worker dies, before it fails."
    )
    step_timeout_seconds: float = Field(
        default=600.0,
        ge=0.1,
        le=86400,
        description="Seconds without a step after which a rendering worker is killed.",
    )
    load_timeout_seconds: float = Field(
        default=1800.0, ge=0.1, le=86400, description="The same while a worker loads a model, in seconds."
    )
    heartbeat_timeout_seconds: float = Field(
        default=60.0,
        ge=3,
        le=86400,
        description="Seconds without a heartbeat, which does not wait for a step, after which a worker is killed.",
    )
    stop_timeout_seconds: float = Field(
        default=60.0,
        ge=0.1,
        le=3600,
        description="Seconds for a worker to finish its step when the daemon stops; then it is killed.",
    )
    log_format: Annotated[Literal["auto", "console", "json", "journal"], BeforeValidator(_lower)] = Field(
        default="auto",
        description="Form of the log; auto is journal under systemd, console on a terminal, json otherwise.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="The least important events that are logged."
    )
    gallery: bool = Field(
        default=True,
        description="Keep a page of the queue and the videos, index.html, in outputs.",
        json_schema_extra={"allowed": "true or false"},
    )
    metrics_file: Annotated[Path, AfterValidator(_text_file)] | None = Field(
        default=None,
        description="File for numbers about the daemon, which node_exporter's textfile collector passes on.",
        json_schema_extra={"allowed": "the path of a file that ends in .prom"},
    )
    metrics_socket: Folder | None = Field(
        default=None,
        description="Unix socket that answers HTTP GET with the same numbers.",
        json_schema_extra={"allowed": "the path of a socket"},
    )
    notify_urls: Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_addresses)] = Field(
        default=(),
        description="URLs of Apprise, to which messages are sent; they hold secrets, so that a file or a variable is "
        "the place for them.",
        json_schema_extra={"allowed": "URLs like json://host/path, with spaces between them"},
    )
    notify_on: Annotated[tuple[Occasion, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=("failed", "queue_empty", "circuit_open"),
        description="What messages are sent of.",
        json_schema_extra={"allowed": "some of done, failed, queue_empty, circuit_open"},
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 the base class names it
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given: `load` reads the environment and the file itself, to know where each value came from."""
        return (init_settings,)


def load(flags: Mapping[str, object] | None = None, config: Path | None = None) -> tuple[Settings, list[str]]:
    """The settings in force, and a line for each `FRAMEPACK_*` variable that nothing reads.

    `flags` holds fields that were given on the command line, `config` the file named there. Raises
    `ConfigurationError` that names the setting, its value, where it came from, and what is allowed.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    environment = EnvSettingsSource(Settings)()
    path = _config_path(config)
    file = _read_toml(path) if path else {}
    values = file | environment | given
    origins = (
        dict.fromkeys(file, f"in {path}")
        | {name: f"from {PREFIX}{name.upper()}" for name in environment}
        | {name: f"from --{name.replace('_', '-')}" for name in given}
    )
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise _explain(error, values, origins) from error
    _check_apart(settings, origins)
    return settings, _unread_variables()


def _config_path(config: Path | None) -> Path | None:
    if config is not None:
        return config
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() else None


def _read_toml(path: Path) -> dict[str, Any]:
    """The settings in the file at `path`; folders in it are relative to the file's own folder."""
    path = _absolute(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{printable(path)}: the configuration file cannot be read: {error.strerror}",
            hint=f"name a file that is there by --config or {CONFIG_VARIABLE}",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"{printable(path)}: {error}", hint='the file is TOML: lines like inbox = "/srv/inbox" or max_attempts = 3'
        ) from error
    for name in values:
        if name not in Settings.model_fields:
            raise ConfigurationError(
                f"{printable(name)}: unknown setting in {printable(path)}",
                hint=_suggest(name, list(Settings.model_fields)),
            )
    return {name: _from_file(name, value, path.parent) for name, value in values.items()}


def _from_file(name: str, value: Any, folder: Path) -> Any:
    return folder / value if is_path(name) and isinstance(value, str) and not value.startswith("~") else value


def is_path(name: str) -> bool:
    """Whether a setting is the path of something."""
    annotation = Settings.model_fields[name].annotation
    return any(getattr(part, "__origin__", part) is Path for part in get_args(annotation) or (annotation,))


def _explain(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> ConfigurationError:
    """Every wrong setting with its value, its origin and what is allowed."""
    names = list(dict.fromkeys(str(item["loc"][0]) for item in error.errors() if item["loc"][0] in values))
    given = {name: "what is given" if name in SECRET else printable(repr(values[name])) for name in names}
    problems = [f"{name}: {given[name]} {origins[name]} is not allowed" for name in names]
    return ConfigurationError("; ".join(problems), hint="; ".join(f"{name} is {allowed(name)}" for name in names))


def _check_apart(settings: Settings, origins: Mapping[str, str]) -> None:
    """Refuse one folder in two roles: what is written for one would be read as the other."""
    roles: dict[Path, str] = {}
    for name in ("inbox", "outputs", "queue_dir", "work_dir"):
        path = getattr(settings, name)
        if path in roles:
            raise ConfigurationError(
                f"{name}: {printable(path)} {origins.get(name, 'by default')} is the {roles[path]} already",
                hint="give inbox, outputs, queue_dir and work_dir a folder each",
            )
        roles[path] = name


def allowed(name: str) -> str:
    """What a setting may hold, in words."""
    schema = Settings.model_json_schema()["properties"][name]
    if "allowed" in schema:
        return str(schema["allowed"])
    schema = next((part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"), schema)
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if "minimum" in schema:
        kind = "a whole number" if schema["type"] == "integer" else "a number"
        return f"{kind} from {schema['minimum']:g} to {schema['maximum']:g}"
    return "the path of a folder"


def _unread_variables() -> list[str]:
    """A warning for each variable that looks like a setting and is none."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    return [
        f"{printable(name)} is set but is no setting; {_suggest(name, known)}"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX)
        and not name.upper().startswith(WEB_PREFIX)
        and name.upper() not in {*known, CONFIG_VARIABLE}
    ]


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(known)
