"""Where a video comes from, in the words of its metadata and its status: the request, the model, the versions.

The request stands in the MP4's `comment` as a sidecar, which dropped beside the same picture makes the same video; the
rest stands in `description`. Knows nothing of how the video was made.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from framepack_daemon.engine.models import Models
    from framepack_daemon.loras import LoraFile
    from framepack_daemon.request import Request

TITLE_CHARACTERS = 200
# What decides the frames of a video, beside the request and the model.
LIBRARIES = ("framepack-daemon", "torch", "diffusers", "transformers", "pillow", "av", "peft")


def versions() -> dict[str, str]:
    """The versions of the libraries that decide the frames."""
    return {name: version(name) for name in LIBRARIES}


def metadata(request: Request, models: Models, loras: Sequence[LoraFile]) -> dict[str, str]:
    """The metadata of the MP4."""
    source: dict[str, Any] = {
        "model": {"name": models.name, "revision": models.revision},
        "loras": {file.name: file.sha256 for file in loras},
        "versions": versions(),
    }
    return {
        "title": request.texts[0].text[:TITLE_CHARACTERS],
        "comment": json.dumps(request.as_sidecar(), ensure_ascii=False),
        "description": json.dumps(source, ensure_ascii=False),
    }
