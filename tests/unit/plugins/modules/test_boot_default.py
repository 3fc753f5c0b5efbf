# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _boot_default
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _lease
from ansible_collections.kvm.liveupdate.plugins.modules import boot_default


@pytest.fixture(name="asked")
def what_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(_files, "RUN", str(tmp_path))
    for name in ("LOCK", "LEASE", "UPDATE", "OUTCOME"):
        monkeypatch.setattr(_files, name, str(tmp_path / name))
    monkeypatch.setattr(_this_boot, "kernel", lambda: {"release": "7.2.13"})
    monkeypatch.setattr(_boot_default, "kept", lambda: "old")
    monkeypatch.setattr(_boot_default, "change", lambda kernel, check_mode: asked.append((kernel, check_mode)) or ("old", kernel))
    return asked


def ask(check_mode=False, **params):
    given = {"state": "present", "kernel": None, "only_kept": False, "run": "mine", "ended": "", **params}
    return boot_default.manage(SimpleNamespace(params=given, check_mode=check_mode))


@pytest.mark.parametrize(
    ("params", "kernel"),
    [
        ({}, "/boot/vmlinuz-7.2.13"),
        ({"kernel": "/boot/vmlinuz-7.3.4", "only_kept": True}, "/boot/vmlinuz-7.3.4"),
        ({"state": "absent"}, ""),
    ],
)
@pytest.mark.parametrize("check_mode", [True, False])
def test_what_is_asked_for(asked, params, kernel, check_mode):
    found = ask(check_mode, **params)
    assert asked == [*([(kernel, True)] if params.get("only_kept") else []), (kernel, check_mode)]
    assert found == {"changed": True, "kept": kernel, "diff": {"before": {"kept": "old"}, "after": {"kept": kernel}}}


def test_a_host_whose_default_was_never_kept_is_left_alone(asked, monkeypatch):
    monkeypatch.setattr(_boot_default, "kept", lambda: "")
    found = ask(kernel="/boot/vmlinuz-7.3.4", only_kept=True)
    assert not found["changed"] and not asked


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_change_during_the_update_of_another_run_is_refused(asked, check_mode):
    """A host that runs the kernel already is not leased by this run, and another run may be updating it to another kernel."""
    _lease.take("other", "alice on ctl", 60, time.time())
    with pytest.raises(LiveUpdateError, match="another run updates this host: alice on ctl"):
        ask(check_mode, kernel="/boot/vmlinuz-7.3.4", only_kept=True)
    assert asked == [("/boot/vmlinuz-7.3.4", True)]  # a look, and no change
    assert ask(check_mode, kernel="/boot/vmlinuz-7.3.4", only_kept=True, ended="other")["changed"]
    assert ask(check_mode, kernel="/boot/vmlinuz-7.3.4", only_kept=True, run="other")["changed"]
    assert ask(check_mode, kernel="old", only_kept=True)["changed"] is False  # nothing to write
    assert ask(check_mode, state="absent")["changed"]  # an operator's own call
