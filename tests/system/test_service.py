"""The service under a real systemd, with its sandbox on: installed, shared, stopped, killed, broken into, removed.

One installation does for all, since it takes longer than most of what is asked of it, and one restart of the machine;
`service_inside.py` is what runs there, and each test reads a part of its report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import service_wheels
from conftest import paint
from systemd_lab import boot
from tools import require, require_system_python

INSIDE = Path(__file__).with_name("service_inside.py")
PACKAGING = service_wheels.CHECKOUT / "packaging"
LIMIT_SECONDS = 900  # on a machine that has other things to do
pytestmark = pytest.mark.timeout(LIMIT_SECONDS + 60)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each part found, by its name."""
    require_system_python()
    lab = tmp_path_factory.mktemp("service")
    paint(lab / "beach.png")
    service_wheels.make(lab / "wheels", lab / "sources", site=Path("/opt/packages"))
    script = f"#!/bin/sh\nexec {sys.executable} {INSIDE}"
    first, again = f"{script} {lab} {service_wheels.SITE}\n", f"{script}\n"
    done = boot(first, again, timeout=LIMIT_SECONDS, services="framepack-daemon.service")
    lines = done.output.splitlines()
    assert done.returncode == 0, done.output
    return {part["part"]: part for part in map(json.loads, lines)}


def part(report: dict[str, dict], name: str) -> dict:
    found = report[name]
    sys.stdout.write(f"{name}: {found.get('seconds', '')} took {found['took']} s\n")
    assert "error" not in found, found["error"]
    return found


def test_the_installation_is_one_command(report) -> None:
    found = part(report, "installing")
    assert "/mnt/nas/photos/inbox" in found["said"]
    assert "usermod -aG framepack" in found["said"]
    assert set(found["folders"].values()) == {"framepack:framepack 2775"}


def test_a_dry_run_says_all_and_changes_nothing(report) -> None:
    found = part(report, "installing")
    assert found["changed_by_dry_run"] == []
    for word in ("systemd-sysusers", "-m venv", "config.toml", "framepack-daemon@.service", "systemctl enable"):
        assert word in found["would"]


def test_a_second_run_changes_nothing_and_keeps_an_edited_configuration(report) -> None:
    found = part(report, "installing")
    assert found["config_kept"]
    assert found["changed_by_second_run"] == []


@pytest.mark.parametrize(("option", "said"), [("--inbox", "says inbox"), ("--user", "with"), ("--prefix", "with")])
def test_what_is_installed_is_not_made_another_by_an_option(report, option: str, said: str) -> None:
    found = part(report, "installing")[option]
    assert said in found
    assert "mend:" in found


def test_systemd_finds_nothing_to_say_and_little_exposed(report) -> None:
    found = part(report, "installing")
    assert found["verify"] == ""
    sys.stdout.write(found["exposure"] + "\n")
    assert float(found["exposure"].split(":")[1].split()[0]) <= 1.0


def test_a_member_of_the_group_drops_takes_retries_and_cancels(report) -> None:
    found = part(report, "sharing")
    assert found["video"] == "framepack:framepack 664"
    assert found["job"] == "framepack:framepack 2775"
    assert found["taken"]
    assert found["retried"] == "completed"
    assert found["cancelled"] == "cancelled"


def test_the_gateway_takes_a_picture_and_gives_the_video(report) -> None:
    found = part(report, "gateway")
    assert found["stranger"] == 401
    assert found["video"]
    assert set(found["answers"].values()) == {200}
    assert found["user"] == "framepack"
    assert found["code"] == "0"
    sys.stdout.write(found["exposure"] + "\n")
    assert float(found["exposure"].split(":")[1].split()[0]) <= 1.0


def test_a_reload_changes_the_log_and_the_limits_and_keeps_the_job(report) -> None:
    assert part(report, "faults")["reload"] == {"same": True, "state": "active", "said": 0}


def test_a_stop_in_mid_job_is_clean_and_keeps_what_was_rendered(report) -> None:
    found = part(report, "faults")["stop"]
    assert found == {"result": "success", "code": "0", "pending": True, "checkpoint": True, "attempts": 0}


@pytest.mark.parametrize(
    "fault",
    [
        "systemctl stop and start",
        "kill -9 of the daemon",
        "kill -9 of the worker",
        "SIGSTOP of the worker",
        "SIGSTOP of the daemon",
        "kill -9 again",
    ],
)
def test_after_each_fault_the_job_goes_on_where_it_was(report, fault: str) -> None:
    assert part(report, "faults")["went_on"][fault]


def test_a_job_that_met_faults_ends_as_others_do(report) -> None:
    found = part(report, "faults")
    assert found["long"] == "cancelled"
    assert found["short"] == {"outcome": "completed", "video": "framepack:framepack 664"}


def test_nothing_gets_out_of_the_service(report) -> None:
    found = part(report, "escaping")
    sys.stdout.write("".join(f"  {what}: {why}\n" for what, why in found["inside"].items()))
    assert len(found["inside"]) >= 30
    assert [what for what, why in found["inside"].items() if why == "done"] == []
    # The list is worth something: some of it any other user may do.
    assert len([what for what, why in found["outside"].items() if why == "done"]) >= 8


def test_a_wrong_configuration_is_not_tried_again(report) -> None:
    assert part(report, "misfortunes")["wrong_config"] == {"code": "78", "restarts": "0"}


def test_missing_weights_are_said_and_waited_for(report) -> None:
    found = part(report, "misfortunes")["no_weights"]
    assert found["state"] == "active"
    assert "framepack-daemon models pull framepack-i2v" in found["status"]
    assert found["outcome"] == "completed"


def test_a_restart_of_the_machine_in_mid_job_costs_no_more_than_a_step(report) -> None:
    found = part(report, "started_again")
    assert found["enabled"] == "enabled"
    assert found["at"] >= part(report, "leaving")["at"]
    assert found["outcome"] == "completed"


@pytest.mark.parametrize("when", ["no_share_at_start", "no_share"])
def test_a_share_that_is_away_is_said_and_waited_for(report, when: str) -> None:
    found = part(report, "misfortunes")[when]
    assert found["state"] == "active"
    assert "/mnt/nas" in found["status"]
    assert found["made"] == []


def test_a_full_disk_is_said_and_waited_for(report) -> None:
    found = part(report, "misfortunes")["full_disk"]
    assert found["state"] == "active"


def test_an_uninstallation_keeps_the_data_and_a_purge_does_not(report) -> None:
    found = part(report, "removing")
    assert found["units"] == ""
    assert not found["program"]
    assert found["kept"]
    assert found["videos_kept"]
    assert found["left"] == []
    assert found["user"] == ""


def test_another_place_another_user_and_a_gpu_that_is_not_there(report) -> None:
    found = part(report, "elsewhere")
    assert found["state"] == "active"
    assert found["enabled"] == "enabled"
    assert "cuda:0" in found["status"]
    assert found["runs"] == ["render", "/usr/local/lib/framepack/bin/python"]
    assert found["queue"] == "render:render 2775"
    for number in "01":
        assert f"/srv/framepack/{number}/inbox" in found["would"]
    assert "framepack-daemon@0 framepack-daemon@1" in found["would"]
    assert found["left"] == []
    assert found["units"] == ""
    assert found["user"], "a user who was there before stays"


def test_the_script_is_clean() -> None:
    require("shellcheck")
    done = subprocess.run(["shellcheck", PACKAGING / "install.sh"], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_the_unit_of_one_gpu_is_that_of_all_but_for_its_own() -> None:
    def lines(name: str) -> set[str]:
        return {line for line in (PACKAGING / name).read_text().splitlines() if line and not line.startswith("#")}

    one, every = lines("framepack-daemon@.service"), lines("framepack-daemon.service")
    assert {line.partition("=")[0] for line in one ^ every} == {
        "Description",
        "Environment",
        "RuntimeDirectory",
        "SyslogIdentifier",
    }
