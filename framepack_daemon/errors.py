"""One tree of errors, each with a code for programs and a message and hint for people.

Every error that a user can meet derives from `FramepackError`. `message` says what is wrong and where, `hint` what to
do about it, `code` is stable and machine-readable, `retryable` says whether trying the same thing again can help.
Knows nothing of the rest of the package.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_JOB_FAILED = 1
EXIT_USAGE = 2
EXIT_QUEUE_HELD = 69  # EX_UNAVAILABLE: another daemon holds the inbox or the queue
EXIT_AWAY = 75  # EX_TEMPFAIL: a folder's file system is not mounted; trying again later can help
EXIT_CONFIGURATION = 78  # EX_CONFIG


class FramepackError(Exception):
    """Base of every error of this package."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = EXIT_USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, str]:
        """The error as it stands in a status file."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class ConfigurationError(FramepackError):
    """A setting is wrong; the daemon cannot start with it."""

    code = "configuration"
    exit_code = EXIT_CONFIGURATION


class QueueHeldError(FramepackError):
    """Another daemon holds this inbox or this queue."""

    code = "queue_held"
    exit_code = EXIT_QUEUE_HELD


class FolderAwayError(FramepackError):
    """The file system that held a folder is not mounted; the empty folder beneath is not taken for it."""

    code = "folder_away"
    retryable = True
    exit_code = EXIT_AWAY


class RequestError(FramepackError):
    """A sidecar asks for something that cannot be done; the message names each field."""

    code = "bad_request"


class RequestIncompleteError(RequestError):
    """A sidecar ends too early: it may still be on its way."""

    code = "incomplete_request"
    retryable = True


class DropError(FramepackError):
    """The files of a drop do not make a job (ambiguous, a conflict copy, not a plain file)."""

    code = "bad_drop"


class DropUnreadableError(DropError):
    """A file of a drop cannot be read; it is left where it is until that changes."""

    code = "unreadable_drop"
    retryable = True


class ImageError(FramepackError):
    """A picture cannot be used; it is whole, but not what it should be."""

    code = "bad_image"


class ImageIncompleteError(ImageError):
    """A picture ends too early: it may still be on its way."""

    code = "incomplete_image"
    retryable = True


class ClipError(FramepackError):
    """A video that a job is to continue cannot be used; it is whole, but not what it should be."""

    code = "bad_clip"


class ClipIncompleteError(ClipError):
    """A video that a job is to continue ends too early: it may still be on its way."""

    code = "incomplete_clip"
    retryable = True


class VideoError(FramepackError):
    """A video could not be written, joined or verified."""

    code = "bad_video"
    retryable = True


class ContinuationError(FramepackError):
    """What a job is to go on from is not there or cannot be gone on from."""

    code = "continuation"


class LoraError(FramepackError):
    """A LoRA file is not there, damaged, or made for another model."""

    code = "lora"


class UnknownJobError(FramepackError):
    """No job of that name stands in any state."""

    code = "unknown_job"


class StateError(FramepackError):
    """The job is in a state that does not allow what was asked."""

    code = "wrong_state"


class WeightsError(FramepackError):
    """Model files are missing, truncated or of another revision; jobs wait until they are there."""

    code = "weights"
    retryable = True


class DeviceError(FramepackError):
    """The device that should do the work is not there or not usable."""

    code = "device"
    retryable = True


class OutOfMemoryError(FramepackError):
    """The device ran out of memory."""

    code = "out_of_memory"
    retryable = True
