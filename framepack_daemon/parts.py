"""The daemon's parts as its settings want them: the workers, how long they may be silent, how long files are given.

Starts nothing, and does not know when settings change.
"""

from __future__ import annotations

from framepack_daemon.settings import Settings
from framepack_daemon.spool.inbox import Timing
from framepack_daemon.workers.pool import Limits, Worker, devices


def workers(settings: Settings) -> list[Worker]:
    """One for each device."""
    return [
        Worker(
            device,
            models_dir=settings.models_dir,
            loras_dir=settings.loras_dir,
            model=settings.model,
            threads=settings.threads,
            memory=settings.memory,
            preservation=settings.gpu_memory_preservation,
            limits=limits(settings),
            log=settings.work_dir / f"worker-{device.replace(':', '-')}.log",
        )
        for device in devices(settings.device)
    ]


def limits(settings: Settings) -> Limits:
    """How long a worker may be silent."""
    return Limits(settings.step_timeout_seconds, settings.load_timeout_seconds, settings.heartbeat_timeout_seconds)


def timing(settings: Settings) -> Timing:
    """How long dropped files are given."""
    return Timing(settings.settle_seconds, settings.incomplete_seconds, settings.partner_seconds)
