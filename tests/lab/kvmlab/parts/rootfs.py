# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hosts' root file system: a tar with Debian's packages installed. The lab's own files are not in it."""

from __future__ import annotations

import os
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..run import run_logged, say
from .packages import KEYRING, Resolution, mirror, network_settings

PACKAGES = (
    "dbus",
    "e2fsprogs",
    "grub-common",
    "grub-pc-bin",
    "grub2-common",
    "ipxe-qemu",
    "iproute2",
    "kexec-tools",
    "kmod",
    "libpam-systemd",
    "libvirt-clients",
    "libvirt-daemon-system",
    "mount",
    "openssh-server",
    "ovmf",
    "procps",
    "python3",
    "python3-apt",
    "qemu-system-x86",
    "qemu-utils",
    "seabios",
    "strace",
    "sudo",
    "swtpm",
    "swtpm-tools",
    "systemd",
    "systemd-sysv",
    "udev",
)
# forky hosts confine their domains with AppArmor, which is Debian's default. trixie hosts do not.
PACKAGES_OF = {"forky": ("apparmor",)}
DPKG_OPTIONS = ("path-exclude=/usr/share/doc/*", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*")
APT_OPTIONS = (
    'APT::Install-Recommends "false"',
    # A slow mirror may serve an expired index. apt still checks its signature.
    'Acquire::Check-Valid-Until "false"',
)


def packages_of(suite: str) -> tuple[str, ...]:
    """The packages of this suite's root file system."""
    return PACKAGES + PACKAGES_OF.get(suite, ())


def inputs_of(suite: str, resolution: Resolution, more: tuple[str, ...] = ()) -> dict[str, str]:
    """All inputs of the tar."""
    return {
        "suite": suite,
        "snapshot": resolution.snapshots[suite],
        "packages": " ".join((*packages_of(suite), *more)),
        "options": " ".join((*DPKG_OPTIONS, *APT_OPTIONS)),
    }


def tar(suite: str, resolution: Resolution, more: tuple[str, ...] = ()) -> Path:
    """The tar of this suite's root file system, with more packages than all hosts of the suite have."""

    def build(folder: Path, log: Path) -> None:
        if os.geteuid() != 0:
            raise LabError("building the hosts' root file system needs root, to set file owners; run this as root")
        say(f"root file system of {suite}: downloading and installing packages, 2 to 5 minutes")
        command = ["nice", "mmdebstrap", "--variant=apt", "--mode=root", f"--include={','.join((*packages_of(suite), *more))}"]
        command += [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
        command += [f"--aptopt={option}" for option in (*APT_OPTIONS, *network_settings())]
        # The hosts must not use this machine's proxies.
        command.append('--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap')
        command += [suite, str(folder / "root.tar"), f"deb [signed-by={KEYRING}] {mirror()} {suite} main"]
        run_logged(command, what=f"root file system of {suite}", log=log, limit_s=limits.BUILD)

    return cache.artefact("rootfs", inputs_of(suite, resolution, more), build) / "root.tar"
