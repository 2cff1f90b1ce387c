"""A real systemd for tests: it boots on a copy of this machine that is thrown away, and runs a script there.

The copy is an overlay of this machine's root on a tmpfs: what stands here stands there at the same place, and whatever
is written there is gone in the end. It has no network, and only what a service needs is started. `boot` needs root.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools import require, require_root

_SPARE_SECONDS = 30  # for systemd to come up and to go down
_CONSOLE_LINES = 40  # that are told when it did not come up

# The exit code and the output are left as files: the console belongs to systemd.
_SERVICE = """\
[Unit]
Description=The script of a test
After=basic.target dbus.service systemd-journald.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/lab-script >/lab-output 2>&1; echo $? >/lab-code.new; mv /lab-code.new /lab-code'
ExecStopPost=/bin/systemctl poweroff --no-block
TimeoutStartSec={timeout}
"""
# In place of the usual target: what else is enabled on this machine, such as a file server, stays down.
_TARGET = """\
[Unit]
Requires=basic.target dbus.service lab.service
After=basic.target dbus.service
Wants={services}
"""


class Finished(NamedTuple):
    """How the script ended."""

    returncode: int
    output: str


def boot(*scripts: str, timeout: int, services: str = "") -> Finished:
    """Run a script (its first line names its interpreter) as root under a systemd of its own, and power off.

    Each further script is run after another boot of the same copy. Units named in `services` are started at each boot
    where they are there. Raises AssertionError when systemd does not come up, or a script takes longer than `timeout`
    seconds.
    """
    require("systemd-nspawn")
    require_root()
    with _copy_of_this_machine() as root:
        units = root / "etc/systemd/system"
        (units / "lab.service").write_text(_SERVICE.format(timeout=timeout))
        (units / "lab.target").write_text(_TARGET.format(services=services))
        (root / "etc/tmpfiles.d/tmp.conf").write_text("")  # which empties /tmp, where a test keeps its files
        runs = [_run(root, script, timeout) for script in scripts]
        return Finished(max(run.returncode for run in runs), "".join(run.output for run in runs))


def _run(root: Path, script: str, timeout: int) -> Finished:
    (root / "lab-script").write_text(script)
    (root / "lab-script").chmod(0o755)
    code, output = root / "lab-code", root / "lab-output"
    code.unlink(missing_ok=True)
    console = _boot(root, timeout + _SPARE_SECONDS)
    said = output.read_text(errors="replace") if output.exists() else ""
    if not code.exists():
        last = "\n".join(console.splitlines()[-_CONSOLE_LINES:])
        raise AssertionError(f"no end of the script within {timeout} s; the console said:\n{last}\nthe script:\n{said}")
    return Finished(int(code.read_text()), said)


@contextlib.contextmanager
def _copy_of_this_machine() -> Iterator[Path]:
    lab = Path(tempfile.mkdtemp(prefix="systemd-lab-"))
    with contextlib.ExitStack() as mounted:
        mounted.callback(lab.rmdir)
        _mount(mounted, lab, "-t", "tmpfs", "tmpfs")
        root, upper, work = lab / "root", lab / "upper", lab / "work"
        for folder in (root, upper, work):
            folder.mkdir()
        _mount(mounted, root, "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}")
        yield root


def _mount(mounted: contextlib.ExitStack, at: Path, *how: str) -> None:
    subprocess.run(["mount", *how, str(at)], check=True)
    mounted.callback(subprocess.run, ["umount", "--lazy", str(at)], check=True)


def _boot(root: Path, timeout: int) -> str:
    """Boot and wait until it is down again; what stood on its console."""
    command = [
        *("systemd-nspawn", "--quiet", "--boot", f"--directory={root}", f"--machine=lab-{os.getpid()}"),
        *("--private-network", "--register=no", "--keep-unit", "systemd.unit=lab.target"),
    ]
    environment = {**os.environ, "SYSTEMD_NSPAWN_TMPFS_TMP": "0"}  # /tmp is this machine's, like the rest
    container = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        console, _ = container.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        container.kill()  # and the kernel ends all that ran in it
        console, _ = container.communicate()
    return console.decode(errors="replace")
