# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.kvm.liveupdate.plugins.module_utils import _qemu_run, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError


def test_a_guest_that_runs_again_steps_back_and_a_failure_of_that_is_only_said(monkeypatch, capsys):
    asked = []

    def run(*words):
        asked.append(words)
        raise LiveUpdateError("no answer from systemd")

    monkeypatch.setattr(_systemd, "run", run)
    _qemu_run._be_one_of_many("web.service")
    assert asked == [("systemctl", "set-property", "--runtime", "web.service", "StartupCPUWeight=", "StartupIOWeight=")]
    assert "no answer from systemd" in capsys.readouterr().err
