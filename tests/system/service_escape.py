"""What nobody who got into the service should be able to do: tried, one after the other; prints JSON.

For each item: "done", or why it was refused. The argument is a folder that may be written.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PTRACE_ATTACH = 16
_SYS_INIT_MODULE, _SYS_BPF, _SYS_KEXEC_LOAD, _SYS_PERF_EVENT_OPEN = 175, 321, 246, 298  # of x86-64
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _setuid_file(folder: Path) -> None:
    path = folder / "setuid"
    path.write_bytes(b"#!/bin/sh\n")
    path.chmod(0o4755)


def _ptrace() -> None:
    """Of a child of ours: also without a sandbox that is all an ordinary user may."""
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        _checked(_libc.ptrace(_PTRACE_ATTACH, child, None, None))
    finally:
        os.kill(child, signal.SIGKILL)


def _run_from(folder: Path) -> None:
    path = folder / "program"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    if os.spawnv(os.P_WAIT, path, [str(path)]) != 0:
        raise PermissionError("not run")


def _others_processes() -> None:
    if not any(entry.name.isdigit() and entry.stat().st_uid != os.getuid() for entry in Path("/proc").iterdir()):
        raise PermissionError("none to be seen")


def _network() -> None:
    with socket.create_connection(("127.0.0.1", 9), timeout=1):
        pass


def _loopback() -> None:
    """Whether this machine's own servers can be reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM):
        pass


def _attempts(folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "write into /etc": lambda: Path("/etc/escaped").write_text(""),
        "write into /usr": lambda: Path("/usr/escaped").write_text(""),
        "write into /var/lib": lambda: Path("/var/lib/escaped").write_text(""),
        "write into its own program": lambda: Path("/opt/framepack-daemon/escaped").write_text(""),
        "change its own configuration": lambda: Path("/etc/framepack-daemon/config.toml").open("a").close(),
        "read another user's home": lambda: Path("/home/alice/secret").read_text(),
        "see another user's process": _others_processes,
        "run a program from its folders": lambda: _run_from(folder),
        "make a setuid file": lambda: _setuid_file(folder),
        "open an inet socket": _loopback,
        "reach the network": _network,
        "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "load a module": lambda: _checked(_libc.syscall(_SYS_INIT_MODULE, b"", 0, b"")),
        "load a kernel": lambda: _checked(_libc.syscall(_SYS_KEXEC_LOAD, 0, 0, None, 0)),
        "load a BPF program": lambda: _checked(_libc.syscall(_SYS_BPF, 0, None, 0)),
        "watch the processor": lambda: _checked(_libc.syscall(_SYS_PERF_EVENT_OPEN, None, 0, -1, -1, 0)),
        "trace a process": _ptrace,
        "make a user namespace": lambda: _checked(_libc.unshare(_CLONE_NEWUSER)),
        "make a network namespace": lambda: _checked(_libc.unshare(_CLONE_NEWNET)),
        "mount": lambda: _checked(_libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None)),
        "change the root": lambda: os.chroot("/tmp"),
        "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
        "set the host's name": lambda: socket.sethostname("escaped"),
        "write into /proc/sys": lambda: Path("/proc/sys/vm/swappiness").write_text("1"),
        "write into /sys": lambda: Path("/sys/kernel/mm/transparent_hugepage/enabled").write_text("never"),
        "read the kernel's log": lambda: Path("/dev/kmsg").open("rb").close(),
        "read the memory": lambda: Path("/dev/mem").open("rb").close(),
        "open a disk": lambda: os.mknod(folder / "disk", 0o60600, os.makedev(254, 0)),
        "become root": lambda: os.setuid(0),
        "take a realtime priority": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "stop systemd": lambda: os.kill(1, signal.SIGTERM),
        "reboot": lambda: _checked(_libc.reboot(0x89ABCDEF)),  # what Ctrl-Alt-Del does; it would end nothing
        "change the personality": lambda: _checked(_libc.personality(0x0040000)),
    }


def main() -> None:
    found = {}
    for what, attempt in _attempts(Path(sys.argv[1])).items():
        try:
            attempt()
        except OSError as error:
            found[what] = error.strerror or str(error)
        else:
            found[what] = "done"
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
