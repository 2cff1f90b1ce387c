"""Quick prompts: texts that people keep for the next time, in one file of the queue's folder and so for everybody.

Until somebody saves one there are those of FramePack's demo. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from framepack_daemon import atomic
from framepack_daemon.errors import RequestError
from framepack_daemon.printable import printable
from framepack_daemon.spool.queue import Queue

FILE = "quick-prompts.json"  # in the queue's folder
MAX_PROMPTS = 100
MAX_CHARACTERS = 1000  # of one
_FIRST = (
    "The girl dances gracefully, with clear movements, full of charm.",
    "A character doing some simple body movements.",
)


def read(queue: Queue) -> list[str]:
    """The prompts, the oldest first; those of the demo where the file is away or is something else."""
    kept = (atomic.read_json(queue.root / FILE) or {}).get("prompts")
    texts = kept if isinstance(kept, list) else _FIRST
    return [text for text in texts if isinstance(text, str) and printable(text, keep="\n") == text]


def save(queue: Queue, prompt: str) -> None:
    """Keep a prompt; one that is kept already moves to the end. `RequestError` for what is none."""
    text = printable(prompt.strip(), keep="\n")
    if not 0 < len(text) <= MAX_CHARACTERS:
        raise RequestError(
            f"prompt: has {len(text)} characters", hint=f"a quick prompt has 1 to {MAX_CHARACTERS}; it was not saved"
        )
    _change(queue, lambda kept: [*(each for each in kept if each != text), text][-MAX_PROMPTS:])


def remove(queue: Queue, prompt: str) -> None:
    """Forget a prompt, if it is kept."""
    _change(queue, lambda kept: [each for each in kept if each != prompt])


def _change(queue: Queue, change: Callable[[list[str]], list[str]]) -> None:
    atomic.make_folder(queue.root)
    with atomic.locked(queue.root):
        atomic.write_json(queue.root / FILE, {"prompts": change(read(queue))})
