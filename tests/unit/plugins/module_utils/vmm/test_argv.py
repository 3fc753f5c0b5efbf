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
    with pytest.raises(LiveUpdateError, match="is not possible with live update"):
        _argv.command(["qemu", option, "defer"], "/run/m", 5, MIB, incoming=False)


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


@pytest.mark.parametrize(
    ("words", "bridges"),
    [
        ("-netdev bridge,id=n,br=br7 -netdev bridge,id=m", ["br0", "br7"]),
        ("-nic bridge,br=br7", ["br7"]),
        ('-netdev {"type":"bridge","id":"n"}', ["br0"]),
        ("-netdev tap,id=n,br=br7,helper=/usr/lib/qemu/qemu-bridge-helper", ["br7"]),
        ("-netdev tap,id=n,ifname=tap0 -netdev user,id=m -name bridge", []),
    ],
)
def test_which_bridges_it_needs(words, bridges):
    assert _argv.bridges(["qemu-system-x86_64", *words.split()]) == bridges
