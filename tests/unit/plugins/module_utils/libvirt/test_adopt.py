# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import struct

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _adopt, _agent, _guests, _reasons, _room, _setup, _virsh
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt._reasons import reason

XML = "<domain>\n  <name>app</name>\n  <memory unit='KiB'>1024</memory>\n</domain>\n"
RECORD = {"name": "app", "uuid": "u", "backends": [{"id": "pc.ram", "size": 1 << 20}]}
NOW = {**RECORD, "backends": [{"path": "/run/ram/libvirt/qemu/1-app/pc.ram"}]}  # after its start
GIB = 1 << 30
STREAM = b"QEVM" + bytes(range(256))


class Host:
    """A libvirt that saves and starts one domain; what the image was at each start is kept."""

    def __init__(self, folder):
        self.image, self.head, self.kept = folder / "app.save", folder / "app.save.head", b""
        self.calls, self.started, self.faults = [], [], 0

    def virsh(self, *words, **_limit):
        self.calls.append(words)
        if words[0] == "managedsave":
            data = XML.encode() + b"\0<cookie/>\0" + b"\0" * 1024
            self.image.write_bytes(
                struct.pack("=16sIIIII14I", b"LibvirtQemudSave", 2, len(data), 1, 0, len(XML) + 1, *[0] * 14) + data + STREAM
            )
        if words[0] == "start":
            self.started.append(self.image.read_bytes())
            self.kept = self.head.exists() and self.head.stat().st_mode & 0o777 == 0o600 and self.head.read_bytes()
            if self.faults:
                self.faults -= 1
                raise LiveUpdateError("no room")
        return ""


@pytest.fixture(name="host")
def a_host(tmp_path, monkeypatch):
    host = Host(tmp_path)
    monkeypatch.setattr(_virsh, "SAVED", str(tmp_path))
    monkeypatch.setattr(_virsh, "virsh", host.virsh)
    monkeypatch.setattr(_virsh, "status", lambda record: "running")
    monkeypatch.setattr(_guests, "known", lambda: [NOW] if host.started else [])
    monkeypatch.setattr(
        _guests,
        "inspect",
        lambda record: (
            _reasons.place_reasons(record["backends"], "/run/ram") if record is NOW else [reason("ram-anonymous", "anonymous", "mend it")]
        ),
    )
    monkeypatch.setattr(_room, "free", lambda path: GIB)
    monkeypatch.setattr(_agent, "correct_clock", lambda name: {"clock": "synchronised"})
    return host


def test_a_domain_goes_on_from_its_save_on_another_memory(host):
    host.head.write_bytes(b"of an earlier night, and longer" * 1000)
    assert _adopt.adopt(RECORD) == {"clock": "synchronised"}
    assert [words[0] for words in host.calls] == ["managedsave", "start"]
    (image,) = host.started
    assert b'<source type="file"/>' in image or b"<source type='file'/>" in image
    assert image.endswith(STREAM)
    assert XML.encode() in host.kept and b"earlier" not in host.kept and not host.head.exists()


def test_a_paused_domain_stays_paused_and_its_clock_alone(host, monkeypatch):
    monkeypatch.setattr(_virsh, "status", lambda record: "paused")
    assert _adopt.adopt(RECORD) == {}
    assert host.calls[-1] == ("start", "u", "--paused")


def test_what_cannot_be_started_goes_on_as_it_was(host):
    host.faults = 1
    with pytest.raises(LiveUpdateError, match="app is not moved and continues on its old RAM: no room"):
        _adopt.adopt(RECORD)
    changed, as_it_was = host.started
    assert changed != as_it_was and XML.encode() in as_it_was and as_it_was.endswith(STREAM)


def test_what_does_not_start_at_all_stays_saved_and_the_operator_knows(host):
    host.faults = 2
    with pytest.raises(LiveUpdateError, match=r"the domain is saved; run 'virsh start u' to continue it.*app\.save\.head"):
        _adopt.adopt(RECORD)
    assert XML.encode() in host.image.read_bytes() and XML.encode() in host.head.read_bytes()


def test_an_image_that_cannot_be_written_back_keeps_its_beginning_beside_it(host, monkeypatch):
    write, images = _adopt._write_head, []

    def failing(path, head):
        if path == str(host.image):
            images.append(path)
            raise OSError(5, "Input/output error")
        write(path, head)

    monkeypatch.setattr(_adopt, "_write_head", failing)
    with pytest.raises(
        LiveUpdateError,
        match=r"Input/output error.*app\.save\.head exists, run 'dd if=.*app\.save\.head of=.*app\.save conv=notrunc', then"
        r" start it again$",
    ):
        _adopt.adopt(RECORD)
    assert len(images) == 2 and not host.started and XML.encode() in host.head.read_bytes()


def test_a_save_that_fails_tells_where_the_domain_may_be(host, monkeypatch):
    def virsh(*words, **_limit):
        raise LiveUpdateError(f"virsh {words[0]}: no answer within 300 s")

    monkeypatch.setattr(_virsh, "virsh", virsh)
    with pytest.raises(LiveUpdateError, match="no answer within 300 s; if 'virsh domstate u' shows 'shut off', the domain is saved"):
        _adopt.adopt(RECORD)


def test_an_image_of_another_kind_is_started_as_it_is(host, monkeypatch):
    def read(image):
        raise LiveUpdateError("version 3")

    monkeypatch.setattr(_adopt, "_read_head", read)
    with pytest.raises(LiveUpdateError, match=r"continues on its old RAM: .*version 3"):
        _adopt.adopt(RECORD)
    assert len(host.started) == 1


def test_nothing_is_saved_that_could_not_be_brought_back(host, monkeypatch):
    monkeypatch.setattr(_guests, "inspect", lambda record: [reason("hostdev", "a device", "detach it")])
    with pytest.raises(LiveUpdateError, match="is not moved to other RAM: a device - detach it"):
        _adopt.adopt(RECORD)
    assert not host.calls


@pytest.mark.parametrize(
    ("on_disk", "in_memory", "says"),
    [(GIB, GIB, []), (100 << 20, GIB, ["saving it needs 768 MiB"]), (GIB, 100 << 20, ["its RAM needs 512 MiB"])],
)
def test_there_has_to_be_room(on_disk, in_memory, says):
    found = _adopt.obstacles([], 512 << 20, on_disk, in_memory)
    assert len(found) == len(says)
    assert all(text in sentence and "where 100 MiB are free" in sentence for text, sentence in zip(says, found, strict=True))


def test_what_a_boot_would_not_bring_is_no_obstacle_within_this_one():
    reasons = [reason("network-no-autostart", "a network", "autostart it"), reason("file-gone", "an ISO", "eject it")]
    assert _adopt.obstacles(reasons, 1, GIB, GIB) == ["an ISO - eject it"]


@pytest.mark.parametrize("how", ["symlink_to", "hardlink_to"])
def test_no_link_that_qemus_user_puts_in_place_of_an_image_is_followed(host, monkeypatch, how):
    roots = host.image.parent / "root"
    roots.write_bytes(b"root's")

    def virsh(*words, **_limit):
        host.calls.append(words)
        if words[0] == "managedsave":
            getattr(host.image, how)(roots)
            host.head.symlink_to(roots)
        return ""

    monkeypatch.setattr(_virsh, "virsh", virsh)
    with pytest.raises(LiveUpdateError, match=r"Too many levels of symbolic links|has a second hard link"):
        _adopt.adopt(RECORD)
    assert roots.read_bytes() == b"root's"


def test_a_daemon_that_puts_the_ram_elsewhere_is_told(host, monkeypatch):
    """It runs since before qemu.conf was written. The guest runs on, and its clock is right."""
    elsewhere, clocks = {**NOW, "backends": [{"path": "/var/lib/libvirt/qemu/ram/libvirt/qemu/1-app/pc.ram"}]}, []
    monkeypatch.setattr(_guests, "known", lambda: [{"name": "other"}, elsewhere])
    monkeypatch.setattr(
        _guests, "inspect", lambda record: _reasons.place_reasons(record["backends"], "/run/ram") if record is elsewhere else []
    )
    monkeypatch.setattr(_agent, "correct_clock", clocks.append)
    with pytest.raises(LiveUpdateError) as caught:
        _adopt.adopt(RECORD)
    assert caught.value.message == (
        "domain app runs again, but its new RAM cannot be preserved: its RAM file /var/lib/libvirt/qemu/ram/libvirt/qemu/1-app/pc.ram is"
        " not below /run/ram (memory_backing_dir), where libvirt looks for it after the jump - restart libvirt's daemon (libvirtd or"
        " virtqemud), then restart the domain"
    )
    assert clocks == ["app"] and not host.head.exists()
    monkeypatch.setattr(_guests, "known", list)
    with pytest.raises(
        LiveUpdateError, match="domain app was started from its save, but its QEMU has ended; see /var/log/libvirt/qemu/app"
    ):
        _adopt.adopt(RECORD)


def test_nothing_is_saved_while_the_new_ram_would_be_in_run(host, monkeypatch):
    monkeypatch.setattr(_setup, "lacks_mount", lambda: True)
    with pytest.raises(LiveUpdateError, match=r"no tmpfs is mounted on /run/kvm-liveupdate-ram - run the playbook kvm\.liveupdate\.setup"):
        _adopt.adopt(RECORD)
    assert not host.calls
