# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _rehearsal, _save
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _monitor

END = "-monitor none -display none -qmp unix:/m,server=on,wait=off"
MEMORY = "-object memory-backend-file,id=pc.ram,size=4096,share=off,mem-path=/proc/7/fd/9 -machine memory-backend=pc.ram -S -incoming defer"


def stand_in(words: str) -> str:
    return " ".join(_rehearsal.command(["qemu", *words.split()], "/m", "/proc/7/fd/9", 4096))


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("-machine q35 -m 4K -device virtio-net-pci,netdev=n", "-machine q35 -m 4K -device virtio-net-pci,netdev=n"),
        ("-drive file=/a.qcow2,if=virtio,cache=none", "-drive file=/a.qcow2,if=virtio,cache=none,snapshot=on,file.locking=off"),
        ("-drive if=none,id=cd", "-drive if=none,id=cd"),
        ("-netdev tap,id=n,ifname=web1,vhost=on,script=no", "-netdev tap,id=n,vhost=on,script=no,downscript=no"),
        ("-netdev bridge,id=n,br=br0", "-netdev tap,id=n,script=no,downscript=no"),
        ("-netdev user,id=n,hostfwd=tcp::22-:22", "-netdev user,id=n"),
        ("-chardev socket,id=c,path=/s,server=on", "-chardev null,id=c"),
        ("-serial file:/console -parallel pty", "-serial null -parallel null"),
        ("-netdev type=tap,id=n,vhost=on", "-netdev tap,id=n,vhost=on,script=no,downscript=no"),
        ('-netdev {"type":"tap","id":"n","vhost":true,"ifname":"x"}', "-netdev tap,id=n,vhost=on,script=no,downscript=no"),
        ("-netdev id=n,type=user", "-netdev user,id=n"),
        ("-drive file=rbd:pool/image,if=virtio", "-drive file=rbd:pool/image,if=virtio,snapshot=on"),
        ("-drive file=nbd://h/x", "-drive file=nbd://h/x,snapshot=on"),
        ("-drive file=file:/a", "-drive file=file:/a,snapshot=on,file.locking=off"),
        ("-drive file=/a:b", "-drive file=/a:b,snapshot=on,file.locking=off"),
        ("-drive file=/a,,snapshot=x", "-drive file=/a,,snapshot=x,snapshot=on,file.locking=off"),
        ("-device vhost-vsock-pci,guest-cid=42,id=v", "-device vhost-vsock-pci,guest-cid=1073741869,id=v"),
        ('-device {"driver":"vhost-vsock-pci","guest-cid":42}', '-device {"driver":"vhost-vsock-pci","guest-cid":1073741869}'),
        ("-device {'driver':'vhost-vsock-pci','guest-cid':42}", "-device {'driver':'vhost-vsock-pci','guest-cid':1073741869}"),
        ("-device {'driver':'x','id':'guest-cid:4'}", "-device {'driver':'x','id':'guest-cid:4'}"),
        ("-device vhost-vsock-pci,guest-cid=0x2a", "-device vhost-vsock-pci,guest-cid=1073741869"),
        ("-audiodev wav,id=a,path=/x.wav", "-audiodev none,id=a"),
        ('-chardev {"backend":"socket","id":"c"}', "-chardev null,id=c"),
        ("-serial none -debugcon file:/srv/d", "-serial none -debugcon null"),
        (
            "-object iothread,id=i -object rng-random,id=r,filename=/dev/urandom",
            "-object iothread,id=i -object rng-random,id=r,filename=/dev/urandom",
        ),
        ("--enable-kvm -cpu host -usbdevice tablet -boot c", "-enable-kvm -cpu host -usbdevice tablet -boot c"),
        ("-netdev {'type':'user','id':'n'}", "-netdev user,id=n"),
        ("-vnc :1 -pidfile /p -monitor stdio -S -nographic -vga std", "-vga std"),
        ("-realtime mlock=on -mem-prealloc -vga std", "-vga std"),
        ("-overcommit mem-lock=on,cpu-pm=on", "-overcommit cpu-pm=on"),
        ("-overcommit mem-lock=on-fault", "-overcommit cpu-pm=off"),
    ],
)
def test_what_must_not_be_there_twice_is_made_harmless(given, becomes):
    assert stand_in(given) == f"qemu {becomes} {END} {MEMORY}"


@pytest.mark.parametrize(
    "words",
    [
        "-blockdev raw,node-name=a",
        "-tpmdev emulator,id=t,chardev=c",
        "-hda /a",
        "/a",
        "-fda /a",
        "-sd /a",
        "-mtdblock /a",
        "-readconfig /a",
        "-set drive.a.file=/b",
        "-plugin /a",
        "-virtfs local,path=/a,mount_tag=t",
        "-audio driver=wav,model=hda,path=/a",
        "-option-of-tomorrow /a",
        "-object filter-dump,id=f,netdev=n,file=/a",
        "-object input-linux,id=i,evdev=/dev/input/event0",
        "-device vhost-scsi-pci,wwpn=naa.5001",
        "-usbdevice disk:/a",
        "-drive driver=file,filename=/a",
        "-drive driver=raw,file.driver=file,file.filename=/a",
        '-device {"driver":"vhost-vsock-pci","guest\\u002dcid":42}',
        "-netdev {'type'",
        "-netdev {'type':'stream','id':'n'}",
        "-netdev vhost-user,id=n",
        "-drive file=/a,snapshot=off",
        "-drive file.filename=/a",
        '-drive file=json:{"driver":"file"}',
    ],
)
def test_what_cannot_be_made_harmless_is_refused(words):
    with pytest.raises(LiveUpdateError, match="cannot be rehearsed") as refused:
        stand_in(words)
    assert words.split()[0] in str(refused.value)


def test_the_labs_guests_and_that_of_the_documentation_can_be_rehearsed():
    """tests/lab/guests.yml, docs/docsite/rst/guests.rst"""
    lab = (
        "-name web -machine q35,accel=kvm,hpet=off -cpu host -smp 1 -m 64 -nodefaults -display none -serial file:/var/log/web.console"
        " -chardev serial,id=heartbeat,path=/dev/ttyS1 -device virtio-serial-pci -device virtserialport,chardev=heartbeat,name=heartbeat"
        " -netdev bridge,id=net,br=br0 -device virtio-net-pci,netdev=net -kernel /k -initrd /i -append quiet"
    )
    docs = (
        "-machine pc-q35-10.0,accel=kvm -cpu EPYC-Rome -m 4G -uuid 2f6f0d5a -drive file=/srv/web1.qcow2,if=virtio,cache=none"
        " -netdev tap,id=n,ifname=web1,script=no,downscript=no -device virtio-net-pci,netdev=n -nodefaults -display none"
    )
    assert "/var/log" not in stand_in(lab) and "/dev/ttyS1" not in stand_in(lab)
    assert "snapshot=on" in stand_in(docs)


@pytest.mark.parametrize("fails", [False, True])
def test_the_stand_in_is_gone_before_the_guest_goes_on(tmp_path, monkeypatch, fails):
    """It has the guest's disks open. A stand-in that does not answer does not keep the guest from going on."""
    steps = []

    class Monitor:
        def __init__(self, _path, answer_s):
            assert answer_s < 10
            if fails:
                raise LiveUpdateError("no answer")

        def __enter__(self):
            return self

        def __exit__(self, *_exception):
            steps.append("gone")

        def execute(self, command):
            steps.append(command)

        def status(self):
            steps.append("asked")
            if steps.count("asked") == 3:
                raise LiveUpdateError("QEMU closed the connection")

    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_monitor, "Monitor", Monitor)
    monkeypatch.setattr(_save, "resume", lambda _record, running: steps.append(f"resume {running}"))
    _rehearsal.end({"name": "web"}, True)
    assert steps == ([] if fails else ["quit", *["asked"] * 3, "gone"]) + ["resume True"]


@pytest.mark.parametrize("why", ["ended", "elsewhere", "paused"])
def test_nothing_is_left_of_the_rehearsal_of_a_guest_that_has_ended_or_left(tmp_path, monkeypatch, why):
    """But of one that is still paused: its end is tried again."""

    def resume(_record, _running):
        raise LiveUpdateError("no", **{why: True})

    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_save, "resume", resume)
    (tmp_path / "web.stand-in.state").touch()
    if why == "ended":
        _rehearsal.end({"name": "web"}, True)
    else:
        with pytest.raises(LiveUpdateError, match="no"):
            _rehearsal.end({"name": "web"}, True)
    assert bool(list(tmp_path.iterdir())) is (why == "paused")


def test_an_address_of_a_guest_stays_one():
    for cid in ("3", "42", "0x2a", str((1 << 32) - 2), str((1 << 31) + 7)):
        other = _rehearsal._other_cid(cid)
        assert 3 <= other < (1 << 32) - 1 and other != int(cid, 0)


def test_a_stand_in_that_does_not_start_says_nothing_about_the_guest(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_monitor, "START_LIMIT_S", 0.5)
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho Address already in use >&2\n")
    program.chmod(0o755)
    record = {"name": "app", "pid": 1, "argv": [str(program)], "ram": [{"fd": 3, "size": 4096}], "monitor": str(tmp_path / "guest")}
    with pytest.raises(LiveUpdateError, match=r"guest app cannot be rehearsed: its stand-in did not start: .*in use; leave the guest out"):
        _rehearsal.rehearse(record)
