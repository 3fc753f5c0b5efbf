# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _boot_cmdline, _grub

WORDS = ["kho=on", "liveupdate=on"]


class Host:
    """Makes GRUB's menu from files as update-grub does, by a real shell."""

    def __init__(self, folder):
        self.folder, self.settings, self.runs = folder, folder / "grub.d", 0
        self.settings.mkdir()
        (folder / "grubenv").write_text("# GRUB Environment Block\n")
        (folder / "grub").write_text('GRUB_CMDLINE_LINUX=""\n')
        self.update()
        self.runs = 0

    def update(self):
        self.runs += 1
        script = f"set -e; for f in {self.folder}/grub {self.settings}/*.cfg; do test ! -e $f || . $f; done; echo $GRUB_CMDLINE_LINUX"
        line = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.strip()
        entry = "menuentry '{0}' {{\n linux /boot/vmlinuz-{0} root=/dev/vda1 ro {1}\n}}\n"
        (self.folder / "grub.cfg").write_text('set default="0"\n' + entry.format("new", line) + entry.format("own", "quiet"))


@pytest.fixture(name="host")
def a_debian(tmp_path, monkeypatch):
    host = Host(tmp_path)
    (tmp_path / "update-grub").touch()
    monkeypatch.setattr(_grub, "UPDATE_GRUB", str(tmp_path / "update-grub"))
    monkeypatch.setattr(_grub, "MENU", str(tmp_path / "grub.cfg"))
    monkeypatch.setattr(_grub, "SETTINGS", str(host.settings))
    monkeypatch.setattr(_grub, "update", host.update)
    monkeypatch.setattr(_grub, "not_in_charge", lambda: "")
    monkeypatch.setattr(_boot_cmdline, "SETTING", str(host.settings / "kvm-liveupdate.cfg"))
    return host


def test_words_are_added_once_and_taken_away(host):
    assert _boot_cmdline.missing(WORDS) == WORDS
    assert _boot_cmdline.change(WORDS, True) == ([], WORDS, True)
    assert host.runs == 0 and not (host.settings / "kvm-liveupdate.cfg").exists()
    assert _boot_cmdline.change(WORDS, False) == ([], WORDS, True)
    assert _boot_cmdline.missing(WORDS) == []
    assert _boot_cmdline.change(WORDS, False) == _boot_cmdline.change(WORDS, True) == (WORDS, WORDS, False)
    more = [*WORDS, "kho_scratch=1G"]
    assert _boot_cmdline.change(more, False) == (WORDS, more, True)
    assert _boot_cmdline.change([], True) == _boot_cmdline.change([], False) == (more, [], True)
    assert _boot_cmdline.missing(WORDS) == WORDS
    assert _boot_cmdline.change([], False) == ([], [], False)
    assert host.runs == 3


def test_the_setting_is_durable(host, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    _boot_cmdline.change(WORDS, False)
    assert len(synced) == 4  # the file and its directory, before update-grub and after it


def test_a_menu_that_was_never_written_is_written(host):
    """An earlier run has written the setting and got no further."""
    _boot_cmdline.change(WORDS, False)
    (host.folder / "grub.cfg").write_text("menuentry 'new' {\n linux /boot/vmlinuz quiet\n}\n")
    assert _boot_cmdline.change(WORDS, False) == (WORDS, WORDS, True)
    assert _boot_cmdline.missing(WORDS) == []


def test_a_later_file_that_wins_is_named(host):
    (host.settings / "serial.cfg").write_text('GRUB_CMDLINE_LINUX="console=ttyS0,115200n8"\n')
    with pytest.raises(LiveUpdateError) as caught:
        _boot_cmdline.change(WORDS, False)
    assert caught.value.message == (
        f'the next boot would start "new" without kho=on liveupdate=on (GRUB\'s menu {host.folder}/grub.cfg): {host.settings}/serial.cfg'
        f' overwrites GRUB_CMDLINE_LINUX after {host.settings}/kvm-liveupdate.cfg; write GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX ..." in'
        f" {host.settings}/serial.cfg, and run this again"
    )
    (host.settings / "serial.cfg").write_text('GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX console=ttyS0,115200n8"\n')
    assert _boot_cmdline.change(WORDS, False)[2]
    assert _boot_cmdline.missing(WORDS) == []


@pytest.mark.parametrize("remembered", ["next_entry=own", "next_entry=1"])
def test_an_entry_of_the_next_boot_that_update_grub_does_not_make(host, remembered):
    (host.folder / "grubenv").write_text(f"# GRUB Environment Block\n{remembered}\n")
    with pytest.raises(
        LiveUpdateError,
        match=r'the next boot would start "own" without kho=on liveupdate=on .* does not affect this'
        r" entry; choose",
    ):
        _boot_cmdline.change(WORDS, False)


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_host_that_grub_does_not_boot_is_told_at_once(host, monkeypatch, check_mode):
    monkeypatch.setattr(_grub, "not_in_charge", lambda: "systemd-boot 257.2 started it")
    with pytest.raises(
        LiveUpdateError, match=r'^this host does not boot with .*: systemd-boot 257.2 started it; add "kho=on liveupdate=on" to'
    ):
        _boot_cmdline.change(WORDS, check_mode)
    (host.folder / "update-grub").unlink()
    with pytest.raises(LiveUpdateError, match=r'^.*update-grub does not exist on this host; add "kho=on liveupdate=on" to'):
        _boot_cmdline.change(WORDS, check_mode)
    assert host.runs == 0 and not (host.settings / "kvm-liveupdate.cfg").exists()


@pytest.mark.parametrize("words", [[], ["kho=on"]])
def test_an_update_grub_that_fails_leaves_the_setting_as_it_was(host, monkeypatch, words):
    """Otherwise the next run says that nothing changed, and the menu still has the words."""
    _boot_cmdline.change(WORDS, False)
    before = (host.settings / "kvm-liveupdate.cfg").read_text()

    def fail():
        raise LiveUpdateError("update-grub: exit code 1")

    with monkeypatch.context() as failing:
        failing.setattr(_grub, "update", fail)
        with pytest.raises(LiveUpdateError, match="exit code 1"):
            _boot_cmdline.change(words, False)
    assert (host.settings / "kvm-liveupdate.cfg").read_text() == before
    assert _boot_cmdline.change(words, True) == _boot_cmdline.change(words, False) == (WORDS, words, True)
    assert "liveupdate=on" in _boot_cmdline.missing(WORDS) and _boot_cmdline.change(words, False)[2] is False


@pytest.mark.parametrize("words", [[], ["kho=on"]])
def test_a_removal_that_is_cut_off_in_update_grub_is_repeated(host, monkeypatch, words):
    _boot_cmdline.change(WORDS, False)

    def cut_off():
        raise KeyboardInterrupt

    with monkeypatch.context() as failing:
        failing.setattr(_grub, "update", cut_off)
        with pytest.raises(KeyboardInterrupt):
            _boot_cmdline.change(words, False)
    assert _boot_cmdline.missing(WORDS) == []  # the menu still has them
    assert _boot_cmdline.change(words, True) == _boot_cmdline.change(words, False) == (words, words, True)
    assert "liveupdate=on" in _boot_cmdline.missing(WORDS)
    assert (host.settings / "kvm-liveupdate.cfg").exists() is bool(words)
    assert _boot_cmdline.change(words, False) == (words, words, False)
