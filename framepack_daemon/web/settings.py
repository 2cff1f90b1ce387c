"""What an operator can set of the gateway: `FRAMEPACK_WEB_*`, and the flags of `serve` over them.

Where the folders are the daemon's own settings say. Knows the environment and the service manager's credentials; no
request, no folder of the queue.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from framepack_daemon.errors import ConfigurationError
from framepack_daemon.printable import printable
from framepack_daemon.settings import WEB_PREFIX

CREDENTIAL = "framepack_web_token"  # in the folder that systemd's LoadCredential= names by $CREDENTIALS_DIRECTORY


def _words(value: Any) -> Any:
    return tuple(re.findall(r"[^\s,]+", value)) if isinstance(value, str) else value


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc or f"{parts.scheme}://{parts.netloc}" != value:
            raise ValueError("is no origin")
    return values


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]


class WebSettings(BaseSettings):
    """The gateway's settings; sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=WEB_PREFIX, env_ignore_empty=True)

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; another than this machine's own "
                      "loopback wants a token.")  # fmt: skip
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    token: SecretStr | None = Field(
        None, description="What clients have to send as `Authorization: Bearer …`. Also a systemd credential of the "
        f"name {CREDENTIAL}.",
    )  # fmt: skip
    no_auth: bool = Field(False, description="Let everybody in who reaches the address, without a token.")
    hosts: Words = Field(
        (), description="Names under which browsers reach the gateway, beside localhost and plain addresses."
    )
    cors_origins: Annotated[Words, AfterValidator(_origins)] = Field(
        (), description="Origins of other pages whose scripts may use the API, like https://studio.example."
    )
    max_upload_bytes: int = Field(256 << 20, ge=1 << 10, le=1 << 40, description="Largest upload, with all its parts.")
    max_pixels: int = Field(64_000_000, ge=256, le=64_000_000, description="Most pixels of a picture, once decoded.")
    max_pending: int = Field(1000, ge=1, le=1_000_000, description="Waiting jobs beyond which no more are taken.")
    max_completed_jobs: int = Field(1000, ge=0, le=10_000_000, description="Ended jobs that a clean-up keeps.")
    upload_timeout_seconds: float = Field(
        30.0, ge=0.1, le=3600, description="Seconds without a byte of an upload after which it is given up."
    )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load(flags: Mapping[str, object] | None = None) -> WebSettings:
    """The settings in force: `flags` over the environment over the defaults.

    Raises `ConfigurationError` that names the setting, or that says how to let clients in where nothing says it yet.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        settings = WebSettings(**given)  # type: ignore[arg-type] # pydantic checks them
    except ValidationError as error:
        raise _explain(error) from error
    if settings.token is None and (token := _credential()):
        settings = settings.model_copy(update={"token": SecretStr(token)})
    if settings.token and settings.no_auth:
        raise ConfigurationError(
            f"{WEB_PREFIX}NO_AUTH: stands beside a token", hint="give a token, or --no-auth, but not both"
        )
    if not settings.is_loopback and settings.token is None and not settings.no_auth:
        raise ConfigurationError(
            f"{printable(settings.host)}: others than this machine would reach the gateway, and nothing keeps them out",
            hint=f"set {WEB_PREFIX}TOKEN to a secret of your own; or say --no-auth, where everybody may use it",
        )
    return settings


def unread() -> list[str]:
    """The variables that look like one of these settings and are none."""
    known = {WEB_PREFIX + name.upper() for name in WebSettings.model_fields}
    return sorted(name for name in os.environ if name.upper().startswith(WEB_PREFIX) and name.upper() not in known)


def _credential() -> str:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder, CREDENTIAL) if folder else None
    return path.read_text(encoding="utf-8").strip() if path and path.is_file() else ""


def _explain(error: ValidationError) -> ConfigurationError:
    names = list(dict.fromkeys(str(item["loc"][0]) for item in error.errors()))
    problems = {str(item["loc"][0]): item["msg"] for item in error.errors()}
    return ConfigurationError(
        "; ".join(f"{WEB_PREFIX}{name.upper()}: {problems[name]}" for name in names),
        hint="; ".join(f"{name}: {WebSettings.model_fields[name].description}" for name in names),
    )
