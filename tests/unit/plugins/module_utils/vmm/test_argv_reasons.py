# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _argv, _argv_reasons

MIB = 1 << 20


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["-m", "1G", "-machine", "q35", "-netdev", "tap,ifname=tap0"], None),
        (["-object", "rng-random,id=r", "-numa", "node"], None),
        (["-object", "memory-backend-memfd,id=m,size=1G,hugetlb=on"], "ram-hugetlb"),
        (["-mem-path", "/dev/hugepages"], "ram-hugetlb"),
        (["-object", "memory-backend-ram,id=m,size=1G"], "ram-backend"),
        (["-object", "qom-type=memory-backend-ram,id=m,size=1G"], "ram-backend"),
        (["-numa", "node,memdev=m"], "ram-backend"),
        (["-M", "q35,memory-backend=m"], "ram-backend"),
        (["-netdev", "tap,id=n,fd=3"], None),
        (["-object", '{"qom-type":"memory-backend-file","id":"m1","size":1073741824,"mem-path":"/srv/pm"}'], "ram-backend"),
        (["-object", "{'hugetlb':true,'qom-type':'memory-backend-memfd','id':'m1'}"], "ram-hugetlb"),
        (["-object", "id=m1,qom-type=memory-backend-file,size=1G"], "ram-backend"),
        (["-append", "-mem-path", "-kernel", "/vmlinuz"], None),
    ],
)
def test_ram_that_cannot_be_preserved(argv, code):
    reason = _argv_reasons.ram_reason(["qemu", *argv])
    assert (reason and reason["code"]) == code
    assert reason is None or (reason["message"] and reason["remedy"])


PLAIN = ["-machine", "pc-q35-10.0,accel=kvm", "-cpu", "EPYC-Rome", "-netdev", "tap,id=n,ifname=tap0", "-device", "virtio-net-pci,netdev=n"]


@pytest.mark.parametrize(
    "argv",
    [
        PLAIN,
        ["-M", "q35", "-machine", "accel=kvm,type=pc-i440fx-10.0", "-nodefaults"],
        ["-machine", "pc-q35-9.0+pve1", "-nic", "none"],
        ["-machine", "pc-q35-noble", "-nodefaults"],
        ["-machine", "virt-rhel9.4.0", "-nodefaults"],
        [*PLAIN, "-netdev", "vde,id=user"],
        [*PLAIN, "-device", "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"],
    ],
)
def test_a_plain_command_line_has_no_warnings(argv):
    assert _argv_reasons.warnings(["qemu", *argv]) == []


@pytest.mark.parametrize(
    ("more", "code", "message", "remedy"),
    [
        (["-machine", "q35"], "machine-version", "machine type 'q35' has no version", "pc-q35-10.0"),
        (["-M", "pc,accel=kvm"], "machine-version", "machine type 'pc' has no version", "pc-q35-10.0"),
        (["--machine", "accel=kvm,type=q35"], "machine-version", "machine type 'q35' has no version", "pc-q35-10.0"),
        (["-cpu", "host,+x2apic"], "cpu-host", "-cpu host,+x2apic", "name a model"),
        (["-cpu", "max"], "cpu-host", "-cpu max", "name a model"),
        (["-device", "vhost-vsock-pci,guest-cid=3"], "vsock", "reset: -device vhost-vsock-pci,guest-cid=3", "connect again"),
        (["-device", "vmgenid,guid=auto"], "genid", "clone: -device vmgenid,guid=auto", "fixed generation ID"),
        (["-machine", "microvm"], "machine-version", "machine type 'microvm' has no version", "do not upgrade QEMU"),
        (["-machine", "type=q35+pve0"], "machine-version", "machine type 'q35+pve0' has no version", "pc-q35-10.0"),
        (["-machine", "ubuntu-q35"], "machine-version", "machine type 'ubuntu-q35' has no version", "pc-q35-10.0"),
        (["-device", "{'guid':'auto','driver':'vmgenid'}"], "genid", "clone: -device {'guid'", "fixed generation ID"),
        (["-netdev", "user,id=u"], "user-network", "are lost: -netdev user,id=u", "tap on a bridge"),
        (["-netdev", "id=u,type=user"], "user-network", "are lost: -netdev id=u,type=user", "tap on a bridge"),
        (["-netdev", '{"type":"user","id":"u"}'], "user-network", "are lost: -netdev {", "tap on a bridge"),
        (["-netdev", "passt,id=u"], "user-network", "are lost: -netdev passt,id=u", "tap on a bridge"),
        (["-nic", "user"], "user-network", "are lost: -nic user", "tap on a bridge"),
        (["-nic", "model=virtio"], "user-network", "are lost: -nic model=virtio", "tap on a bridge"),
    ],
)
def test_what_does_not_come_over_as_it_was_is_a_warning(more, code, message, remedy):
    (warning,) = _argv_reasons.warnings(["qemu", *PLAIN, *more])
    assert warning["code"] == code and message in warning["message"] and remedy in warning["remedy"]


def test_without_a_machine_type_it_is_whichever_qemu_makes():
    (warning,) = _argv_reasons.warnings(["qemu", "-m", "1G", "-nodefaults"])
    assert warning["code"] == "machine-version" and "names no machine type" in warning["message"]


def test_a_guest_of_which_nothing_is_said_about_networks_has_one_of_qemus_own():
    (warning,) = _argv_reasons.warnings(["qemu", "-machine", "pc-q35-10.0", "-drive", "file=/srv/a.qcow2"])
    assert warning["code"] == "user-network" and "QEMU's default" in warning["message"]


REFUSED = """
transient-disk: -snapshot -drive file=/srv/a.qcow2,if=virtio
transient-disk: -drive file=/srv/a.qcow2,if=virtio,snapshot=on
transient-disk: -drive file=/srv/a.qcow2,snapshot
transient-disk: -drive file=/srv/a.qcow2,id=d -set drive.d.snapshot=on
cache-unsafe: -drive file=/srv/a.qcow2,if=virtio,cache=unsafe
cache-unsafe: --drive cache.no-flush=on,file=/srv/a.qcow2
cache-unsafe: -blockdev driver=qcow2,node-name=d,file.driver=file,file.filename=/srv/a,file.cache.no-flush=on
cache-unsafe: -blockdev {"driver":"qcow2","node-name":"d","cache":{"no-flush":true},"file":{"driver":"file","filename":"/srv/a"}}
disk-nvme: -drive file=nvme://0000:03:00.0/1,if=virtio
disk-nvme: -blockdev {'node-name':'d','driver':'nvme','device':'0000:03:00.0','namespace':1}
disk-vhost-user: -blockdev virtio-blk-vhost-user,node-name=d,path=/run/s
start-option: -loadvm golden
start-option: -incoming defer
start-option: -daemonize
start-option: --preconfig
server-waits: -serial telnet:127.0.0.1:4444,server
server-waits: -monitor unix:/run/m,server=on
server-waits: -serial mon:tcp::4444,server
server-waits: -chardev socket,id=s,host=127.0.0.1,port=4444,server=on -device isa-serial,chardev=s
server-waits: -chardev {"id":"s","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/s"}},"wait":true}}}
inherited-fd: -netdev {"type":"tap","id":"n0","fd":"27","vhost":true}
inherited-fd: -netdev fd=3,type=tap,id=n0
inherited-fd: -netdev tap,id=n0,ifname=tap0,vhost=on,vhostfds=4:5
inherited-fd: -add-fd fd=3,set=2,opaque=rdwr
inherited-fd: -drive file=/dev/fdset/2,if=virtio
inherited-fd: -netdev stream,id=n0,addr.type=fd,addr.str=4
hostdev: -device qemu-xhci -device usb-host,vendorid=0x10c4,productid=0xea60
hostdev: -device vfio-pci,host=0000:03:00.0
hostdev: -device {'id':'h','driver':'vfio-pci-nohotplug'}
hostdev: -usbdevice host:10c4:ea60
filesystem: -chardev socket,id=c,path=/run/fs.sock -device vhost-user-fs-pci,chardev=c,tag=share
filesystem: -virtfs local,path=/srv,mount_tag=t,security_model=none
vhost-user: -chardev socket,id=c,path=/run/ovs.sock -netdev vhost-user,chardev=c,id=n0
vhost-user: -device vhost-user-blk-pci,chardev=c
vdpa: -netdev vhost-vdpa,vhostdev=/dev/vhost-vdpa-0,id=n0
shmem: -device ivshmem-doorbell,chardev=c
memory-device: -device pc-dimm,memdev=m1,id=d1
tpm-passthrough: -tpmdev passthrough,id=t,path=/dev/tpm0
launch-security: -object sev-guest,id=s
launch-security: -machine pc-q35-10.0,confidential-guest-support=s
privileges: -runas nobody
privileges: -chroot /srv/jail
privileges: -run-with user=qemu
privileges: -run-with async-teardown=on,chroot=/srv/jail
ram-backend: -object memory-backend-ram,id=m,size=1G
argv-unread: -device {'driver':'virtio-rng-pci','id':
argv-unread: -device {"driver":"virtio-rng-pci","driver":"edu"}
argv-unread: -readconfig /never/written.cfg
argv-unread: -set drive.d.snapshot=on
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_what_cannot_be_preserved_is_a_reason_in_a_whole_command_line_and_in_some_words_of_one(line):
    code, _colon, words = line.partition(": ")
    for argv in (words.split(), ["qemu-system-x86_64", "-machine", "pc-q35-10.0", "-nodefaults", *words.split()]):
        (reason,) = _argv_reasons.reasons(argv)
        assert reason["code"] == code and reason["remedy"]
        assert words.split()[0].lstrip("-") in reason["message"] or "-device" in words


ACCEPTED = """
-machine pc-q35-10.0 -cpu host -m 2G -nodefaults -S -name web -pidfile /run/web.pid -sandbox on,spawn=deny,elevateprivileges=deny
-serial file:/var/log/web.console -chardev serial,id=h,path=/dev/ttyS1 -device virtserialport,chardev=h,name=h -parallel null
-drive file=/srv/a.qcow2,if=virtio,cache=none,snapshot=off,discard=unmap -drive file=/b.iso,media=cdrom,cache=unsafe -drive if=none,id=cd
-blockdev {"driver":"file","filename":"/srv/a","node-name":"f","cache":{"direct":true,"no-flush":false}} -cdrom /srv/b.iso -hda /srv/c
-chardev socket,id=c,path=/run/c,server=on,wait=off -monitor unix:/run/m,server,nowait -qmp tcp::4444,server=on,wait=off -vnc :1
-chardev {"id":"s","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/s"}}}}} -gdb tcp::1234,server -serial tcp::1
-netdev tap,id=n,ifname=web1,script=no,downscript=no,vhost=on -device virtio-net-pci,netdev=n -netdev bridge,id=m,br=br0 -nic none
-device {'driver':'virtio-rng-pci','id':'r'} -object rng-random,id=r -tpmdev emulator,id=t,chardev=c -run-with async-teardown=on
-append -snapshot -fw_cfg name=opt/a,,b,string=-runas -name fd -smbios type=1,serial=fd=3 -an-option-of-tomorrow word -device edu
"""


@pytest.mark.parametrize("line", ACCEPTED.strip().splitlines())
def test_what_comes_over_is_no_reason(line):
    assert _argv_reasons.reasons(["qemu-system-x86_64", *line.split()]) == []


def test_what_a_file_of_options_says_counts_as_well(tmp_path):
    config = tmp_path / "web.cfg"
    config.write_text('# disks\n[drive "d"]\n  file = "/srv/a.qcow2"\n  snapshot = "on"\n\n[memory]\n  size = "2G"\n')
    argv = ["qemu", "-readconfig", str(config)]
    (reason,) = _argv_reasons.reasons(argv)
    assert reason["code"] == "transient-disk" and str(config) in reason["message"]
    assert _argv.ram_size(argv) == 2048 * MIB
    config.write_text("[drive]\nwhat is this\n")
    (reason,) = _argv_reasons.reasons(argv)
    assert reason["code"] == "argv-unread" and "what is this" in reason["message"]


def test_a_pipe_with_options_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (reason,) = _argv_reasons.reasons(["qemu", "-readconfig", str(tmp_path / "pipe")])
    assert reason["code"] == "argv-unread" and "it is not a regular file" in reason["message"]


@pytest.mark.parametrize("link", [False, True])
def test_only_an_ordinary_file_with_options_is_opened(tmp_path, monkeypatch, link):
    """To open a watchdog resets the host. A link may lead to a file, or to that."""
    opened, plain = [], os.open

    def look(path, flags, *words, **keys):
        opened.extend([path] if not flags & os.O_PATH else [])
        return plain(path, flags, *words, **keys)

    monkeypatch.setattr(os, "open", look)
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    (reason,) = _argv_reasons.reasons(["qemu", "-readconfig", str(device if link else "/dev/null")])
    assert reason["code"] == "argv-unread" and opened == []
    device.unlink()
    (tmp_path / "file").write_text('[memory]\n  size = "2G"\n')
    device.symlink_to(tmp_path / "file")
    assert _argv.ram_size(["qemu", "-readconfig", str(device)]) == 2048 * MIB and opened


def test_a_file_of_options_has_a_limit(tmp_path):
    (tmp_path / "big").write_text("#" * (1 << 20))
    assert _argv_reasons.reasons(["qemu", "-readconfig", str(tmp_path / "big")]) == []
    (tmp_path / "big").write_text("#" * ((1 << 20) + 1))
    (reason,) = _argv_reasons.reasons(["qemu", "-readconfig", str(tmp_path / "big")])
    assert reason["code"] == "argv-unread" and "larger than 1 MiB" in reason["message"]


def test_a_line_that_cannot_be_read_has_devices_and_warnings_as_far_as_it_can():
    argv = ["qemu", *PLAIN, "-device", "{'driver':", "-device", "edu"]
    assert _argv_reasons.devices(argv) == ["device:edu", "device:virtio-net-pci", "interface:tap"]
    assert _argv_reasons.warnings(argv) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["qemu"], []),
        (["-drive", "file=a,if=virtio", "-drive", "file=b", "-drive", "if=none,id=c"], ["disk:ide", "disk:virtio"]),
        (["-netdev", "tap,id=n", "-nic", "user,model=virtio", "-nic", "none", "-netdev", "type=bridge"], ["bridge", "tap", "user"]),
        (["-device", "virtio-net-pci,netdev=n", "--device", "driver=qemu-xhci,id=u"], ["device:qemu-xhci", "device:virtio-net-pci"]),
        (
            ["-device", '{"driver": "virtio-blk-pci", "drive": "c"}', "-netdev", '{"type": "tap"}'],
            ["device:virtio-blk-pci", "interface:tap"],
        ),
        (["-device", "id=foo,driver=virtio-rng-pci", "-device", "{'driver':'edu'}"], ["device:edu", "device:virtio-rng-pci"]),
        (["-device", "usb-host,hostbus=1"], ["hostdev"]),
        (["-device", "vfio-pci,host=1:0", "-device", "vfio-pci,host=2:0", "-tpmdev", "emulator,id=t"], ["hostdev", "tpm"]),
    ],
)
def test_devices_in_words(argv, words):
    wanted = [f"interface:{word}" if word in ("bridge", "tap", "user") else word for word in words]
    assert _argv_reasons.devices(argv) == wanted


@pytest.mark.parametrize(
    "path",
    [
        "/dev/sdb",
        "/dev/sda1",
        "/dev/dm-3",
        "/dev/nvme0n1",
        "/dev/nvme1n1p2",
        "/dev/vdb",
        "/dev/zd16",
        "/dev/zd0p1",
        "/dev/rbd0",
        "/dev/bcache1p2",
    ],
)
def test_a_disk_whose_name_a_boot_may_change_is_a_warning(path):
    argv = ["qemu", "-nodefaults", "-M", "pc-q35-10.0", "-blockdev", f"driver=host_device,node-name=d,filename={path}"]
    (warning,) = _argv_reasons.warnings(argv)
    assert warning["code"] == "device-name" and path in warning["message"] and "/dev/disk/by-id/" in warning["remedy"]


@pytest.mark.parametrize("path", ["/dev/vg/web", "/dev/mapper/vg-web", "/dev/disk/by-id/wwn-0x5", "/srv/dev/sdb", "/dev/rbd/p/i"])
def test_a_disk_with_a_lasting_name_is_no_warning(path):
    assert _argv_reasons.warnings(["qemu", "-nodefaults", "-M", "pc-q35-10.0", "-drive", f"file={path},if=virtio"]) == []


@pytest.mark.parametrize(
    ("words", "links"),
    [
        ("-netdev tap,id=n,ifname=web1,script=no,downscript=no", ["web1"]),
        ("-netdev tap,id=n,ifname=web1", []),  # the default script makes it part of a network
        ("-netdev tap,id=n,ifname=vm%d,script=no", []),
        ("-netdev bridge,id=n -nic tap,br=br1 -net bridge,br=br2", ["br0", "br1", "br2"]),
        ('-netdev {"type":"tap","id":"n","ifname":"web1","script":"no"}', ["web1"]),
        ("-netdev user,id=n -nic none", []),
    ],
)
def test_which_interfaces_somebody_else_has_to_set_up(words, links):
    assert list(_argv_reasons.links(["qemu", *words.split()])) == links
