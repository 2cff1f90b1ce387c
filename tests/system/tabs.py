"""A tab of Chromium that is hidden while another is shown: the pages of playwright's own contexts always count as seen.

Speaks the DevTools protocol through playwright's session with the browser, and knows nothing of what is in the tab.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession


class Tab:
    """A tab; hidden from the start where another is shown."""

    def __init__(self, session: CDPSession, url: str) -> None:
        """Open it. `session` is the browser's, of `new_browser_cdp_session`."""
        self._session = session
        self._heard: list[dict[str, Any]] = []
        self._target = {"targetId": session.send("Target.createTarget", {"url": url})["targetId"]}
        session.on("Target.receivedMessageFromTarget", self._hear)
        self._door = session.send("Target.attachToTarget", self._target | {"flatten": False})["sessionId"]

    def show(self) -> None:
        """Have it seen, and every other one hidden."""
        self._session.send("Target.activateTarget", self._target)

    def evaluate(self, script: str) -> Any:
        """What a script gives there."""
        self._heard.clear()
        message = {"id": 1, "method": "Runtime.evaluate", "params": {"expression": script}}
        self._session.send("Target.sendMessageToTarget", {"sessionId": self._door, "message": json.dumps(message)})
        while not self._heard:
            self._session.send("Target.getTargets")  # events come in while it waits for an answer
        return self._heard[0]["result"]["result"]["value"]

    def close(self) -> None:
        """Close it."""
        self._session.send("Target.closeTarget", self._target)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["sessionId"] == self._door:
            self._heard.append(json.loads(event["message"]))
