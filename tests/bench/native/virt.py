# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Libvirt's daemon and domains in a namespace. There is no KVM, so libvirt runs its domains with TCG."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess

import room

CAPABILITIES = "/var/cache/libvirt/qemu/capabilities"
RAM = "/run/kvm-liveupdate-ram"
VIRSH = ("virsh", "--quiet", "--connect", "qemu:///system")
DAEMONS = {"libvirtd": "/run/libvirt/libvirt-sock", "virtqemud": "/run/libvirt/virtqemud-sock"}
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{mib}</memory>
  <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'/>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <devices>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{console}'/><target port='0'/></serial>
    <channel type='file'><source path='{console}.2'/><target type='virtio' name='heartbeat'/></channel>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def mount_ram():
    """The tmpfs for the domains' RAM, as on a host."""
    os.makedirs(RAM, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755,size=95%,huge=within_size", "ram", RAM], check=True)


def installed():
    """The daemons that this Debian has."""
    return [name for name in DAEMONS if shutil.which(name)]


def start(name="libvirtd"):
    """Start a daemon, and the one for the domains' logs; does not wait."""
    log = open(f"{room.EXCHANGE}/{name}.log", "ab")  # noqa: SIM115  # the daemons keep it
    return [subprocess.Popen([word], stdout=log, stderr=log) for word in ("virtlogd", name)]


def listens(name="libvirtd"):
    """Whether the daemon accepts connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(DAEMONS[name])
        except OSError:
            return False
        return True


def power_cut(daemons):
    """End the daemons and all QEMUs as a jump does, and forget what the last boot knew of them."""
    for path in glob.glob("/run/libvirt/qemu/*.pid"):
        with open(path, encoding="ascii") as file:
            os.kill(int(file.read()), signal.SIGKILL)
    for process in daemons:
        process.kill()
        process.wait()
    shutil.rmtree("/run/libvirt", ignore_errors=True)
    for path in glob.glob("/run/*.pid"):
        os.unlink(path)
    for path in glob.glob(f"{RAM}/*"):
        shutil.rmtree(path)


def forget_capabilities():
    """Empty libvirt's cache of what QEMU can do."""
    shutil.rmtree(CAPABILITIES, ignore_errors=True)


def ask(*words):
    """The output of virsh."""
    return subprocess.run([*VIRSH, *words], check=True, capture_output=True, text=True, timeout=room.LIMIT_S).stdout
