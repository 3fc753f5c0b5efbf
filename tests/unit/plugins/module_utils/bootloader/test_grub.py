# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _grub

U = "0a1b2c3d-1111-4222-8333-444455556666"
# What grub-mkconfig writes on Debian 13, shortened.
MENU = f"""
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
function savedefault {{
  if [ -z "${{boot_once}}" ]; then
    save_env saved_entry
  fi
}}
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-{U}' {{
\tload_video
\tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
\techo\t'Loading Linux 7.3.4 ...'
\tlinux\t/boot/vmlinuz-7.3.4 root=UUID={U} ro quiet kho=on liveupdate=on
\tinitrd\t/boot/initrd.img-7.3.4
}}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-{U}' {{
\tmenuentry 'Debian GNU/Linux, with Linux 7.3.4' --class debian $menuentry_id_option 'gnulinux-7.3.4-advanced-{U}' {{
\t\tlinux\t/boot/vmlinuz-7.3.4 root=UUID={U} ro kho=on liveupdate=on
\t}}
\tmenuentry 'Debian GNU/Linux, with Linux 7.3.4 (recovery mode)' $menuentry_id_option 'gnulinux-7.3.4-recovery-{U}' {{
\t\tlinux\t/boot/vmlinuz-7.3.4 root=UUID={U} ro single
\t}}
\tmenuentry 'Debian GNU/Linux, with Linux 7.2.13' --class debian $menuentry_id_option 'gnulinux-7.2.13-advanced-{U}' {{
\t\tlinux\t/boot/vmlinuz-7.2.13 root=UUID={U} ro dyndbg="file a.c +p" kho=on
\t}}
}}
### BEGIN /etc/grub.d/30_uefi-firmware ###
if [ "$grub_platform" = "efi" ]; then
\tmenuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {{
\t\tfwsetup
\t}}
fi
menuentry "Rob's own" {{
\tlinux /vmlinuz a=b
}}
"""
OLD = f"gnulinux-advanced-{U}>gnulinux-7.2.13-advanced-{U}"


def test_the_entries_of_a_menu():
    simple, advanced, firmware, own = _grub.entries(MENU)
    assert simple["lines"] == [f"/boot/vmlinuz-7.3.4 root=UUID={U} ro quiet kho=on liveupdate=on"]
    assert [entry["id"].split("-")[1:3] for entry in advanced["entries"]] == [
        ["7.3.4", "advanced"],
        ["7.3.4", "recovery"],
        ["7.2.13", "advanced"],
    ]
    assert (firmware["id"], firmware["lines"]) == ("uefi-firmware", [])
    assert own == {"title": "Rob's own", "id": "", "lines": ["/vmlinuz a=b"], "entries": []}


def test_an_entry_is_named_with_its_submenu():
    assert _grub.entry_of(MENU, "7.2.13") == OLD
    assert _grub.entry_of(MENU, "7.2.1") == _grub.entry_of("", "7.2.13") == ""


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        (OLD, f"gnulinux-7.2.13-advanced-{U}"),
        ("0", f"gnulinux-simple-{U}"),
        ("2", "uefi-firmware"),
        ("1>2", f"gnulinux-7.2.13-advanced-{U}"),
        ("1", f"gnulinux-7.3.4-advanced-{U}"),
        ("Advanced options for Debian GNU/Linux>2", f"gnulinux-7.2.13-advanced-{U}"),
        ("UEFI Firmware Settings", "uefi-firmware"),
        # What GRUB does not find it passes over: the first entry starts.
        ("", f"gnulinux-simple-{U}"),
        ("9", f"gnulinux-simple-{U}"),
        ("gnulinux-7.2.13-advanced-x", f"gnulinux-simple-{U}"),
        (f"gnulinux-advanced-{U}>gone", f"gnulinux-7.3.4-advanced-{U}"),
    ],
)
def test_the_entry_that_grub_starts_for_a_name(name, identity):
    assert _grub.chosen(MENU, name)["id"] == identity


@pytest.mark.parametrize(
    ("default", "remembered", "name"),
    [
        ("0", {}, "0"),
        (OLD, {"saved_entry": "x"}, OLD),
        ("${saved_entry}", {"saved_entry": "x"}, "x"),
        ("${saved_entry}", {}, ""),
    ],
)
def test_the_default_of_a_menu(default, remembered, name):
    assert _grub.default_of(MENU.replace('default="0"', f'default="{default}"'), remembered) == name


def test_what_was_asked_for_once_comes_next():
    assert _grub.boots(MENU, {})["id"] == f"gnulinux-simple-{U}"
    assert _grub.boots(MENU, {"next_entry": OLD})["id"] == f"gnulinux-7.2.13-advanced-{U}"


def test_the_command_line_of_an_entry():
    assert _grub.line_of(_grub.chosen(MENU, OLD)) == f'root=UUID={U} ro "dyndbg=file a.c +p" kho=on'
    assert _grub.line_of(_grub.chosen(MENU, "2")) == _grub.line_of(_grub.chosen("", "0")) == ""


@pytest.fixture(name="host")
def files_of_a_host(tmp_path):
    def put(path, content):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)

    put("proc/cmdline", b"root=/dev/vda1 rw\n")
    put.why = lambda: _grub.not_in_charge(str(tmp_path))
    return put


def params(kind):
    data = bytearray(4096)
    data[0x210] = kind
    return bytes(data)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"proc/cmdline": b"BOOT_IMAGE=/boot/vmlinuz root=x\n", "sys/kernel/boot_params/data": params(0x72)}, ""),
        ({"sys/kernel/boot_params/data": params(0x21)}, "its kernel command line has no BOOT_IMAGE=, the parameter that GRUB adds"),
        (
            {"proc/cmdline": b"BOOT_IMAGE=vmlinuz\n", "sys/kernel/boot_params/data": params(0x32)},
            "another boot loader started it (type 0x32 in /sys/kernel/boot_params/data)",
        ),
        # GRUB by way of the kernel's EFI stub.
        ({"proc/cmdline": b"BOOT_IMAGE=/boot/vmlinuz root=x\n", "sys/kernel/boot_params/data": params(0x21)}, ""),
        # By kexec, or on arm64.
        ({"sys/kernel/boot_params/data": params(0xD0)}, ""),
        ({}, ""),
        (
            {_grub._LOADER_INFO: b"\7\0\0\0" + "systemd-boot 257.2\0".encode("utf-16-le"), "sys/kernel/boot_params/data": params(0xD0)},
            "systemd-boot 257.2 started it",
        ),
        ({_grub._LOADER_INFO: b"\7\0\0\0" + "GRUB 2.12\0".encode("utf-16-le"), "sys/kernel/boot_params/data": params(0xD0)}, ""),
        (
            {"proc/cmdline": b"BOOT_IMAGE=/x\n", "etc/kernel/proxmox-boot-uuids": b"AB-CD\n"},
            "proxmox-boot-tool boots from copies of the menu or of the kernels on other partitions (/etc/kernel/proxmox-boot-uuids)",
        ),
    ],
)
def test_whether_a_host_boots_by_grub_s_menu(host, files, why):
    for path, content in files.items():
        host(path, content)
    assert host.why() == why


@pytest.mark.parametrize(
    ("files", "winner"),
    [
        ({}, ""),
        ({"a.cfg": 'V="x"', "ours.cfg": 'V="x"', "z.cfg": "W=1"}, ""),
        ({"z.cfg": "  export V=x"}, "z.cfg"),
        ({"y.cfg": "V=1", "z.cfg": "V=2", "zz.conf": "V=3"}, "z.cfg"),
        ({"z.cfg": 'V="$V x"'}, ""),
        ({"z.cfg": 'V="x ${V}"'}, ""),
        ({"z.cfg": 'V="$V_DEFAULT"'}, "z.cfg"),
        ({"z.cfg": '# V="x"\nV_DEFAULT=x'}, ""),
    ],
)
def test_the_file_that_wins(tmp_path, monkeypatch, files, winner):
    monkeypatch.setattr(_grub, "SETTINGS", str(tmp_path))
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n")
    assert _grub.winner("V", "/etc/default/grub.d/ours.cfg") == (f"{tmp_path}/{winner}" if winner else "")


def test_a_menu_may_have_any_bytes(tmp_path, monkeypatch):
    """The title of another system on the disks."""
    (tmp_path / "grub.cfg").write_bytes(b"menuentry 'B\xfcro' --id x {\n linux /vmlinuz a=\xff\n}\n")
    monkeypatch.setattr(_grub, "MENU", str(tmp_path / "grub.cfg"))
    (entry,) = _grub.entries(_grub.menu())
    assert entry["title"] == "B\udcfcro"
