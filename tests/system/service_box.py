"""A booted copy of this machine with the service on it: its places, and what people and init do there.

Nothing here judges; `service_inside.py` and `service_faults.py` do. What is waited for is a condition, with a patience
that a loaded machine of two cores does not use up.
"""

from __future__ import annotations

import contextlib
import json
import pwd
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
UNIT, WEB = "framepack-daemon.service", "framepack-daemon-web.service"
CONFIG = Path("/etc/framepack-daemon/config.toml")
NAS, DISK = Path("/mnt/nas"), Path("/var/nas-disk")  # the share is a bind mount, which can be taken away
INBOX, OUTPUTS, QUEUE = NAS / "photos/inbox", NAS / "videos", NAS / "photos/queue"
WORK = Path("/var/lib/framepack-daemon/work")
MEMBER = "alice"  # another user, who becomes a member of the daemon's group
DROPS = Path("/drops")  # pictures and sidecars, and the wheels, where every user may read them
WHEELS = DROPS / "wheels"
PATIENCE_SECONDS = 180.0
QUICK = {"prompt": "waves", "width": 64, "height": 112, "frames": 20, "num_inference_steps": 1, "seed": 7}


class CommandError(Exception):
    """A command that failed, with what it said."""


def do(*words: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True, **options)
    if check and done.returncode:
        raise CommandError(f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        time.sleep(0.05)
    raise TimeoutError(f"waited in vain for {what}; the status is {show('StatusText')!r}")


@contextlib.contextmanager
def timed(found: dict[str, Any], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    found.setdefault("seconds", {})[name] = round(time.monotonic() - start, 1)


# -- init and the administrator ----------------------------------------------------------------------------------------


def show(name: str, unit: str = UNIT) -> str:
    return do("systemctl", "show", "--value", "--property", name, unit).stdout.strip()


def status_with(words: str, unit: str = UNIT) -> str:
    text = show("StatusText", unit)
    return text if words in text else ""


def exposure(unit: str) -> str:
    """What systemd says of a unit's sandbox, in a line with a number from 0, the best, to 10."""
    return do("systemd-analyze", "security", "--no-pager", unit, check=False).stdout.strip().splitlines()[-1]


def install(*words: str | Path) -> str:
    return do(PACKAGING / "install.sh", *words).stdout


def configure(**settings: Any) -> None:
    """Edit the configuration as a person does: lines in it are changed, or come at its end."""
    lines = [line for line in CONFIG.read_text().splitlines() if line.split(" =")[0] not in settings]
    CONFIG.write_text("\n".join(lines + [f"{name} = {json.dumps(value)}" for name, value in settings.items()]) + "\n")


def drop_in(name: str, text: str, unit: str = UNIT) -> Path:
    path = Path(f"/etc/systemd/system/{unit}.d/{name}.conf")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    do("systemctl", "daemon-reload")
    return path


def events(name: str, **fields: str) -> int:
    """How many of the log's events of this name, with these fields, the journal has."""
    matches = [f"EVENT={name}", *(f"{field.upper()}={value}" for field, value in fields.items())]
    return len(do("journalctl", "--quiet", "--output=cat", f"--unit={UNIT}", *matches, check=False).stdout.splitlines())


def worker() -> int:
    """The process id of the daemon's worker, or 0."""
    main = show("MainPID")
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return next((pid for pid, line in lines.items() if b"framepack_daemon.workers" in line), 0)


def owner(path: Path) -> str:
    found = path.stat()
    names = pwd.getpwuid(found.st_uid).pw_name, do("stat", "--format=%G", path).stdout.strip()
    return f"{':'.join(names)} {found.st_mode & 0o7777:o}"


def tree(*folders: str) -> dict[str, tuple[int, int, int]]:
    """Every file in the folders, with what would tell of a change."""
    paths = [path for folder in folders for path in Path(folder).rglob("*")]
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_mode, p.lstat().st_uid) for p in paths}


# -- people, and what they see -----------------------------------------------------------------------------------------


def as_member(command: str) -> None:
    """Have the member of the group do something in a shell, with the mask that people have."""
    do("runuser", "--user", MEMBER, "--", "/bin/sh", "-c", f"umask 022; {command}")


def drop(stem: str, inbox: Path = INBOX, **fields: Any) -> None:
    (DROPS / f"{stem}.json").write_text(json.dumps(QUICK | fields | {"seed": abs(hash(stem)) % 1000}))
    as_member(f"cp {DROPS}/beach.png {inbox}/{stem}.png && cp {DROPS}/{stem}.json {inbox}/")


def job_in(state: str, stem: str) -> str:
    folder = QUEUE / state
    return until(lambda: next((p.name for p in folder.iterdir() if p.name.startswith(stem)), ""), f"{stem} in {state}")


def record(job: str) -> dict[str, Any]:
    return json.loads((OUTPUTS / f"{job}.status.json").read_text())


def progress(job: str) -> tuple[int, int]:
    """The section that a job is in, and its step."""
    found = record(job).get("progress") or {}
    return found.get("section", 0), found.get("step", 0)


def goes_on(job: str) -> tuple[int, int]:
    """Wait until the job has finished a section from here on, and is in the next: the attempts are taken back then."""
    section = progress(job)[0]
    return until(lambda: progress(job) >= (section + 1, 1) and progress(job), f"{job} to go on from section {section}")
