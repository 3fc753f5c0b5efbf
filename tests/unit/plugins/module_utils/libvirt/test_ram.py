# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU that was broken into names files of root's as its RAM, and owns the folder that its RAM is in."""

from __future__ import annotations

import io
import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _guests, _hook, _ram, _reasons, _save

PLACE = "/run/ram"


@pytest.mark.parametrize(
    ("path", "is_in_place"),
    [
        ("/run/ram/libvirt/qemu/1-app/pc.ram", True),
        ("/run/ram/libvirt/qemu/12-app/ram-node0", True),
        ("/dev/shm/libvirt/qemu/1-app/pc.ram", False),
        ("/run/ram/libvirt/qemu/pc.ram", False),
        ("/run/ram/libvirt/qemu/1-app/more/pc.ram", False),
        ("/run/ram/libvirt/qemu/../pc.ram", False),
        ("/run/ram/libvirt/qemu/1-app/..", False),
        ("/run/ram/libvirt/qemu/1-app/", False),
        ("/run/ram/../../etc/libvirt/qemu/1-app/pc.ram", False),
        ("/dev/shm/victim", False),
        ("", False),
    ],
)
def test_where_ram_files_lie(path, is_in_place):
    assert _ram.is_in_place(path, PLACE) is is_in_place
    found = _reasons.place_reasons([{"path": path}], PLACE)
    assert [reason["code"] for reason in found] == ([] if is_in_place or not path else ["ram-elsewhere"])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('#memory_backing_dir = "/no"\n', "/var/lib/libvirt/qemu/ram"),
        ('memory_backing_dir = "/one"\n memory_backing_dir="/dev/shm/"\n', "/dev/shm/"),
        (None, "/var/lib/libvirt/qemu/ram"),
    ],
)
def test_the_configured_folder_counts(tmp_path, monkeypatch, text, place):
    monkeypatch.setattr(_ram, "_CONFIGURATION", str(tmp_path / "qemu.conf"))
    if text is not None:
        (tmp_path / "qemu.conf").write_text(text)
    assert _ram.directory() == place
    assert _ram.is_in_place(f"{place.rstrip('/')}/libvirt/qemu/1-app/pc.ram", place)


@pytest.fixture(name="folder")
def ram_folder_of_a_domain(tmp_path, monkeypatch):
    monkeypatch.setattr(_ram, "directory", lambda: str(tmp_path))
    folder = tmp_path / "libvirt" / "qemu" / "1-app"
    folder.mkdir(parents=True)
    return folder


def take(path, opened):
    """This process stands for QEMU, and has a file open as its RAM."""
    with open(opened, "rb") as file:
        record = {"pid": os.getpid(), "backends": [{"path": str(path)}], "ram": [{"fd": file.fileno()}]}
        for fd in _guests.memory(record):
            os.close(fd)


def test_ram_loses_its_name(folder):
    (folder / "pc.ram").touch()
    take(folder / "pc.ram", folder / "pc.ram")
    assert not (folder / "pc.ram").exists()


def test_the_ram_of_each_node_loses_its_name(folder):
    """The kernel preserves no file that has one."""
    nodes = [folder / "ram-node0", folder / "ram-node1"]
    for node in nodes:
        node.touch()
    with open(nodes[0], "rb") as one, open(nodes[1], "rb") as other:
        ram = [{"fd": file.fileno()} for file in (one, other)]
        taken = _guests.memory({"pid": os.getpid(), "backends": [{"path": str(node)} for node in nodes], "ram": ram})
        assert [os.fstat(fd).st_ino for fd in taken] == [os.fstat(file["fd"]).st_ino for file in ram]
        for fd in taken:
            os.close(fd)
    assert not list(folder.iterdir())


def test_ram_that_has_no_name_any_more_is_taken_all_the_same(folder, tmp_path):
    (tmp_path / "ram").touch()
    take(folder / "pc.ram", tmp_path / "ram")
    folder.rmdir()
    take(folder / "pc.ram", tmp_path / "ram")
    assert (tmp_path / "ram").exists()


def test_a_file_of_roots_keeps_its_name(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.touch()
    with pytest.raises(LiveUpdateError, match="is not below"):
        take(victim, victim)
    (folder / "pc.ram").symlink_to(victim)
    take(folder / "pc.ram", victim)
    assert victim.exists() and (folder / "pc.ram").is_symlink()
    (folder / "other.ram").touch()
    take(folder / "other.ram", victim)
    assert (folder / "other.ram").exists()


def test_a_folder_that_is_a_link_is_not_entered(folder, tmp_path):
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "file").touch()
    (folder.parent / "2-link").symlink_to(roots)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LiveUpdateError, match="cannot be opened"):
        take(folder.parent / "2-link" / "file", roots / "file")
    assert (roots / "file").exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_other_place_goes_on_record_for_the_hook(folder):
    good, bad = {"path": str(folder / "pc.ram")}, {"path": "/etc/1-app/pc.ram"}
    assert _save.ram_places({"backends": [good]}) == {"directory": str(folder.parent), "files": ["pc.ram"]}
    with pytest.raises(LiveUpdateError, match=r"/etc/1-app/pc\.ram is not below"):
        _save.ram_places({"backends": [good, bad]})


@pytest.mark.parametrize("memory", ["/proc/7/fd/9", "file"])
def test_the_hook_makes_no_file_behind_a_link(folder, tmp_path, monkeypatch, memory):
    roots = tmp_path / "roots"
    roots.mkdir()
    (folder / "pc.ram").touch()
    (folder.parent / "2-other").symlink_to(roots)
    memory = str(folder / "pc.ram") if memory == "file" else memory
    monkeypatch.setattr("sys.stdin", io.StringIO("<domain id='2'/>"))
    with pytest.raises(OSError, match="2-other"):
        _hook._place("other", {"directory": str(folder.parent), "files": ["pc.ram"]}, [memory])
    assert not list(roots.iterdir())


def test_the_hook_links_no_file_from_behind_a_link(folder, tmp_path, monkeypatch):
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "pc.ram").touch()
    (folder.parent / "3-link").symlink_to(roots)
    monkeypatch.setattr("sys.stdin", io.StringIO("<domain id='1'/>"))
    with pytest.raises(OSError, match="3-link"):
        _hook._place("app", {"directory": str(folder.parent), "files": ["pc.ram"]}, [str(folder.parent / "3-link" / "pc.ram")])
    assert not list(folder.iterdir())


def test_a_stand_in_gets_the_same_file(folder, monkeypatch):
    (folder / "pc.ram").write_text("memory")
    (folder.parent / "2-other").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO("<domain id='2'/>"))
    _hook._place("other", {"directory": str(folder.parent), "files": ["pc.ram"]}, [str(folder / "pc.ram")])
    assert os.path.samefile(folder / "pc.ram", folder.parent / "2-other" / "pc.ram")
