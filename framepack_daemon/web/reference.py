"""The page `docs/api.md`, out of the application's own OpenAPI and settings.

`python -m framepack_daemon.web.reference` writes it; a test compares the two. Knows no route by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from framepack_daemon.settings import WEB_PREFIX, Settings
from framepack_daemon.web import app
from framepack_daemon.web.settings import WebSettings

WIDTH = 120  # characters; a longer example has a line for each field
_HEAD = """\
# The HTTP API

`framepack-daemon serve` serves it; it needs `pip install 'framepack-daemon[web]'`. It is a face of the folders and
nothing more: it enters jobs, moves their directories and reads status files. It runs without the daemon, several may
run on one queue, and it can be killed at any time.

```
framepack-daemon serve                                                # http://127.0.0.1:8000
curl -F prompt='waves roll in' -F image=@beach.jpg localhost:8000/generate
curl -N localhost:8000/events
```

The paths, fields, defaults and status words under *original* are those of the system that this one replaces: its
clients work unchanged. `GET /openapi.json` describes everything for programs. This page is made from it.

A refusal is JSON: `detail` says what is wrong and begins with the field, `hint` what to do, `code` is for programs. 422
is a wrong request, 404 an unknown job or a file that is not there (yet), 409 a job in a state that does not allow it,
413 and 429 (with `Retry-After`) a limit, 503 (with `Retry-After`) a queue that cannot be written at the moment.

## Who may use it

By itself it listens on 127.0.0.1 alone. Another address wants a token, which clients send as `Authorization: Bearer …`;
`/healthz` and `/readyz` answer without. `--no-auth` does without a token. It comes from the environment, or from a
systemd credential: `LoadCredential=framepack_web_token:/etc/framepack-daemon/web-token`. Pages of other sites are kept
out by three headers, each of which is enough: `Host` must be an address, `localhost` or a name in `HOSTS`; `Origin`
must be the gateway's own or in `CORS_ORIGINS`; `Sec-Fetch-Site` must not say that another site asks.

## Settings

Where the folders are, the [settings](settings.md) of the daemon say. Those of the gateway are variables:

| variable | default | what it is |
|---|---|---|
"""


def page() -> str:
    """The page."""
    described = app.create(Settings(), WebSettings.model_construct()).openapi()
    parts = [_HEAD + "\n".join(map(_setting, WebSettings.model_fields))]
    routes: dict[str, list[str]] = {}
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            routes.setdefault(route["tags"][0], []).append(_route(method, path, route, described))
    for tag, texts in routes.items():
        parts.append(f"## {tag.capitalize()}")
        parts += texts
    return "\n\n".join(parts) + "\n"


def _setting(name: str) -> str:
    field = WebSettings.model_fields[name]
    default = field.default
    plain = default not in (None, (), PydanticUndefined) and not isinstance(default, bool)
    shown = f"`{default:g}`" if isinstance(default, float) else f"`{default}`" if plain else "none"
    return f"| `{WEB_PREFIX}{name.upper()}` | {shown if default is not False else '`false`'} | {field.description} |"


def _route(method: str, path: str, route: dict[str, Any], described: dict[str, Any]) -> str:
    lines = [f"### `{method.upper()} {path}`", route["description"]]
    if parameters := [_parameter(each) for each in route.get("parameters", []) if each["in"] != "path"]:
        lines.append("\n".join(parameters))
    for kind, body in route.get("requestBody", {}).get("content", {}).items():
        schema = _resolved(body["schema"], described)
        required = schema.get("required", ())
        fields = [_field(name, part, name in required) for name, part in schema["properties"].items()]
        lines.append(f"Body: `{kind}`.\n\n| field | default | what it is |\n|---|---|---|\n" + "\n".join(fields))
    lines.append(_answer(route["responses"], described))
    return "\n\n".join(lines)


def _parameter(parameter: dict[str, Any]) -> str:
    kind = "header" if parameter["in"] == "header" else "parameter"
    default = parameter["schema"].get("default")
    words = f" Default: `{json.dumps(default)}`." if default is not None else ""
    return f"- {kind} `{parameter['name']}`: {parameter.get('description', '')}{words}"


def _field(name: str, schema: dict[str, Any], required: bool) -> str:
    default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "required" if required else ""
    words = schema.get("description", "")
    if schema.get("$ref", "").endswith("/Sidecar"):
        words = "JSON with the fields of a [sidecar](sidecar.md)."
    if "minimum" in schema and "maximum" in schema and schema["maximum"] < 1 << 62:
        words += f" {schema['minimum']:g} to {schema['maximum']:g}."
    if "enum" in schema:
        words += f" One of {', '.join(f'`{each}`' for each in schema['enum'])}."
    return f"| `{name}` | {default} | {words} |"


def _answer(responses: dict[str, Any], described: dict[str, Any]) -> str:
    """What comes back, by an example, and with which statuses it may be refused."""
    kind, content = next(iter(responses["200"].get("content", {}).items()))
    others = ", ".join(status for status in responses if status != "200")
    words = f"Answers `{kind}`." + (f" Refuses with {others}." if others else "")
    example = content.get("example") or _example(content.get("schema", {}), described)
    if kind == "application/json" and example:
        text = json.dumps(example, ensure_ascii=False)
        text = text if len(text) <= WIDTH else json.dumps(example, ensure_ascii=False, indent=2)
        return f"{words}\n\n```json\n{text}\n```"
    return f"{words}\n\n```\n{example.rstrip()}\n```" if "example" in content else words


def _example(schema: dict[str, Any], described: dict[str, Any]) -> Any:
    """An example of what the schema describes, put together from those of its parts."""
    schema = _resolved(schema, described)
    if "examples" in schema:
        return schema["examples"][0]
    if "properties" in schema:
        return {name: _example(part, described) for name, part in schema["properties"].items()}
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], described)
    if "const" in schema:
        return schema["const"]
    if schema.get("type") == "array":
        return [_example(schema["items"], described)]
    return {"string": "…", "integer": 0, "number": 0.5, "boolean": False}.get(schema.get("type", ""))


def _resolved(schema: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


if __name__ == "__main__":
    Path("docs/api.md").write_text(page(), encoding="utf-8")
