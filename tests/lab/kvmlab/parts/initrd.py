# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The disk image of hosts with modular kernels and initial RAM disks, as distributions have them.

The host's own tools make the initial RAM disks. The boot that installs GRUB goes through one of them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..machines import disk, lvm
from ..machines.machine import Machine
from ..run import run_logged, say, tail
from . import bootloader, image
from .kernel import Kernel
from .keys import Keys
from .kinds import DRACUT, INITRAMFS_TOOLS, Kind

# For any machine, not only for the one that makes them. initramfs-tools has this as its default.
MAKERS = {
    DRACUT: ("dracut", "--no-hostonly", "--force", "/boot/initrd.img-{release}", "{release}"),
    INITRAMFS_TOOLS: ("update-initramfs", "-c", "-k", "{release}"),
}
# The folder of the root file system that the programs above see as theirs. They need /proc, and what is mounted goes with them.
INSIDE = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
# An initial RAM disk of dracut that is for any machine activates only the volumes that the command line names.
LVM_WORD = f"rd.lvm.lv={lvm.GROUP}/{lvm.VOLUME}"
LVM_SETTINGS = f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {LVM_WORD}"\n'
CHECK = "lab-check-volumes"
# Init of the boot that installs GRUB, on a host with LVM.
CHECK_SCRIPT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin
pvck {bootloader.ROOT_DEVICE} && vgck {lvm.GROUP} && pvs && lvs && exec /{bootloader.SCRIPT}
poweroff -f -f
sleep 10
"""


def inputs_of(kind: Kind, root_tar: Path, kernels: tuple[Kernel, Kernel], guest: tuple[Kernel, Path], keys: Keys) -> dict[str, str]:
    """All inputs of the disk image."""
    usual = image.inputs_of(root_tar, kernels, guest[1], keys)
    return {
        **usual,
        "guest kernel": guest[0].folder.name,
        "initrd": kind.initrd,
        "lvm": str(kind.lvm),
        "recipe": usual["recipe"] + " " + cache.recipe(__file__, lvm.__file__),
    }


def host_image(
    kind: Kind, root_tar: Path, kernels: tuple[Kernel, Kernel], guest: tuple[Kernel, Path], keys: Keys, emulator: tuple[str, ...]
) -> Path:
    """The path of the raw disk image in the cache. The image boots the first kernel. guest: kernel and initramfs of the guests."""

    def build(folder: Path, log: Path) -> None:
        if os.geteuid() != 0:
            raise LabError("building the hosts' disk image needs root, to set file owners; run this as root")
        say(f"image of {kind.name}: file system")
        os.umask(0o022)  # the hosts see the modes of the folders that are made here
        tree = folder / "tree"
        tree.mkdir()
        run_logged(("tar", "-C", tree, "--numeric-owner", "-xpf", root_tar), what="unpack", log=log, limit_s=limits.TOOL)
        image._lay_over(tree, kernels, guest[1], keys)
        shutil.copy(guest[0].image, tree / image.GUEST_FOLDER / "vmlinuz")
        image._enable(tree, log)
        for kernel in kernels:
            _make_initrd(kind, tree, kernel, log)
        image._write(tree / bootloader.SCRIPT, bootloader.script(disk.FILE_SYSTEM_ID, kernels[0].release), 0o755)
        image._write(tree / CHECK, CHECK_SCRIPT, 0o755)
        if kind.lvm:
            image._write(tree / "etc/default/grub.d/lvm.cfg", LVM_SETTINGS, 0o644)
        (lvm if kind.lvm else disk).make(tree, folder / "disk.raw", log)
        shutil.copy(_path(tree, kernels[0]), folder / "initrd")
        shutil.rmtree(tree)
        _install_boot_loader(kind, emulator, folder, kernels[0], log)
        (folder / "initrd").unlink()

    return cache.artefact("image", inputs_of(kind, root_tar, kernels, guest, keys), build) / "disk.raw"


def _path(tree: Path, kernel: Kernel) -> Path:
    return tree / f"boot/initrd.img-{kernel.release}"


def _make_initrd(kind: Kind, tree: Path, kernel: Kernel, log: Path) -> None:
    """Put the kernel's modules into the tree and make its initial RAM disk there."""
    release = kernel.release
    say(f"image of {kind.name}: initial RAM disk of {release}")
    shutil.copytree(kernel.modules, tree / "usr/lib/modules" / release, symlinks=True)
    for words in (("depmod", release), MAKERS[kind.initrd]):
        command = [word.format(release=release) for word in words]
        mounted = (*INSIDE, f"--mount-proc={tree}/proc", "chroot", str(tree), *command)
        run_logged(mounted, what=f"{words[0]} {release}", log=log, limit_s=limits.TOOL)
    if not _path(tree, kernel).is_file():
        raise LabError(f"{MAKERS[kind.initrd][0]} made no initial RAM disk of {release}. The end of {log}:\n{tail(log)}")


def _install_boot_loader(kind: Kind, emulator: tuple[str, ...], folder: Path, kernel: Kernel, log: Path) -> None:
    """Boot the disk once, as bootloader.py does, with the initial RAM disk."""
    say(f"image of {kind.name}: boot loader")
    root, init = (f"{lvm.DEVICE} {LVM_WORD}", CHECK) if kind.lvm else (bootloader.ROOT_DEVICE, bootloader.SCRIPT)
    options = f"root={root} rw console=ttyS0 panic=-1 init=/{init}"
    machine = Machine(emulator, "disk.raw", kernel=str(kernel.image), kernel_options=options, initrd="initrd")
    console = folder / "console.log"
    try:
        command = (*machine.command(), "-no-reboot")
        run_logged(command, what="boot loader", log=log, limit_s=limits.HOST_ANSWERS, cwd=folder, progress=lambda: tail(console, 1))
    finally:
        with log.open("ab") as stream:
            stream.write(console.read_bytes() if console.exists() else b"")
    if bootloader.DONE not in tail(console, 50):
        raise LabError(f"GRUB was not installed on {folder / 'disk.raw'}. The end of {log}:\n{tail(log)}")
    for script in (bootloader.SCRIPT, CHECK):
        disk.remove_file(folder / "disk.raw", f"/{script}")
    for leftover in (console, *folder.glob("*.sock")):
        leftover.unlink()
