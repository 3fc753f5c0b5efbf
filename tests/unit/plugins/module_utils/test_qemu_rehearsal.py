# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
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
    ],
)
def test_what_cannot_be_made_harmless_is_refused(words):
    with pytest.raises(LiveUpdateError, match="cannot be rehearsed") as refused:
        stand_in(words)
    assert words.split()[0] in str(refused.value)
