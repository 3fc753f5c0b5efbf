# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hosts' disk image: Debian's root file system, both kernels, the lab's settings and keys, a boot loader."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..machines import disk
from ..run import run_logged, say
from . import bootloader
from .kernel import Kernel
from .keys import Keys, public

HOSTFS = Path(__file__).parents[2] / "hostfs"
GUEST_FOLDER = "var/lib/lab-guest"

ENABLED = ("systemd-networkd.service", "ssh.service")
# The lab does not need these, and each takes time on an emulated processor.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "grub-common.service",
    "grub2-common.service",
    "logrotate.timer",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@hvc0.service",
    "serial-getty@ttyS0.service",
    "sshd-keygen.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-tracing.mount",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
)
# Only the AppArmor profiles with these words are kept, those of programs that run guests. To load all takes long on an emulated processor.
PROFILES = ("swtpm", "virt")
# Generators run before the first unit of each boot, so also right after a jump.
GENERATORS_OFF = (
    "systemd-debug-generator",
    "systemd-factory-reset-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
)


def inputs_of(root_tar: Path, kernels: tuple[Kernel, Kernel], initramfs: Path, keys: Keys) -> dict[str, str]:
    """All inputs of the disk image."""
    return {
        "rootfs": root_tar.parent.name,
        "kernels": " ".join(str(kernel.folder.relative_to(cache.root())) for kernel in kernels),
        "guest": initramfs.parent.name,
        "keys": public(keys.client) + " " + public(keys.host),
        "hostfs": hashlib.sha256(json.dumps(host_files()).encode()).hexdigest(),
        "recipe": cache.recipe(__file__, bootloader.__file__, disk.__file__),
    }


def host_files() -> list[tuple[str, str]]:
    """Path and text of every file that the lab adds to the root file system."""
    files = sorted(path for path in HOSTFS.rglob("*") if path.is_file())
    return [(str(path.relative_to(HOSTFS)), path.read_text()) for path in files]


def image(root_tar: Path, kernels: tuple[Kernel, Kernel], initramfs: Path, keys: Keys, emulator: tuple[str, ...]) -> Path:
    """The path of the raw disk image in the cache. The image boots the first kernel."""

    def build(folder: Path, log: Path) -> None:
        if os.geteuid() != 0:
            raise LabError("building the hosts' disk image needs root, to set file owners; run this as root")
        say("host image: file system")
        os.umask(0o022)  # the hosts see the modes of the folders that are made here
        tree = folder / "tree"
        tree.mkdir()
        run_logged(("tar", "-C", tree, "--numeric-owner", "-xpf", root_tar), what="unpack", log=log, limit_s=limits.TOOL)
        _lay_over(tree, kernels, initramfs, keys)
        _write(tree / bootloader.SCRIPT, bootloader.script(disk.FILE_SYSTEM_ID, kernels[0].release), 0o755)
        _enable(tree, log)
        disk.make(tree, folder / "disk.raw", log)
        shutil.rmtree(tree)
        bootloader.install(emulator, folder / "disk.raw", kernels[0].image, log)

    return cache.artefact("image", inputs_of(root_tar, kernels, initramfs, keys), build) / "disk.raw"


def _lay_over(tree: Path, kernels: tuple[Kernel, Kernel], initramfs: Path, keys: Keys) -> None:
    """Copy the lab's files, the kernels and the keys into the tree."""
    for name, text in host_files():
        _write(tree / name, text, 0o644)
    for kernel in kernels:
        shutil.copy(kernel.image, tree / "boot" / f"vmlinuz-{kernel.release}")
        shutil.copy(kernel.config, tree / "boot" / f"config-{kernel.release}")
    (tree / GUEST_FOLDER).mkdir(parents=True)
    shutil.copy(kernels[0].image, tree / GUEST_FOLDER / "vmlinuz")
    shutil.copy(initramfs, tree / GUEST_FOLDER / "initramfs")
    for stale in (tree / "etc/ssh").glob("ssh_host_*"):
        stale.unlink()
    _write(tree / "etc/ssh/ssh_host_ed25519_key", keys.host.read_text(), 0o600)
    _write(tree / "etc/ssh/ssh_host_ed25519_key.pub", public(keys.host) + "\n", 0o644)
    _write(tree / "root/.ssh/authorized_keys", public(keys.client) + "\n", 0o600)
    (tree / "root/.ssh").chmod(0o700)
    # Empty: each host generates its own at its first boot.
    _write(tree / "etc/machine-id", "", 0o444)


def _enable(tree: Path, log: Path) -> None:
    """Enable and mask units with the tree's own systemctl. Disable generators. Remove AppArmor profiles that are not needed."""
    for verb, units in (("enable", ENABLED), ("mask", MASKED)):
        run_logged(("chroot", tree, "systemctl", verb, *units), what=f"systemctl {verb}", log=log, limit_s=limits.TOOL)
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(parents=True)
    for name in GENERATORS_OFF:
        (generators / name).symlink_to("/dev/null")
    for profile in (tree / "etc/apparmor.d").glob("*"):
        if profile.is_file() and not any(word in profile.name for word in PROFILES):
            profile.unlink()
    # Tell systemd that nothing has changed in /usr, so that the first boot does not rebuild caches.
    for folder in ("etc", "var"):
        (tree / folder / ".updated").touch()


def _write(path: Path, text: str, mode: int) -> None:
    """Write one file into the tree, owned by root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)
