# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook of a trial on this machine, with modules that do nothing (test_steps)."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from test_steps import INVENTORY, Fleet, facts, restored

GUEST = "liveupdate-trial"
WELL = {"runs": True, "goes_on": True, "marked": True, "pages": 16128, "differ": 0, "wrong": 0, "passes": 4, "ticks": 300}
COMPARED = {"findings": [], "notes": [], "times": [{"device": "link of ens4", "seconds": 14.2, "at_most": False}], "guest": WELL}
GONE = {"code": "interface-gone", "message": "network interface ens4 is gone", "remedy": "bind it"}


class Trial(Fleet):
    """One host, and the playbook ``kvm.liveupdate.trial``."""

    def try_it(self, *options, guests=(GUEST,), current=False, reasons=(), **extra):
        """Run the playbook; returns how it ended, what it printed, the report of the host, and the calls in order but for the leases."""
        self.answers["hypervisor_info"] = {
            "guests": [facts(name, provider="qemu") for name in guests],
            "reasons": list(reasons),
            "free": {"memory_mib": 9999, "saves_mib": 9999},
            "target": {"release": "7.3.4", "current": current},
            "boot_id": "b2" if current else "b1",
            "kernel": {"release": "7.3.4" if current else "7.2.13"},
            "ready": not reasons,
            "away": [],
            "last_update": {},
        }
        (self.folder / "answers.json").write_text(json.dumps(self.answers))
        (self.folder / "calls").write_text("")
        (self.folder / "hosts").write_text(INVENTORY)
        report = self.folder / "trial.json"
        report.unlink(missing_ok=True)
        given = {
            "hypervisor_update_hosts": "hv1",
            "hypervisor_update_kernel": "/boot/k",
            "hypervisor_trial_report": str(report),
            "__hypervisor_update_records": str(self.folder / "records"),
            **extra,
        }
        done = subprocess.run(
            ["ansible-playbook", "kvm.liveupdate.trial", "-i", "hosts", "-e", json.dumps(given), *options],
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(self.folder),
                "ANSIBLE_HOME": str(self.folder),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_SHOW_CUSTOM_STATS": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        calls = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        found = json.loads(report.read_text()).get("hv1", {}) if report.exists() else {}
        names = [call for call, _params in calls if not call.startswith(("hypervisor_info", "update_lease", "update_record"))]
        return done.returncode, done.stdout + done.stderr, found, names


@pytest.fixture(name="trial")
def a_trial(tmp_path, monkeypatch):
    trial = Trial(tmp_path, monkeypatch)
    trial.answers["guest:running"] = restored(GUEST)
    trial.answers["trial:compared"] = COMPARED
    return trial


def test_the_throw_away_guest_takes_the_way_of_every_guest_whatever_the_policy_says(trial):
    code, output, report, calls = trial.try_it(hypervisor_update_ladder=["shutdown"], hypervisor_trial_slow=60)
    assert code == 0 and report["outcome"] == "passed", output
    assert calls == [
        "trial:prepared",
        "kexec_image:staged",
        "guest:preserved",
        "kexec",
        "guest:running",
        "boot_default:present",
        "trial:compared",
        "trial:absent",
    ]
    assert (report["pause"], report["guest_kept"], report["update_id"]) == (1.0, False, "u1")
    assert "hv1: passed: Linux 7.2.13 -> 7.3.4, all devices and links are back, the last 14.2 s" in output
    assert "liveupdate_trial" in output and "last_back" in output


def test_a_finding_is_printed_and_fails_the_run(trial):
    trial.answers["trial:compared"] = {**COMPARED, "findings": [GONE]}
    code, output, report, calls = trial.try_it()
    assert code != 0 and report["outcome"] == "findings" and report["findings"] == [GONE], output
    assert "hv1: network interface ens4 is gone - bind it" in output and calls[-1] == "trial:absent"


RUNTIME = {"code": "runtime", "message": "no runtime", "remedy": "run the setup"}


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"guests": ["web"]}, "a trial needs a host without guests, and web runs here - migrate or stop them"),
        ({"guests": [], "current": True}, "the host runs Linux 7.3.4 already"),
        (
            {"guests": [], "reasons": [RUNTIME]},
            "no runtime - run the setup",
        ),
    ],
)
def test_a_host_that_cannot_be_tried_is_not_touched(trial, about, says):
    code, output, report, calls = trial.try_it(**about)
    assert code != 0 and report["outcome"] == "refused" and calls == [], output
    assert says in report["why"] and f"hv1: refused, not touched: {says}" in output


def test_check_mode_looks_only(trial):
    code, output, report, calls = trial.try_it("--check", guests=[])
    assert code == 0 and report["outcome"] == "checked" and calls == [], output
    assert "hv1: examined only: a trial is possible" in output


def test_what_fails_before_the_jump_is_undone_and_the_guest_removed(trial):
    trial.answers["guest:preserved"] = {"fails": True, "msg": "guest liveupdate-trial: EBUSY", "guests": []}
    code, output, report, calls = trial.try_it()
    assert code != 0 and (report["outcome"], report["why"]) == ("undone", "guest liveupdate-trial: EBUSY"), output
    assert "trial:compared" not in calls and calls[-1] == "trial:absent"


def test_a_guest_that_is_not_restored_is_kept_and_the_devices_are_compared_all_the_same(trial):
    trial.answers["guest:running"] = {"fails": True, "msg": "guest liveupdate-trial: not restored within 180 s", "guests": []}
    trial.answers["trial:compared"] = {**COMPARED, "guest": {"runs": False, "goes_on": False}, "findings": [GONE]}
    code, output, report, calls = trial.try_it()
    assert code != 0 and (report["outcome"], report["guest_kept"]) == ("failed", True), output
    assert report["findings"] == [GONE] and calls[-1] == "trial:compared"
    assert "kvm.liveupdate.trial -a state=absent" in output


def test_a_run_that_ended_after_the_jump_is_finished_by_the_same_command(trial):
    code, output, report, calls = trial.try_it(current=True)
    assert code == 0 and report["outcome"] == "passed", output
    assert "trial:prepared" not in calls and "kexec" not in calls and calls[-2:] == ["trial:compared", "trial:absent"]
