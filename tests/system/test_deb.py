"""The Debian package: built from the tree, judged by lintian, and installed, upgraded, removed and purged for real.

One boot of a copy of this machine does the latter; `deb_inside.py` is what runs there, and each test reads a part of
its report.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import service_wheels
from conftest import paint
from service_wheels import CHECKOUT
from systemd_lab import boot
from tools import require, require_root, require_system_python

from framepack_daemon import __version__

INSIDE = Path(__file__).with_name("deb_inside.py")
SCRIPTS = [CHECKOUT / "packaging" / name for name in ("program.sh", "debian/build.sh")]
SCRIPTS += [CHECKOUT / "packaging/debian" / name for name in ("preinst", "postinst", "prerm", "postrm")]
PREVIOUS = "0.0.9"
LIMIT_SECONDS = 900  # some two minutes on a machine that does nothing else
pytestmark = pytest.mark.timeout(LIMIT_SECONDS + 300)


def build(checkout: Path, folder: Path) -> None:
    subprocess.run([checkout / "packaging/debian/build.sh", sys.executable, folder], check=True, capture_output=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in `new/`."""
    require("dpkg-deb")
    folder = tmp_path_factory.mktemp("deb")
    build(CHECKOUT, folder / "new")
    return folder


@pytest.fixture(scope="module")
def report(lab: Path) -> dict[str, dict]:
    """What each part found, by its name."""
    require("systemd-nspawn")
    require_root()
    require_system_python()
    # An older version, whose configuration had other comments.
    service_wheels.make(lab / "wheels", lab / "previous", version=PREVIOUS, site=Path("/opt/packages"))
    shutil.copytree(CHECKOUT / "packaging", lab / "previous/packaging")
    for name in ("constraints.txt", "CHANGELOG.md"):
        shutil.copy(CHECKOUT / name, lab / "previous")
    with (lab / "previous/packaging/config.toml").open("a") as config:
        config.write("# As it was.\n")
    build(lab / "previous", lab / "old")
    paint(lab / "beach.png")
    done = boot(f"#!/bin/sh\nexec {sys.executable} {INSIDE} {lab} {service_wheels.SITE}\n", timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.output
    return {part["part"]: part for part in map(json.loads, done.output.splitlines())}


def part(report: dict[str, dict], name: str) -> dict:
    found = report[name]
    sys.stdout.write(f"{name}: {found.get('seconds', '')} took {found['took']} s\n")
    assert "error" not in found, found["error"]
    return found


def test_lintian_finds_no_error_and_the_scripts_are_clean(lab: Path) -> None:
    require("lintian", "shellcheck")
    words = ["lintian", "--allow-root", "--fail-on=error,warning", *lab.glob("new/*.deb")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout + done.stderr)
    assert done.returncode == 0
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_without_a_network_nothing_is_half_done_and_the_mend_works(report) -> None:
    found = part(report, "installing")
    assert "pip.conf" in found["no_network"].partition("mend:")[2]
    assert found["after_no_network"] == "half-configured"
    assert found["state"] == ["installed", "active", f"framepack-daemon {PREVIOUS}"]


def test_an_installation_is_enabled_shared_and_renders(report) -> None:
    found = part(report, "installing")
    assert found["enabled"] == ["enabled", "enabled"]
    assert set(found["folders"].values()) == {"framepack:framepack 2775"}
    assert found["first"] == "completed"


def test_an_upgrade_in_mid_job_lets_it_go_on_where_it_was(report) -> None:
    found = part(report, "upgrading")
    assert found["state"] == ["installed", "active", f"framepack-daemon {__version__}"]
    before, after = found["sections"]
    assert 2 <= before <= after
    assert (found["stopped"], found["begun_anew"]) == (1, 0)
    assert found["outcome"] == "cancelled"


def test_an_upgrade_keeps_an_edited_configuration_and_offers_the_new_one(report) -> None:
    found = part(report, "upgrading")
    assert found["config_kept"]
    assert found["config_offered"]


def test_a_removal_keeps_the_data_and_what_is_installed_again_goes_on(report) -> None:
    found = part(report, "removing")
    assert found["state"][:2] == ["config-files", "inactive"]
    assert found["lost"] == []
    assert [path for path in found["left"] if re.match("/(opt|usr|run)/", path)] == []
    assert found["again"] == ["installed", "active", "completed"]


def test_a_purge_leaves_pictures_and_the_user_alone(report) -> None:
    found = part(report, "purging")
    assert found["state"] in ("", "not-installed")
    assert found["left"] == []
    assert found["kept"]
    assert found["lost"] == []
    assert "is not empty and stays" in found["said"]
    assert found["user"].startswith("framepack:")
