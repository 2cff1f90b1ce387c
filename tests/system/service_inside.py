"""What a test of the service does inside a booted copy of this machine: installs, drops, moves, stops, kills, escapes.

Called with a folder that holds `wheels/` and a picture, and this machine's packages' path; after a restart without
arguments. Prints a line of JSON for each part: its name, what was found, how long things took, or what error ended it.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import httpx
from service_box import (
    CONFIG,
    DISK,
    DROPS,
    INBOX,
    MEMBER,
    NAS,
    OUTPUTS,
    PACKAGING,
    PATIENCE_SECONDS,
    QUEUE,
    QUICK,
    UNIT,
    WEB,
    WHEELS,
    WORK,
    as_member,
    configure,
    do,
    drop,
    drop_in,
    exposure,
    goes_on,
    install,
    job_in,
    owner,
    progress,
    record,
    show,
    status_with,
    timed,
    tree,
    until,
)
from service_faults import LONG, WATCHDOG_SECONDS, faults

from framepack_daemon.weights import repositories

ADDRESS = ("127.0.0.1", 8000)  # of the gateway
MODELS = Path("/var/lib/framepack-daemon/huggingface/hub")
KEPT = Path("/var/nas-kept")  # the disk of the share, from the restart on


def installing(found: dict[str, Any]) -> None:
    NAS.mkdir()
    DISK.mkdir()
    do("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", DISK)
    do("mount", "--bind", DISK, NAS)
    words = ("--inbox", INBOX, "--outputs", OUTPUTS, "--wheels", WHEELS)
    places = ("/etc", "/opt", "/srv", "/var/lib", "/usr/local", str(NAS))
    before = tree(*places)
    found["would"] = install("--dry-run", *words)
    found["changed_by_dry_run"] = sorted(dict(before.items() ^ tree(*places).items()))
    with timed(found, "install"):
        found["said"] = install(*words)
    found["folders"] = {folder.name: owner(folder) for folder in (INBOX, OUTPUTS, QUEUE, QUEUE / "pending")}
    configure(settle_seconds=0.2, threads=2, device="cpu", heartbeat_timeout_seconds=86400)
    drop_in("lab", f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}\nTimeoutAbortSec=2\nRestartSec=0.1\n")
    before, config = tree("/etc"), CONFIG.read_text()
    with timed(found, "install again"):
        install("--wheels", WHEELS)
    found["changed_by_second_run"] = sorted(dict(before.items() ^ tree("/etc").items()))
    found["config_kept"] = CONFIG.read_text() == config
    began, ready = (int(show(f"{name}TimestampMonotonic")) for name in ("InactiveExit", "ActiveEnter"))
    found["seconds"]["systemctl start to READY"] = round((ready - began) / 1e6, 1)
    for option, value in (("--inbox", "/srv/other"), ("--user", "somebody"), ("--prefix", "/opt/other")):
        words = ("--dry-run", option, value, "--wheels", WHEELS)
        found[option] = do(PACKAGING / "install.sh", *words, check=False).stderr
    units = (UNIT, "framepack-daemon@0.service", "framepack-daemon-models.service", WEB)
    found["verify"] = do("systemd-analyze", "verify", *units, check=False).stderr
    found["exposure"] = exposure(UNIT)


def sharing(found: dict[str, Any]) -> None:
    do("useradd", "--create-home", "--groups", "framepack", MEMBER)
    with timed(found, "drop to video"):
        drop("beach")
        job = job_in("done", "beach")
    video = OUTPUTS / f"{job}.mp4"
    found["video"] = owner(video)
    found["job"] = owner(QUEUE / "done" / job)
    first = video.stat().st_ino, record(job)["finished_at"]
    as_member(f"mv {QUEUE}/done/{job} {QUEUE}/pending/")
    until(lambda: record(job)["state"] == "done" and record(job)["finished_at"] != first[1], "the second video")
    found["retried"] = record(job)["outcome"]
    as_member(f"mv {video} ~/ && test -s ~/{video.name}")
    found["taken"] = not video.exists()
    as_member(f"touch {QUEUE}/pause")
    drop("storm")
    job = job_in("pending", "storm")
    as_member(f"mv {QUEUE}/pending/{job} {QUEUE}/failed/")
    until(lambda: record(job)["state"] == "failed", "the cancel")
    found["cancelled"] = record(job)["outcome"]
    as_member(f"rm {QUEUE}/pause")


def gateway(found: dict[str, Any]) -> None:
    """A picture goes in by HTTP, and its video comes out."""
    (CONFIG.parent / "web-token").write_text("swordfish\n")
    (CONFIG.parent / "web-token").chmod(0o600)
    do("systemctl", "start", WEB)
    until(lambda: socket.create_connection(ADDRESS), "the gateway")
    place = "http://{}:{}".format(*ADDRESS)
    found["stranger"] = httpx.get(f"{place}/queue").status_code
    with httpx.Client(
        base_url=place, headers={"Authorization": "Bearer swordfish"}, timeout=PATIENCE_SECONDS
    ) as client:
        files = {"image": ("web.png", (DROPS / "beach.png").read_bytes())}
        posted = client.post("/jobs", data={"sidecar": json.dumps(QUICK | {"seed": 11})}, files=files)
        posted.raise_for_status()
        job = job_in("done", "web")
        found["video"] = client.get(f"/download/video/{job}").content == (OUTPUTS / f"{job}.mp4").read_bytes()
        found["answers"] = {path: client.get(path).status_code for path in ("/", "/queue", f"/thumbnail/{job}")}
    found["user"] = Path("/proc", show("MainPID", WEB)).owner()
    found["exposure"] = exposure(WEB)
    do("systemctl", "stop", WEB)
    found["code"] = show("ExecMainStatus", WEB)


def escaping(found: dict[str, Any]) -> None:
    do("systemctl", "stop", UNIT)
    shutil.copy(Path(__file__).with_name("service_escape.py"), "/opt/escape.py")
    Path("/home/alice/secret").write_text("secret")
    Path("/home/alice/secret").chmod(0o644)
    Path("/home/alice").chmod(0o755)
    python = "/opt/framepack-daemon/bin/python"
    probe = (
        f"[Service]\nType=exec\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart={python} /opt/escape.py {OUTPUTS}\n"
    )
    path = drop_in("probe", probe + "StandardOutput=truncate:/lab-inside\nRemainAfterExit=yes\n")
    do("systemctl", "start", UNIT)
    found["inside"] = json.loads(until(lambda: Path("/lab-inside").read_text(), "the probe"))
    found["outside"] = json.loads(do("runuser", "-u", MEMBER, "--", python, "/opt/escape.py", "/home/alice").stdout)
    do("systemctl", "stop", UNIT)
    path.unlink()
    do("systemctl", "daemon-reload")


def _without_share() -> dict[str, Any]:
    """What the service says and has made while its share is not mounted."""
    return {
        "status": until(lambda: status_with("/mnt/nas"), "the missing share"),
        "state": show("ActiveState"),
        "made": [path.name for path in NAS.iterdir()],
    }


def misfortunes(found: dict[str, Any]) -> None:
    good = CONFIG.read_text()
    configure(max_attempts=0)
    do("systemctl", "start", UNIT, check=False)
    until(lambda: show("ActiveState") == "failed", "the refusal")
    found["wrong_config"] = {"code": show("ExecMainStatus"), "restarts": show("NRestarts")}
    CONFIG.write_text(good)
    do("systemctl", "reset-failed", UNIT)

    configure(model="framepack-i2v", memory="resident")
    do("systemctl", "start", UNIT)
    drop("waiting")
    job = job_in("pending", "waiting")
    found["no_weights"] = {
        "status": until(lambda: status_with("framepack-i2v"), "the missing weights"),
        "state": show("ActiveState"),
    }
    # The files of tiny stand in for the real ones.
    parts = ("transformer", "components", "image_encoder")
    for part, repository in zip(parts, repositories("framepack-i2v"), strict=True):
        shutil.copytree(MODELS / "tiny" / part, repository.folder(MODELS))
    with timed(found, "weights brought to the video"):
        job_in("done", "waiting")
    found["no_weights"]["outcome"] = record(job)["outcome"]
    CONFIG.write_text(good)
    do("systemctl", "stop", UNIT)
    do("umount", "--lazy", NAS)
    do("systemctl", "start", "--no-block", UNIT)
    found["no_share_at_start"] = _without_share()
    do("mount", "--bind", DISK, NAS)
    with timed(found, "share mounted to the start's end"):
        until(lambda: "idle" in show("StatusText"), "the end of the start")
    do("umount", "--lazy", NAS)
    found["no_share"] = _without_share()
    do("mount", "--bind", DISK, NAS)
    with timed(found, "share mounted to the next video"):
        drop("after")
        job_in("done", "after")

    as_member(f"touch {QUEUE}/pause")
    drop("full")
    job_in("pending", "full")
    do("dd", "if=/dev/zero", f"of={DISK}/zeros", "bs=64k", check=False)
    do("rm", QUEUE / "pause")
    found["full_disk"] = {
        "status": until(lambda: status_with("disk full"), "the full disk"),
        "state": show("ActiveState"),
    }
    do("rm", DISK / "zeros")
    with timed(found, "room made to the next video"):
        job_in("done", "full")


def leaving(found: dict[str, Any]) -> None:
    """Have the machine go down in mid-job, and its share come back with it."""
    do("systemctl", "stop", UNIT)
    do("cp", "--archive", DISK, KEPT)
    do("umount", "--lazy", NAS)
    with Path("/etc/fstab").open("a") as table:
        table.write(f"{KEPT} {NAS} none bind 0 0\n{sys.argv[2]} /opt/packages none bind 0 0\n")
    do("systemctl", "daemon-reload")
    do("mount", NAS)
    do("systemctl", "start", UNIT)
    drop("overnight", **LONG | {"frames": 360})
    job = job_in("processing", "overnight")
    found["at"] = goes_on(job)


def started_again(found: dict[str, Any]) -> None:
    """The machine is up again: its init has started the daemon, nobody else has."""
    found["enabled"] = show("UnitFileState")
    until(lambda: show("ActiveState") == "active", "the daemon")
    up = do("systemctl", "show", "--value", "--property", "UserspaceTimestampMonotonic").stdout
    found["seconds"] = {"boot to READY": round((int(show("ActiveEnterTimestampMonotonic")) - int(up)) / 1e6, 1)}
    job = next(path.name.removesuffix(".status.json") for path in OUTPUTS.glob("overnight-*.status.json"))
    found["at"] = until(lambda: record(job)["state"] != "pending" and progress(job) > (0, 0) and progress(job), "it")
    job_in("done", "overnight")
    found["outcome"] = record(job)["outcome"]


def removing(found: dict[str, Any]) -> None:
    kept = [INBOX, OUTPUTS, QUEUE, CONFIG, WORK]
    videos = sorted(path.name for path in OUTPUTS.glob("*.mp4"))
    with timed(found, "uninstall"):
        install("--uninstall")
    found["units"] = do("systemctl", "list-unit-files", "--no-legend", "framepack-daemon*", check=False).stdout
    found["program"] = Path("/opt/framepack-daemon").exists() or Path("/usr/local/bin/framepack-daemon").is_symlink()
    found["kept"] = all(path.exists() for path in kept)
    found["videos_kept"] = bool(videos) and sorted(path.name for path in OUTPUTS.glob("*.mp4")) == videos
    install("--uninstall", "--purge")
    found["left"] = [str(path) for path in (*kept, Path("/etc/framepack-daemon"), WORK.parent) if path.exists()]
    found["user"] = do("getent", "passwd", "framepack", check=False).stdout


def elsewhere(found: dict[str, Any]) -> None:
    """Installed at another place, for a user who is there already, as the daemon of a GPU that this machine has not."""
    unit, prefix, user = "framepack-daemon@0.service", Path("/usr/local/lib/framepack"), "render"
    do("useradd", "--create-home", user)
    words = ("--prefix", prefix, "--user", user, "--wheels", WHEELS, "--gpu", "0")
    found["would"] = install("--dry-run", *words, "--gpu", "1")
    with timed(found, "install for a GPU"):
        install(*words)
    found["status"] = until(lambda: status_with("cuda", unit), "a word of the GPU")
    found["state"] = show("ActiveState", unit)
    found["enabled"] = show("UnitFileState", unit)
    process = Path("/proc", show("MainPID", unit))
    found["runs"] = [process.owner(), (process / "cmdline").read_text().split("\0")[0]]
    found["queue"] = owner(Path("/srv/framepack/0/queue/pending"))
    install("--uninstall", "--purge")
    places = (prefix, Path("/srv/framepack"), CONFIG.parent, WORK.parent)
    found["left"] = [str(path) for path in places if path.exists()]
    found["units"] = do("systemctl", "list-unit-files", "--no-legend", "framepack-daemon*", check=False).stdout
    found["user"] = do("getent", "passwd", user, check=False).stdout


def main() -> None:
    parts = (started_again, removing, elsewhere)
    if len(sys.argv) > 1:
        do("mount", "--mkdir", "--bind", sys.argv[2], "/opt/packages")
        shutil.copytree(sys.argv[1], DROPS)
        DROPS.chmod(0o755)
        parts = (installing, sharing, gateway, faults, escaping, misfortunes, leaving)
    for part in parts:
        found: dict[str, Any] = {"part": part.__name__}
        start = time.monotonic()
        try:
            part(found)
        except Exception:  # noqa: BLE001 - the next part may tell more
            journal = do("journalctl", "--no-pager", "--output=cat", "--lines=30", "--unit", "framepack-daemon*").stdout
            found["error"] = f"{traceback.format_exc()}\n{journal}"
        found["took"] = round(time.monotonic() - start, 1)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
