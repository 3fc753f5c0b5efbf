# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline, _image, _kexec, _proof
from ansible_collections.kvm.liveupdate.plugins.modules import kexec_image

IMAGE = {
    "path": "/boot/vmlinuz",
    "release": "7.3.4",
    "sha256": "s1",
    "initrd": None,
    "initrd_sha256": None,
    "cmdline": "kho=on liveupdate=on",
}
UNKNOWN = {"code": "abi-luo-unread", "message": "which luo-vN it speaks is not known", "remedy": "mount debugfs", "verdict": "unknown"}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host that has ``staged`` and that proves ``verdict``; returns what was done to it."""
    done = []
    state = types.SimpleNamespace(staged={}, loaded=False, sha256="s1", verdict="proven", done=done)

    def prove(image, cmdline, initrd, without):
        done.append("prove")
        state.without = without
        assert (image, cmdline, initrd) == ({"read": "/boot/vmlinuz", "sha256": "s1"}, IMAGE["cmdline"], None)
        reasons = [] if state.verdict == "proven" else [{**UNKNOWN, "verdict": state.verdict}]
        return {"pair": "a-b", "there": {"verdict": state.verdict, "reasons": reasons}, "back": {}}

    monkeypatch.setattr(_files, "RUN", str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(kexec_image, "wanted_image", lambda params, _running: IMAGE if params["state"] == "staged" else {})
    monkeypatch.setattr(_proof, "prove", prove)
    monkeypatch.setattr(_image, "read", lambda path, **_keep: {"read": path, "sha256": state.sha256})
    monkeypatch.setattr(_this_boot, "current_cmdline", lambda: "")
    monkeypatch.setattr(_kexec, "record", lambda: state.staged)
    monkeypatch.setattr(_kexec, "loaded", lambda: state.loaded)
    monkeypatch.setattr(_kexec, "stage", lambda image: done.append("stage"))
    monkeypatch.setattr(_kexec, "unload", lambda: done.append("unload"))
    return state


def run(accepted=(), state="staged", check_mode=False, initrd=None):
    params = {"state": state, "kernel": "/boot/vmlinuz", "initrd": initrd, "cmdline": None, "accept_unknown": list(accepted)}
    return kexec_image.manage(types.SimpleNamespace(params=params, check_mode=check_mode))


def test_a_proven_kernel_is_staged_once(host):
    assert run()["changed"]
    assert host.done == ["prove", "stage"]
    host.staged = IMAGE
    assert not run()["changed"]
    assert host.done == ["prove", "stage"]


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(("verdict", "accepted"), [("refused", ["a-b"]), ("unknown", []), ("unknown", ["a-c"])])
def test_a_kernel_that_is_not_proven_is_not_staged(host, verdict, accepted, check_mode):
    host.verdict = verdict
    with pytest.raises(LiveUpdateError, match=r"^kernel /boot/vmlinuz is not staged: which luo-vN .* - mount debugfs") as caught:
        run(accepted, check_mode=check_mode)
    assert host.done == ["prove"]
    assert ("a-b" in caught.value.message) == (verdict == "unknown")


@pytest.mark.parametrize("state", ["staged", "unloaded"])
def test_nothing_is_staged_or_unloaded_under_an_update(host, state):
    host.staged = {} if state == "staged" else IMAGE
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="another live update operation runs"):
        run(state=state)
    assert not {"stage", "unload"} & set(host.done)


def test_a_file_that_is_replaced_while_it_is_examined_is_not_staged(host):
    """The proof is of the other one."""
    host.sha256 = "s2"
    with pytest.raises(LiveUpdateError, match="is not staged: the file changed while it was examined; run this again"):
        run()
    assert host.done == []


@pytest.mark.parametrize(("state", "does"), [("staged", "stage"), ("unloaded", "unload")])
def test_what_somebody_else_loaded_does_not_stay_loaded(host, state, does):
    host.staged, host.loaded = (IMAGE if state == "staged" else {}), True
    assert run(state=state)["changed"]
    assert host.done[-1] == does


def test_an_unknown_pair_that_is_accepted_is_staged(host):
    host.verdict = "unknown"
    assert run(["a-b"])["changed"]
    assert host.done == ["prove", "stage"]


RUNNING = f"BOOT_IMAGE=/boot/vmlinuz-7.2.13 root=/dev/vda1 kho=on initrd=old liveupdate=on {_cmdline.GUESTS_FIRST} {_cmdline.MOUNTS}"


@pytest.mark.parametrize(
    ("asked", "initrd", "cmdline"),
    [
        ({}, "initrd.img-7.3.4", "root=/dev/vda1 kho=on liveupdate=on"),
        ({"initrd": "none"}, None, "root=/dev/vda1 kho=on liveupdate=on"),
        ({"cmdline": "root=/dev/sda2 initrd=x"}, "initrd.img-7.3.4", "root=/dev/sda2 initrd=x"),
    ],
)
def test_a_kernel_gets_its_own_initial_ram_disk_and_no_words_of_the_last_boot_loader_or_jump(tmp_path, monkeypatch, asked, initrd, cmdline):
    for name in ("vmlinuz-7.3.4", "initrd.img-7.3.4"):
        (tmp_path / name).write_text(name)
    kernel = str(tmp_path / "vmlinuz-7.3.4")
    monkeypatch.setattr(_kexec, "describe", lambda path: {"path": path, "release": "7.3.4"})
    image = kexec_image.wanted_image({"state": "staged", "kernel": kernel, "initrd": None, "cmdline": None, **asked}, RUNNING)
    path = initrd and str(tmp_path / initrd)
    digest = initrd and hashlib.sha256(initrd.encode()).hexdigest()
    assert image == {"path": kernel, "release": "7.3.4", "initrd": path, "initrd_sha256": digest, "cmdline": cmdline}


@pytest.mark.parametrize(("initrd", "without"), [(None, False), ("", False), ("/boot/initrd", False), ("none", True)])
def test_only_who_says_none_wants_no_initrd(host, initrd, without):
    run(initrd=initrd)
    assert host.without is without


def test_check_mode_proves_and_stages_nothing(host):
    assert run(check_mode=True)["changed"]
    assert host.done == ["prove"]


def test_unloading_needs_no_proof(host):
    assert not run(state="unloaded")["changed"]
    host.staged = IMAGE
    assert run(state="unloaded")["changed"]
    assert host.done == ["unload"]
