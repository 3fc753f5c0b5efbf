# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _paths, _qemu, _qemu_rehearsal
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._qemu_rehearsal import command

END = "-monitor none -display none -qmp unix:/m,server=on,wait=off"
MEMORY = "-object memory-backend-file,id=pc.ram,size=4096,share=off,mem-path=/proc/7/fd/9 -machine memory-backend=pc.ram -S -incoming defer"


def stand_in(words: str) -> str:
    return " ".join(command(["qemu", *words.split()], "/m", "/proc/7/fd/9", 4096))


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
        ("-audiodev wav,id=a,path=/x.wav", "-audiodev none,id=a"),
        ('-chardev {"backend":"socket","id":"c"}', "-chardev null,id=c"),
        ("-vnc :1 -pidfile /p -monitor stdio -S -nographic -vga std", "-vga std"),
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


def test_an_address_of_a_guest_stays_one():
    for cid in ("3", "42", "0x2a", str((1 << 32) - 2), str((1 << 31) + 7)):
        other = _qemu_rehearsal._other_cid(cid)
        assert 3 <= other < (1 << 32) - 1 and other != int(cid, 0)


def test_a_stand_in_that_does_not_start_says_nothing_about_the_guest(tmp_path, monkeypatch):
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_qemu, "START_LIMIT_S", 0.5)
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho Address already in use >&2\n")
    program.chmod(0o755)
    record = {"name": "app", "pid": 1, "argv": [str(program)], "ram": [{"fd": 3, "size": 4096}], "monitor": str(tmp_path / "guest")}
    with pytest.raises(LiveUpdateError, match=r"guest app cannot be rehearsed: its stand-in did not start: .*Address already in use"):
        _qemu_rehearsal.rehearse(record)
