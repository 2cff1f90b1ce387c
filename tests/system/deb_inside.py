"""What a test of the Debian package does inside a booted copy of this machine: installs, upgrades, removes, purges.

Called with a folder that holds `old/`, `new/` (a package each), `wheels/` and a picture, and with the path of this
machine's packages; prints a line of JSON for each part, as `service_inside.py` does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service_box import CONFIG, QUICK, UNIT, configure, do, events, owner, show, timed, until

NAME = "framepack-daemon"
SHARE = Path("/srv/framepack")
PIP_CONF = CONFIG.with_name("pip.conf")
PICTURE = Path("/beach.png")  # where the daemon's user can read it
POLICY = Path("/usr/sbin/policy-rc.d")  # where it is there, it may forbid packages to start services
PACKAGES = "/opt/packages"  # this machine's
PLACES = ("/etc", "/opt", "/usr/bin", "/usr/lib", "/usr/share", "/var/lib", "/run/systemd")
LONG = QUICK | {"frames": 1080, "num_inference_steps": 3}  # 30 sections: it outlives the upgrade


def dpkg(*words: str | Path) -> str:
    return do("dpkg", "--force-confold", *words).stdout


def package(version: str) -> Path:
    return next((LAB / version).glob("*.deb"))


def state() -> str:
    return do("dpkg-query", "--show", "--showformat=${db:Status-Status}", NAME, check=False).stdout


def as_daemon(*words: str | Path) -> str:
    return do("runuser", "--user", "framepack", "--", NAME, *words, cwd="/").stdout.strip()


def submit(fields: dict[str, Any]) -> str:
    return as_daemon("submit", PICTURE, *(f"--set={name}={value}" for name, value in fields.items()))


def record(job: str) -> dict[str, Any]:
    return json.loads((SHARE / "outputs" / f"{job}.status.json").read_text())


def section(job: str) -> int:
    return (record(job).get("progress") or {}).get("section", 0)


def ended(job: str) -> dict[str, Any]:
    return until(lambda: record(job)["state"] in ("done", "failed") and record(job), f"the end of {job}")


def ours() -> Iterator[str]:
    """What of the package is on the machine, but for people's folders and dpkg's own notes."""
    for place in PLACES:
        for path in Path(place).rglob("*framepack*"):
            if "dpkg" not in path.parts and not path.is_relative_to(PACKAGES):
                yield str(path)


def installing(found: dict[str, Any]) -> None:
    impatient = os.environ | {"PIP_RETRIES": "0"}
    found["no_network"] = do("dpkg", "--install", package("old"), check=False, env=impatient).stderr
    found["after_no_network"] = state()
    PIP_CONF.write_text(f"[global]\nno-index = true\nfind-links = {LAB}/wheels\n")
    with timed(found, "dpkg --configure"):
        dpkg("--configure", "--pending")
    found["state"] = state(), show("ActiveState"), as_daemon("--version")
    found["enabled"] = do("systemctl", "is-enabled", UNIT, f"{NAME}-models.service").stdout.split()
    found["folders"] = {name: owner(SHARE / name) for name in ("inbox", "outputs", "queue", "queue/pending")}
    found["first"] = ended(submit(QUICK))["outcome"]


def upgrading(found: dict[str, Any]) -> None:
    configure(threads=2, device="cpu")
    do("systemctl", "restart", UNIT)
    config = CONFIG.read_text()
    job = submit(LONG)
    before = until(lambda: section(job) >= 2 and section(job), "the second section")
    with timed(found, "upgrade"):
        dpkg("--install", package("new"))
    after = until(lambda: record(job)["state"] == "processing" and section(job), "the job to go on")
    found["sections"] = before, after
    found["stopped"], found["begun_anew"] = events("job_stopping", job=job), events("job_not_resumed", job=job)
    found["state"] = state(), show("ActiveState"), as_daemon("--version")
    found["config_kept"] = CONFIG.read_text() == config
    found["config_offered"] = CONFIG.with_name("config.toml.dpkg-dist").exists()
    as_daemon("cancel", job)
    found["outcome"] = ended(job)["outcome"]


def removing(found: dict[str, Any]) -> None:
    kept = [CONFIG, PIP_CONF, *SHARE.glob("outputs/*.mp4"), *SHARE.glob("queue/done/*"), Path(f"/var/lib/{NAME}/work")]
    with timed(found, "remove"):
        dpkg("--remove", NAME)
    found["state"] = state(), show("ActiveState"), show("LoadState")
    found["lost"] = [str(path) for path in kept if not path.exists()]
    found["left"] = sorted(ours())
    with timed(found, "install again"):
        dpkg("--install", package("new"))
    found["again"] = state(), show("ActiveState"), ended(submit(QUICK | {"seed": 8}))["outcome"]


def purging(found: dict[str, Any]) -> None:
    until(lambda: not any((SHARE / "queue/processing").iterdir()), "what ended to leave processing")
    ours_alone = ("queue/.lock", "inbox/.framepack-daemon/lock")
    pictures = [path for path in SHARE.rglob("*") if path.is_file() and not str(path).endswith(ours_alone)]
    with timed(found, "purge"):
        found["said"] = dpkg("--purge", NAME)
    found["state"] = state()
    found["left"] = sorted(ours())
    found["kept"] = len(pictures)
    found["lost"] = [str(path) for path in pictures if not path.exists()]
    found["user"] = do("getent", "passwd", "framepack", check=False).stdout


def main() -> None:
    do("mount", "--mkdir", "--bind", sys.argv[2], PACKAGES)
    shutil.copy(LAB / "beach.png", PICTURE)
    POLICY.unlink(missing_ok=True)
    for part in (installing, upgrading, removing, purging):
        found: dict[str, Any] = {"part": part.__name__}
        start = time.monotonic()
        try:
            part(found)
        except Exception:  # noqa: BLE001 - the next part may tell more
            journal = do("journalctl", "--no-pager", "--output=cat", "--lines=30", "--unit", f"{NAME}*").stdout
            found["error"] = f"{traceback.format_exc()}\n{journal}"
        found["took"] = round(time.monotonic() - start, 1)
        print(json.dumps(found), flush=True)  # noqa: T201 - what comes after may not come to its end


if __name__ == "__main__":
    LAB = Path(sys.argv[1])
    main()
