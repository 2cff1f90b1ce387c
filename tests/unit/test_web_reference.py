from __future__ import annotations

from pathlib import Path

from framepack_daemon.web import reference

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_page_of_the_api_is_what_the_code_says() -> None:
    assert PAGE.read_text() == reference.page(), "make it anew: python -m framepack_daemon.web.reference"
