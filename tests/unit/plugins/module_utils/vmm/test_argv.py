# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _argv

MIB = 1 << 20


@pytest.mark.parametrize(
    ("argv", "size"),
    [
        (["qemu"], 128 * MIB),
        (["qemu", "-m", "512"], 512 * MIB),
        (["qemu", "-m", "2G"], 2048 * MIB),
        (["qemu", "-m", "2g"], 2048 * MIB),
        (["qemu", "--m", "size=1T,slots=2,maxmem=2T"], 1 << 40),
        (["qemu", "-m", "256", "-m", "size=512K"], 512 << 10),
        (["qemu", "-m", "4096,slots=2"], 4096 * MIB),
    ],
)
def test_ram_size(argv, size):
    assert _argv.ram_size(argv) == size


@pytest.mark.parametrize("size", ["1.5G", "lots", "0", "-1", "G"])
def test_a_size_that_is_not_understood_is_refused(size):
    with pytest.raises(LiveUpdateError, match="not a size"):
        _argv.ram_size(["qemu", "-m", size])


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
        (["-netdev", "tap,id=n,fd=3"], "inherited-fd"),
    ],
)
def test_unpreservable(argv, code):
    reason = _argv.unpreservable(["qemu", *argv])
    assert (reason and reason["code"]) == code
    assert reason is None or (reason["message"] and reason["remedy"])


PLAIN = ["-machine", "pc-q35-10.0,accel=kvm", "-cpu", "EPYC-Rome", "-netdev", "tap,id=n,ifname=tap0", "-device", "virtio-net-pci,netdev=n"]


@pytest.mark.parametrize(
    "argv",
    [
        PLAIN,
        ["-M", "q35", "-machine", "accel=kvm,type=pc-i440fx-10.0"],
        ["-machine", "microvm"],
        [*PLAIN, "-device", "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"],
    ],
)
def test_a_plain_command_line_has_no_warnings(argv):
    assert _argv.warnings(["qemu", *argv]) == []


@pytest.mark.parametrize(
    ("more", "code", "message", "remedy"),
    [
        (["-machine", "q35"], "machine-version", "machine type 'q35' has no version", "pc-q35-10.0"),
        (["-M", "pc,accel=kvm"], "machine-version", "machine type 'pc' has no version", "pc-q35-10.0"),
        (["--machine", "accel=kvm,type=q35"], "machine-version", "machine type 'q35' has no version", "pc-q35-10.0"),
        (["-cpu", "host,+x2apic"], "cpu-host", "-cpu host,+x2apic", "name the model"),
        (["-cpu", "max"], "cpu-host", "-cpu max", "name the model"),
        (["-device", "vhost-vsock-pci,guest-cid=3"], "vsock", "reset: -device vhost-vsock-pci,guest-cid=3", "connect again"),
        (["-device", "vmgenid,guid=auto"], "genid", "clone: -device vmgenid,guid=auto", "guid of its own"),
        (["-netdev", "user,id=u"], "user-network", "are lost: user,id=u", "tap on a bridge"),
        (["-nic", "user"], "user-network", "are lost: user", "tap on a bridge"),
    ],
)
def test_what_does_not_come_over_as_it_was_is_a_warning(more, code, message, remedy):
    (warning,) = _argv.warnings(["qemu", *PLAIN, *more])
    assert warning["code"] == code and message in warning["message"] and remedy in warning["remedy"]


def test_without_a_machine_type_it_is_whichever_qemu_makes():
    (warning,) = _argv.warnings(["qemu", "-m", "1G"])
    assert warning["code"] == "machine-version" and "names no machine type" in warning["message"]


def test_a_clean_start_and_a_restore_differ_only_by_the_waiting():
    argv = ["qemu", "-m", "1G", "-uuid", "A0B1"]
    cold = _argv.command(argv, "/run/m", 5, 1 << 30, incoming=False)
    assert cold[: len(argv)] == argv
    assert f"memory-backend-file,id=pc.ram,size={1 << 30},align=2097152,share=on,mem-path=/proc/self/fd/5" in cold
    assert "memory-backend=pc.ram" in cold
    assert _argv.command(argv, "/run/m", 5, 1 << 30, incoming=True) == [*cold, "-incoming", "defer"]
    assert _argv.uuid_of(argv) == "a0b1"


def test_ram_that_cannot_be_preserved_is_left_as_the_user_asked():
    command = _argv.command(["qemu", "-mem-path", "/dev/hugepages"], "/run/m", None, 0, incoming=False)
    assert not any("memory-backend" in word for word in command)
    assert "unix:/run/m,server=on,wait=off" in command


@pytest.mark.parametrize("option", ["-daemonize", "-incoming", "--incoming"])
def test_options_that_do_not_go_together_are_refused(option):
    with pytest.raises(LiveUpdateError, match="does not go together"):
        _argv.command(["qemu", option, "defer"], "/run/m", 5, MIB, incoming=False)


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
        (["-device", "vfio-pci,host=1:0", "-device", "vfio-pci,host=2:0", "-tpmdev", "emulator,id=t"], ["hostdev", "tpm"]),
    ],
)
def test_devices_in_words(argv, words):
    wanted = [f"interface:{word}" if word in ("bridge", "tap", "user") else word for word in words]
    assert _argv.devices(argv) == wanted


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        ("-enable-kvm", ["kvm"]),
        ("--accel kvm", ["kvm"]),
        ("-accel kvm -accel tcg", ["kvm"]),
        ("-machine q35,accel=kvm:tcg", ["kvm"]),
        ("-M pc,accel=tcg", []),
        ("-name kvm -netdev user,id=n", []),
        ("-netdev tap,id=n,ifname=tap0", ["net/tun"]),
        ("-net tap", ["net/tun"]),
        ("-netdev bridge,id=n,br=br0", ["net/tun"]),
        ("-nic tap,vhost=on", ["net/tun", "vhost-net"]),
        ('-netdev {"type":"tap","id":"n","vhost":true}', ["net/tun", "vhost-net"]),
        ("-accel kvm -device vhost-vsock-pci,guest-cid=3", ["kvm", "vhost-vsock"]),
    ],
)
def test_which_device_nodes_it_opens(words, nodes):
    assert _argv.nodes(["qemu-system-x86_64", *words.split()]) == [f"/dev/{node}" for node in nodes]
