# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _boot_default, _grub
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files

ID = "0a1b2c3d-1111-4222-8333-444455556666"
OLD = f"gnulinux-advanced-{ID}>gnulinux-7.2.13-advanced-{ID}"
NEW = f"gnulinux-advanced-{ID}>gnulinux-7.3.4-advanced-{ID}"


def menu(*releases, submenu=True, default="0"):
    """What update-grub writes on Debian, shortened."""
    entry = "{0}menuentry 'Linux {1}' --class debian $menuentry_id_option 'gnulinux-{1}-{2}-{3}' {{\n{0}\tlinux vmlinuz-{1}\n{0}}}\n"
    tab = "\t" if submenu else ""
    entries = "".join(entry.format(tab, release, kind, ID) for release in releases for kind in ("advanced", "recovery"))
    simple = f"menuentry 'Debian' --class debian $menuentry_id_option 'gnulinux-simple-{ID}' {{\n\tlinux /boot/vmlinuz\n}}\n"
    if submenu:
        entries = f"submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced-{ID}' {{\n{entries}}}\n"
    last = "menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {\n\tfwsetup\n}\n"
    return f'set default="{default}"\nif [ x = x ] ; then\n  true\nfi\n{simple}{entries}{last}'


class Debian:
    """A host whose update-grub lists what is in /boot."""

    def __init__(self, folder):
        self.setting, self.path, self.boot = folder / "default.cfg", folder / "grub.cfg", ["7.3.4", "7.2.13"]
        self.path.write_text(menu("7.2.13"))
        self.runs, self.fault, self.settings = 0, "", folder

    def run(self, *command, **limit):
        assert command == (_grub.UPDATE_GRUB,) and limit["timeout"] > 0
        self.runs += 1
        if self.fault:
            raise LiveUpdateError(self.fault)
        default = "0"
        for file in sorted(self.settings.glob("*.cfg")):
            for line in file.read_text().splitlines() if file != self.path else []:
                default = line.partition("=")[2].strip('"') if line.startswith("GRUB_DEFAULT=") else default
        self.path.write_text(menu(*self.boot, default=default))
        return ""


@pytest.fixture(name="programs")
def which_programs_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(_grub, "UPDATE_GRUB", str(tmp_path / "update_grub"))
    monkeypatch.setattr(_boot_default, "GRUBBY", str(tmp_path / "grubby"))
    monkeypatch.setattr(_boot_default, "SETTING", str(tmp_path / "default.cfg"))
    monkeypatch.setattr(_grub, "SETTINGS", str(tmp_path))
    monkeypatch.setattr(_grub, "MENU", str(tmp_path / "grub.cfg"))
    monkeypatch.setattr(_grub, "not_in_charge", lambda: "")
    monkeypatch.setattr(_files, "BOOT_DEFAULT", str(tmp_path / "boot-default.json"))
    return tmp_path


@pytest.fixture(name="debian")
def a_debian(programs, monkeypatch):
    (programs / "update_grub").touch()
    host = Debian(programs)
    monkeypatch.setattr(_commands, "run", host.run)
    return host


@pytest.mark.parametrize(
    ("kernel", "release"),
    [("/boot/vmlinuz-7.3.4", "7.3.4"), ("/boot/vmlinuz-6.12.1-amd64", "6.12.1-amd64"), ("/boot/kernel-7.3.4+x", "7.3.4+x")],
)
def test_the_release_is_in_the_images_name(kernel, release):
    assert _boot_default.release_of(kernel) == release


def test_the_running_kernel_is_kept_and_the_new_one_takes_its_place(debian):
    assert _boot_default.kept() == ""
    predicted = _boot_default.change("/boot/vmlinuz-7.2.13", True)
    assert debian.runs == 0 and not debian.setting.exists()
    assert _boot_default.change("/boot/vmlinuz-7.2.13", False) == predicted == ("", OLD)
    assert debian.runs == 1 and f'\nGRUB_DEFAULT="{OLD}"\n' in debian.setting.read_text()
    assert _boot_default.change("/boot/vmlinuz-7.2.13", False) == (OLD, OLD)
    assert debian.runs == 1 and _boot_default.kept() == OLD
    assert _boot_default.change("/boot/vmlinuz-7.3.4", False) == (OLD, NEW)
    assert _boot_default.change("", True) == (NEW, "") and debian.setting.exists()
    assert _boot_default.change("", False) == (NEW, "")
    assert not debian.setting.exists() and debian.runs == 3
    assert _boot_default.change("", False) == ("", "") and debian.runs == 3


def test_an_image_that_no_package_brought_is_listed_first(debian):
    assert _boot_default.change("/boot/vmlinuz-7.3.4", False) == ("", NEW)
    assert debian.runs == 2


def test_an_image_that_grub_does_not_list_is_refused(debian):
    with pytest.raises(
        LiveUpdateError, match=r"no entry for kernel 7\.9\.9 \(/root/vmlinuz-7\.9\.9\); install the kernel as /boot/vmlinuz-7\.9\.9"
    ):
        _boot_default.change("/root/vmlinuz-7.9.9", False)
    assert not debian.setting.exists()
    before, after = _boot_default.change("/root/vmlinuz-7.9.9", True)
    assert before != after


@pytest.mark.parametrize(("before", "kernel"), [("", "/boot/vmlinuz-7.2.13"), (NEW, "/boot/vmlinuz-7.2.13"), (NEW, "")])
def test_what_could_not_be_set_is_as_it_was(debian, before, kernel):
    """A later run has to see that it is still to be done."""
    if before:
        _boot_default.change("/boot/vmlinuz-7.3.4", False)
    debian.fault = "no room in /boot"
    with pytest.raises(LiveUpdateError, match="no room in /boot"):
        _boot_default.change(kernel, False)
    assert _boot_default.kept() == before
    assert debian.setting.exists() is bool(before)


def test_a_removal_that_is_cut_off_in_update_grub_is_repeated(debian, monkeypatch):
    _boot_default.change("/boot/vmlinuz-7.2.13", False)

    def cut_off(*_command, **_limit):
        raise KeyboardInterrupt

    def remove():
        with monkeypatch.context() as failing:
            failing.setattr(_commands, "run", cut_off)
            with pytest.raises(KeyboardInterrupt):
                _boot_default.change("", False)

    remove()
    assert _boot_default.kept() == OLD  # as the menu has it
    assert _boot_default.change("", True) == _boot_default.change("", False) == (OLD, "")
    assert 'set default="0"' in debian.path.read_text() and not debian.setting.exists()
    assert _boot_default.change("", False) == ("", "")
    _boot_default.change("/boot/vmlinuz-7.2.13", False)
    remove()
    assert _boot_default.change("/boot/vmlinuz-7.2.13", False) == ("", OLD) and f'\nGRUB_DEFAULT="{OLD}"\n' in debian.setting.read_text()


def test_a_later_file_that_wins_is_named(debian, programs):
    """Proxmox pins a kernel so."""
    pin = programs / "proxmox-kernel-pin.cfg"
    pin.write_text(f'GRUB_DEFAULT="{NEW}"\n')
    with pytest.raises(LiveUpdateError) as caught:
        _boot_default.change("/boot/vmlinuz-7.2.13", False)
    assert caught.value.message == (
        f"a cold boot would start the entry {NEW}, not {OLD} (GRUB's menu {debian.path}), although {debian.setting} sets it: {pin} sets"
        f" GRUB_DEFAULT after it; remove GRUB_DEFAULT from {pin}, and run this again"
    )
    assert _boot_default.kept() == ""
    pin.unlink()
    assert _boot_default.change("/boot/vmlinuz-7.2.13", False) == ("", OLD)


def test_a_default_that_was_lost_since_is_seen(debian, programs):
    _boot_default.change("/boot/vmlinuz-7.2.13", False)
    debian.path.write_text(menu(*debian.boot))
    assert _boot_default.change("/boot/vmlinuz-7.2.13", True) == _boot_default.change("/boot/vmlinuz-7.2.13", False) == ("", OLD)
    assert f'set default="{OLD}"' in debian.path.read_text()
    (programs / "z.cfg").write_text('GRUB_DEFAULT="0"\n')
    debian.path.write_text(menu(*debian.boot))
    with pytest.raises(LiveUpdateError, match=r"a cold boot would start the entry 0, not .*z\.cfg sets GRUB_DEFAULT after it"):
        _boot_default.change("/boot/vmlinuz-7.2.13", False)


def test_an_entry_that_is_gone_is_no_default(debian):
    """GRUB starts the first entry then."""
    debian.boot.remove("7.2.13")
    with pytest.raises(LiveUpdateError, match=r"another script writes the default into the menu; search for 'set default' in "):
        _boot_default.change("/boot/vmlinuz-7.2.13", False)
    assert _boot_default.kept() == ""


def test_the_setting_is_durable(debian, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    _boot_default.change("/boot/vmlinuz-7.2.13", False)
    assert len(synced) == 2  # the file and its directory


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_host_that_grub_does_not_boot_says_so(debian, monkeypatch, check_mode):
    monkeypatch.setattr(_grub, "not_in_charge", lambda: "systemd-boot 257.2 started it")
    with pytest.raises(
        LiveUpdateError, match=r"^this host does not boot with GRUB's menu .*: systemd-boot 257.2 started it; make the running kernel"
    ):
        _boot_default.change("/boot/vmlinuz-7.2.13", check_mode)
    assert debian.runs == 0 and not debian.setting.exists()
    assert _boot_default.change("", check_mode) == ("", "")


def test_a_host_without_grubs_menu_says_so(debian):
    debian.path.unlink()
    with pytest.raises(LiveUpdateError, match=r"GRUB's menu .*grub\.cfg: No such file"):
        _boot_default.change("/boot/vmlinuz-7.2.13", False)


def test_an_unknown_boot_loader_is_the_operators(programs):
    with pytest.raises(LiveUpdateError, match=r"neither .* nor .* exists on this host"):
        _boot_default.change("/boot/vmlinuz-7.2.13", False)


def test_with_grubby_the_former_default_comes_back(programs, monkeypatch):
    (programs / "grubby").touch()
    old, new = "/boot/vmlinuz-old", "/boot/vmlinuz-new"
    default = [old]

    def run(_program, word, **_limit):
        if word.startswith("--set-default="):
            default.append(word.partition("=")[2])
        return f"{default[-1]}\n"

    monkeypatch.setattr(_commands, "run", run)
    assert _boot_default.change(old, True) == ("", old) and _boot_default.kept() == ""
    assert _boot_default.change(old, False) == ("", old) and default == [old]
    default.append("/boot/vmlinuz-of-a-package")
    assert _boot_default.change(old, False) == ("", old) and default[-1] == old
    assert _boot_default.change(old, False) == (old, old)
    assert _boot_default.change(new, False) == (old, new) and default[-1] == _boot_default.kept() == new
    assert _boot_default.change("", False) == (new, "") and default[-1] == old
    assert _boot_default.change("", False) == ("", "") and _boot_default.kept() == ""


def test_with_grubby_the_former_default_is_on_record_before_the_change(programs, monkeypatch):
    (programs / "grubby").touch()
    old, new = "/boot/vmlinuz-old", "/boot/vmlinuz-new"
    default, cut_off = [old], [True]

    def run(_program, word, **_limit):
        if word.startswith("--set-default="):
            default.append(word.partition("=")[2])
            if cut_off:
                raise KeyboardInterrupt
        return f"{default[-1]}\n"

    monkeypatch.setattr(_commands, "run", run)
    with pytest.raises(KeyboardInterrupt):
        _boot_default.change(new, False)
    cut_off.clear()
    _boot_default.change(new, False)
    assert _boot_default.change("", False) == (new, "") and default[-1] == old


def test_a_default_that_grubby_does_not_take_is_an_error(programs, monkeypatch):
    (programs / "grubby").touch()
    monkeypatch.setattr(_commands, "run", lambda *_command, **_limit: "/boot/vmlinuz-other\n")
    says = r"^a cold boot would start /boot/vmlinuz-other, although grubby set /boot/vmlinuz-7\.2\.13 as .* run 'grub2-set-default ID'"
    with pytest.raises(LiveUpdateError, match=says):
        _boot_default.change("/boot/vmlinuz-7.2.13", False)
    assert _boot_default.kept() == ""
