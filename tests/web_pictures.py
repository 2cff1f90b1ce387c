"""Loaded by schemathesis: files of the kinds that the gateway's forms take."""

from __future__ import annotations

import os
from pathlib import Path

import schemathesis
from hypothesis import strategies

_PICTURE = Path(os.environ["WEB_PICTURE"]).read_bytes()

for _kind in ("image/png", "image/jpeg", "image/webp"):
    schemathesis.openapi.media_type(_kind, strategies.just(_PICTURE))
