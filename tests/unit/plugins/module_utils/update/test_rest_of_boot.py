# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _systemd, _this_boot, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline, _modules
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _rest_of_boot


@pytest.mark.parametrize(
    ("after", "alone"),
    [
        ("-.mount system.slice systemd-remount-fs.service systemd-journald.socket systemd-modules-load.service", True),
        ("-.mount machine-tenant.slice", True),
        ("-.mount system.slice network.target", False),
        ("-.mount system.slice var-lib.mount", False),
        ("-.mount system.slice systemd-remount-fs.service var-lib-libvirt.mount", False),  # where the saved images of domains are
    ],
)
def test_a_guest_comes_first_when_it_is_behind_nothing_else(after, alone):
    assert _rest_of_boot.alone(after.split()) is alone


WEB, MAIL = ({"name": name, "provider": "qemu", "unit": f"{name}.service"} for name in ("web", "mail"))
DB = {"name": "db", "provider": "libvirt", "unit": "kvm-liveupdate-hold@db.service"}
AFTER = {"web.service": "-.mount", "mail.service": "-.mount network.target", DB["unit"]: "-.mount system.slice systemd-remount-fs.service"}
# What libvirtd is ordered after, and what the boot starts, a step at a time.
ORDERED = {"libvirtd.service": "dbus.service iscsid.service systemd-machined.service", "dbus.service": "basic.target", "basic.target": ""}
STARTED = {
    "graphical.target": ["multi-user.target"],
    "multi-user.target": ["libvirtd.service", "ssh.service", "basic.target"],
    "libvirtd.service": ["dbus.service", "systemd-machined.service"],
}


@pytest.fixture(name="systemd")
def host_with_libvirtd(tmp_path, monkeypatch):
    """A host whose libvirtd runs unless it is taken out; unit files are below the path that this is."""
    active = {"libvirtd.service"}

    def show_each(units, *names):
        ids = {"default.target": "graphical.target"}
        known = {"After": AFTER, "ActiveState": dict.fromkeys(active, "active"), "Id": {unit: ids.get(unit, unit) for unit in units}}
        assert len(units) == len(set(units))
        return {unit: {name: known[name].get(unit, "") for name in names} for unit in units}

    monkeypatch.setattr(_systemd, "show_each", show_each)
    monkeypatch.setattr(_systemd, "graph", lambda: (STARTED, {unit: others.split() for unit, others in ORDERED.items()}))
    monkeypatch.setattr(_units, "FOLDER", str(tmp_path))
    return active


def links(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink())


def test_units_come_first_and_domains_next(systemd, tmp_path):
    stages = _rest_of_boot.plan([WEB, MAIL, DB])
    assert stages == [{"guests": ["web"], "start": _units.DAEMONS_TARGET}, {"guests": ["db"], "start": "default.target"}]
    dropin = tmp_path / f"{_units.DAEMONS_TARGET}.d/wants.conf"
    assert dropin.stat().st_mode & 0o777 == 0o644
    wants = dropin.read_text().splitlines()
    assert wants == [
        "[Unit]",
        *(f"Wants={unit}" for unit in ("basic.target", "dbus.service", "systemd-machined.service", "libvirtd.service")),
    ]
    assert links(tmp_path) == []


def test_what_a_boot_starts_is_found_through_others_and_circles():
    assert _rest_of_boot.reached({"a": ["b", "c"], "b": ["d", "a"], "x": ["y"]}, ["a"]) == {"a", "b", "c", "d"}


def test_daemons_are_not_told_to_start_where_no_unit_comes_first(systemd, tmp_path):
    link = f"{_units.TARGET}.wants/{_units.DAEMONS_TARGET}"
    assert _rest_of_boot.plan([MAIL, DB]) == [{"guests": ["db"], "start": "default.target"}]
    assert links(tmp_path) == [link]
    _rest_of_boot.plan([WEB, DB])
    assert links(tmp_path) == []


def test_domains_come_with_the_boot_where_no_daemon_is_known(systemd, tmp_path):
    systemd.clear()
    assert _rest_of_boot.plan([WEB, DB]) == [{"guests": ["web"], "start": "default.target"}]
    assert _rest_of_boot.plan([MAIL, DB]) == [] and links(tmp_path) == []


def test_the_next_boot_loads_what_guests_use_now_before_they_start(tmp_path, monkeypatch):
    path = tmp_path / "modules-load.d/kvm-liveupdate.conf"
    monkeypatch.setattr(_files, "MODULES", str(path))
    monkeypatch.setattr(_modules, "loaded", lambda: ["kvm", "kvm_amd", "tun"])
    _rest_of_boot.load_early()
    assert path.read_text() == "kvm\nkvm_amd\ntun\n" and path.stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(_modules, "loaded", list)
    _rest_of_boot.load_early()
    assert not path.exists()
    _rest_of_boot.load_early()


def test_an_update_goes_on_if_the_modules_cannot_be_named(tmp_path, monkeypatch, capfd):
    (tmp_path / "modules-load.d").write_text("")
    monkeypatch.setattr(_files, "MODULES", str(tmp_path / "modules-load.d/kvm-liveupdate.conf"))
    monkeypatch.setattr(_modules, "loaded", lambda: ["kvm"])
    _rest_of_boot.load_early()
    assert "the next boot loads the kernel modules of the guests late: " in capfd.readouterr().err


def test_the_kernel_is_told_once_and_the_next_one_does_not_inherit_it():
    told = _cmdline.for_jump("root=/dev/vda1 rw kho=on", True, "tty0 ttyS0")
    assert told == " ".join(("root=/dev/vda1 rw kho=on", f"systemd.unit={_units.TARGET}", _cmdline.MOUNTS, *_cmdline.CONSOLE))
    assert _cmdline.for_jump(told, True, "tty0 ttyS0") == told
    assert _cmdline.next_cmdline(f"BOOT_IMAGE=/vmlinuz {told}") == "root=/dev/vda1 rw kho=on"


@pytest.mark.parametrize(
    ("consoles", "added"), [("tty0", ()), ("ttyS0 tty0", ()), ("", ()), ("hvc0", _cmdline.CONSOLE), ("ttyS1", _cmdline.CONSOLE)]
)
def test_only_a_console_that_cannot_answer_is_described(consoles, added):
    assert _cmdline.for_jump("rw", False, consoles) == " ".join(("rw", _cmdline.MOUNTS, *added))


@pytest.mark.parametrize("words", ["TERM=vt100", "systemd.tty.rows.console=50"])
def test_who_says_otherwise_has_it_so(words):
    words = f"systemd.unit=fleet.target SYSTEMD_DEFAULT_MOUNT_RATE_LIMIT_BURST=7 {words}"
    assert _cmdline.for_jump(words, True, "ttyS0") == words


def test_pid_1_gets_no_variable_more_if_the_kernel_could_have_too_many():
    """It panics with more than 32."""
    few, many = (" ".join(f"site{number}=x" for number in range(count)) for count in (23, 24))
    assert _cmdline.for_jump(few, False, "tty0") == f"{few} {_cmdline.MOUNTS}"
    assert _cmdline.for_jump(many, False, "tty0") == many


@pytest.mark.parametrize(
    ("room", "guests_first", "kept"),
    [
        (0, True, ()),
        (len(_cmdline.GUESTS_FIRST), True, ()),
        (len(_cmdline.GUESTS_FIRST) + 1, True, (_cmdline.GUESTS_FIRST,)),
        (len(_cmdline.MOUNTS), False, ()),
        (len(_cmdline.MOUNTS) + 1, False, (_cmdline.MOUNTS,)),
    ],
)
def test_a_line_that_just_fits_is_not_made_too_long_to_load(room, guests_first, kept):
    """bzImage64_load refuses more than 2,016 characters. The words only save time."""
    line = f"root=/dev/vda1 site.text={'x' * (2016 - room - 25)}"
    assert len(line) == 2016 - room
    told = _cmdline.for_jump(line, guests_first, "ttyS0")
    assert told == " ".join((line, *kept)) and len(told) <= 2016


@pytest.fixture(name="booting")
def host_that_boots(tmp_path, monkeypatch):
    """Units web and db, then the domain mail; web runs after three turns, mail after five. What is started is noted with the turn."""
    started, turns = [], []
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    for name in ("db", "web", "mail"):
        _files.write_json(_files.journal_path(name), {"state": "saved"})
    monkeypatch.setattr(_commands, "run", lambda *command: started.append((len(turns), command[-1])))

    def sleep(_seconds):
        turns.append(0)
        assert len(turns) < 20, "it waits for ever"
        back = {3: "web", 5: "mail"}.get(len(turns))
        if back:
            _files.write_json(_files.journal_path(back), {"state": "restored"})

    monkeypatch.setattr(time, "sleep", sleep)
    stages = [{"guests": ["web", "db"], "start": _units.DAEMONS_TARGET}, {"guests": ["mail"], "start": "default.target"}]
    _files.write_json(_files.UPDATE, {"stages": stages})
    return started


def test_the_rest_of_the_boot_waits_for_guests_but_not_for_late_ones(booting):
    _early.late("db")
    _rest_of_boot.start_rest()
    assert booting == [(3, _units.DAEMONS_TARGET), (5, "default.target")]


def test_the_rest_of_the_boot_waits_for_nobody_who_is_back_already(booting):
    for name in ("db", "web", "mail"):
        _files.write_json(_files.journal_path(name), {"state": "restored"})
    _rest_of_boot.start_rest()
    assert booting == [(0, _units.DAEMONS_TARGET), (0, "default.target")]


@pytest.mark.parametrize("update", [{}, {"stages": []}])
def test_the_rest_of_the_boot_starts_where_no_update_asked_for_stages(booting, update):
    """With a command line that was taken over from the boot after a jump."""
    _files.write_json(_files.UPDATE, update)
    _rest_of_boot.start_rest()
    assert booting == [(0, "default.target")]


def test_the_rest_of_the_boot_starts_at_the_limit(booting, monkeypatch):
    monkeypatch.setattr(_early, "LIMIT_S", -1)
    _rest_of_boot.start_rest()
    assert booting == [(0, _units.DAEMONS_TARGET), (0, "default.target")]


def test_the_kernels_consoles_are_read(tmp_path, monkeypatch):
    active = tmp_path / "active"
    monkeypatch.setattr(_this_boot, "_CONSOLES", str(active))
    assert _this_boot.consoles() == ""
    active.write_text("tty0 ttyS0\n")
    assert _this_boot.consoles() == "tty0 ttyS0"
