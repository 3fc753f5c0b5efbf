# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _links

UNIT = "[Service]\nExecStart=/usr/local/sbin/kvm-liveupdate run web -- qemu-system-x86_64 -netdev tap,ifname=br0,script=no\n"
NETWORK = "<network><name>n</name><forward mode='{}'/><bridge name='br0'/></network>\n"


@pytest.mark.parametrize(
    ("path", "text", "is_set_up"),
    [
        ("etc/systemd/network/br.netdev", "[NetDev]\nName=br0\nKind=bridge\n", True),
        ("etc/systemd/network/taps.network", "[Match]\nName=tap* br?\n", True),
        ("etc/systemd/network/all.network", "[Match]\nName=*\n", False),
        ("etc/systemd/network/br.netdev", "# Name=br0\n", False),
        ("etc/systemd/network/br.netdev", "Name=br01\n", False),
        ("etc/systemd/network/en.network.d/br.conf", "[Network]\nBridge=br0\n", True),
        ("usr/lib/systemd/network/br.netdev", "Name=br0", True),
        ("etc/network/interfaces", "auto br0\niface br0 inet dhcp\n", True),
        ("etc/network/interfaces.d/bridge", "iface br0 inet manual\n", True),
        ("etc/netplan/a.yaml", "network:\n  bridges:\n    br0:\n      interfaces: [eno1]\n", True),
        ("etc/netplan/a.yaml", 'network: {bridges: {"br0": {}}}\n', True),
        ("etc/NetworkManager/system-connections/Bridge.nmconnection", "[connection]\ninterface-name=br0\n", True),
        ("etc/sysconfig/network/ifcfg-br0", "BOOTPROTO=static\n", True),
        ("etc/sysconfig/network-scripts/ifcfg-bridge", 'DEVICE="br0"\n', True),
        ("etc/libvirt/qemu/networks/n.xml", NETWORK.format("nat"), True),
        ("etc/libvirt/qemu/networks/n.xml", NETWORK.format("bridge"), False),  # which has to be there
        ("etc/libvirt/hooks/qemu", "#!/bin/sh\nip link set $1 master br0\n", True),
        ("etc/systemd/system/bridge.service", "ExecStart=/usr/sbin/ip link add br0 type bridge\n", True),
        ("etc/systemd/system/web.service", UNIT, False),
        ("proc/cmdline", "root=/dev/sda bridge=br0:eno1\n", True),
        ("etc/hosts", "br0\n", False),
    ],
)
def test_an_interface_that_no_file_names_is_set_up_by_hand(tmp_path, path, text, is_set_up):
    assert _links.by_hand(["br0"], str(tmp_path)) == ["br0"]
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert _links.by_hand(["br0"], str(tmp_path)) == ([] if is_set_up else ["br0"])


def test_hardware_is_there_after_a_boot(tmp_path):
    (tmp_path / "sys/class/net/eno1/device").mkdir(parents=True)
    assert _links.by_hand(["eno1", "eno1.7", "eno1.7"], str(tmp_path)) == ["eno1.7"]
