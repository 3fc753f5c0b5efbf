# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _opens, _options

NEVER = 1 << 30


def needed(words):
    return _opens.needed(NEVER, ["qemu", *words.split()])


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        ("-drive file=/srv/a.qcow2,if=virtio -cdrom /srv/cd.iso", ["/srv/a.qcow2", "/srv/cd.iso"]),
        ("-blockdev driver=host_device,node-name=d,filename=/dev/vg/a", ["/dev/vg/a"]),
        ("-drive file=a.raw", ["/a.raw"]),
        ("-drive file=rbd:pool/a:id=x:conf=/etc/c:y=z -drive file=nbd://h/a", ["/etc/c"]),
        ("-blockdev driver=rbd,node-name=r,pool=p,image=i,conf=/etc/c", ["/etc/c"]),
        ("-drive file=fat:rw:/srv/d -blockdev driver=vvfat,node-name=v,dir=/srv/e", ["/srv/d", "/srv/e"]),
        ('-drive file=json:{"driver":"raw",,"file":{"driver":"vvfat",,"dir":"/srv/d"}}', ["/srv/d"]),
        ("-plugin file=/srv/p.so,arg=a -plugin /srv/q.so", ["/srv/p.so", "/srv/q.so"]),
        ("-netdev bridge,id=n,helper=/srv/h -nic tap,helper=/srv/i", ["/srv/h", "/srv/i"]),
        ("-object input-linux,id=k,evdev=/dev/input/a -device virtio-input-host-pci,evdev=/dev/input/b", ["/dev/input/a", "/dev/input/b"]),
        ("-device ipmi-bmc-sim,sdrfile=/srv/s,frudatafile=/srv/f", ["/srv/s", "/srv/f"]),
        ("-kernel /boot/k -bios bios.bin -object secret,id=s,file=/etc/s", ["/boot/k", "/etc/s"]),
        ("-device loader,file=/srv/l -object authz-list-file,id=z,filename=/etc/z", ["/etc/z", "/srv/l"]),
        ("-netdev tap,id=n,script=/etc/up,downscript=no -netdev tap,id=m,script=no", ["/etc/up"]),
        ("-qmp unix:/run/web/q,server=on,wait=off -chardev socket,id=c,path=/run/a/s,server=on", ["/run/web", "/run/a"]),
        ('-chardev {"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/r/s"}},"wait":false}}}', ["/r"]),
        ("-serial file:/var/log/web/c -pidfile /run/w/pid -D /var/log/q/d", ["/var/log/web", "/run/w", "/var/log/q"]),
        ("-chardev socket,id=c,path=/run/tpm/s -tpmdev emulator,id=t,chardev=c", ["/run/tpm/s"]),
        ("-chardev socket,id=c,path=/run/tpm/s,reconnect=1 -serial unix:/r/s,server=off,reconnect-ms=5", []),
        ("-netdev stream,id=n,server=off,addr.type=unix,addr.path=/run/passt", ["/run/passt"]),
        ("-netdev stream,id=n,server=on,addr.type=unix,addr.path=/run/p/n", ["/run/p"]),
        ("-netdev vde,id=n,sock=/run/vde", ["/run/vde/ctl"]),
        ("-drive file=nbd:unix:/run/nbd:exportname=a", ["/run/nbd"]),
        ("-drive file=nbd+unix:///a?socket=/run/nbd", ["/run/nbd"]),
        ("-blockdev driver=nbd,node-name=n,server.type=unix,server.path=/run/nbd", ["/run/nbd"]),
        ("-object pr-manager-helper,id=p,path=/run/pr", ["/run/pr"]),
        ("-chardev serial,id=h,path=/dev/ttyS1 -object rng-random,id=r,filename=/dev/hwrng", ["/dev/ttyS1", "/dev/hwrng"]),
        ("-chardev pipe,id=p,path=/srv/p", ["/srv/p"]),
        ("-serial pty -monitor stdio -serial tcp:h:1 -vnc :1 -netdev tap,id=n,ifname=a -device virtio-net-pci,netdev=n", []),
        ("-vnc unix:/run/v/s -spice unix=on,addr=/run/x/s", ["/run/v", "/run/x"]),
    ],
)
def test_what_has_to_be_there_before_qemu_starts_again(words, paths):
    assert needed(words) == paths


@pytest.mark.parametrize(
    ("words", "peers"),
    [
        ("-serial tcp:127.0.0.1:4555 -monitor telnet::23", ["127.0.0.1:4555", ":23"]),
        ("-chardev socket,id=c,host=::1,port=4555", ["::1:4555"]),
        (
            '-chardev {"id":"c","backend":{"type":"socket","data":{"server":false,"addr":{"type":"inet","data":{"host":"h","port":"1"}}}}}',
            ["h:1"],
        ),
        ("-serial tcp:h:1,server=on,wait=off -serial tcp:h:2,reconnect=1 -serial udp:h:3 -serial unix:/s -vnc h:1", []),
        ("-drive file=nbd:127.0.0.1:10809:exportname=a", ["127.0.0.1:10809"]),
        ("-drive file=nbd://localhost/a -drive file=nbd+tcp://[::1]:7/a", ["localhost:10809", "[::1]:7"]),
        ("-drive file=iscsi://u%p@10.0.0.9/iqn.a/0 -blockdev driver=iscsi,node-name=i,portal=p,target=t", ["10.0.0.9:3260", "p:3260"]),
        ("-blockdev driver=nbd,node-name=n,server.type=inet,server.host=h,server.port=8", ["h:8"]),
        ("-drive file.driver=nbd,file.host=h", ["h:10809"]),
        ("-drive file=nbd:unix:/run/nbd -drive file=nbd+unix:///a?socket=/s -drive file=rbd:p/a -drive file=/srv/a", []),
        ("-netdev stream,id=n,server=off,addr.type=inet,addr.host=h,addr.port=9 -netdev socket,id=m,connect=h:10", ["h:9", "h:10"]),
        ("-netdev stream,id=n,server=on,addr.type=inet,addr.host=h,addr.port=9 -netdev socket,id=m,listen=h:10", []),
    ],
)
def test_who_is_connected_to_over_tcp(words, peers):
    assert list(_opens.peers(_options.read(["qemu", *words.split()])[0])) == peers


def test_the_files_below_its_disks_are_needed_and_what_it_writes_is_not(tmp_path):
    """A backing file is named by the image only. A console may have been renamed and removed."""
    for name in ("base", "pid"):
        (tmp_path / name).touch()
    code = """
import os, sys
os.open("base", os.O_RDONLY), os.open("pid", os.O_RDWR), os.open("log", os.O_WRONLY | os.O_CREAT), os.open("p.in", os.O_RDWR | os.O_CREAT)
os.open("all", os.O_RDWR | os.O_APPEND | os.O_CREAT), os.open("gone", os.O_RDWR | os.O_CREAT), os.unlink("gone"), os.open("/dev/zero", 0)
print(flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        argv = ["qemu", "-drive", "file=top", "-pidfile", f"{tmp_path}/pid", "-chardev", f"pipe,id=p,path={tmp_path}/p"]
        found = _opens.needed(process.pid, argv)
        process.stdin.close()
    assert found == [f"{tmp_path}/top", f"{tmp_path}/p.in", str(tmp_path), f"{tmp_path}/base"]


def test_a_disk_that_a_link_elsewhere_leads_to_is_looked_at_as_well(monkeypatch):
    """Where QEMU has no device open no path of a file is looked at: its storage may not answer."""
    argv = ["qemu", "-drive", "file=/srv/link", "-drive", "file=/srv/file", "-drive", "file=/dev/vg/a"]
    opened = {4: ("/srv/file", os.O_RDWR), 5: ("/dev/kvm", os.O_RDWR)}
    monkeypatch.setattr(_processes, "open_paths", lambda _pid: opened)
    assert _opens.devices(NEVER, argv) == ["/dev/vg/a"]
    opened[6] = ("/dev/sg3", os.O_RDWR)
    assert _opens.devices(NEVER, argv) == ["/srv/link", "/dev/vg/a"]
    opened[6] = ("/dev/sdb", os.O_RDWR)
    assert _opens.devices(NEVER, argv) == ["/dev/vg/a"]  # closed meanwhile
    monkeypatch.setattr(_opens, "os", SimpleNamespace(**vars(os)))
    monkeypatch.setattr(_opens.os, "stat", lambda path: SimpleNamespace(st_mode=stat.S_IFBLK if path.endswith("/6") else stat.S_IFCHR))
    assert _opens.devices(NEVER, argv) == ["/srv/link", "/dev/vg/a"]


def test_a_helper_is_a_command_whose_program_is_needed():
    assert _opens.needed(NEVER, ["qemu", "-netdev", "tap,id=n,helper=/srv/helper --use-vnet"]) == ["/srv/helper"]


def test_sockets_that_qemu_serves_are_no_connections():
    options = _options.read(["qemu", "-qmp", "unix:/q,server=on,wait=off", "-serial", "unix:/s,server=off"])[0]
    assert _opens.connections(options) == {"/s": "-serial unix:/s,server=off"}
    assert _opens.is_output(os.O_WRONLY) and _opens.is_output(os.O_RDWR | os.O_APPEND) and not _opens.is_output(os.O_RDWR)
