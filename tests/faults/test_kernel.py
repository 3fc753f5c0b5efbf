# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults of the new kernel: another file, one that cannot take over, one that does not come up."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _image
from kvmfaults import injections
from kvmfaults.marks import each
from kvmfaults.story import Story
from kvmlab import limits
from kvmlab.lab import build
from kvmlab.parts import bzimage, stock

NOWHERE = "/dev/lab-nowhere"
OTHER = "/root/vmlinuz-other"


@each(6)
def test_06_image_changes(story: Story, variant: str) -> None:
    how, step = variant.split("-")
    kernel = f"/boot/vmlinuz-{story.target}"
    mark = story.inject(step, injections.truncate(kernel) if how == "truncated" else injections.swap(kernel))
    story.begin()
    assert story.acts(mark)
    story.end()
    story.must_hold(outcomes={"undone"}, mend=lambda: story.there(injections.swap_mended(kernel)))


def cmdline(story: Story, **words: str) -> str:
    """The command line of the host with other words."""
    line = re.sub(r"\bBOOT_IMAGE=\S+ ?", "", story.there("cat /proc/cmdline").strip())
    for name, value in words.items():
        line = re.sub(rf"(?<!\S){name}=\S+", "", line) + f" {name}={value}"
    return line


@each(7)
def test_07_target_cannot_take_over(story: Story, variant: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    if variant in ("kho-off", "liveupdate-off"):
        word = variant.removesuffix("-off")
        given, says = {"hypervisor_update_cmdline": cmdline(story, **{word: "off"})}, f"{word}=on"
    elif variant == "no-luo":
        newest = stock.newest()[-1]
        given = {"hypervisor_update_kernel": put(story, stock.folder(newest) / f"vmlinuz-{newest.release}")}
        says = "built without"
    else:
        given, says = {"hypervisor_update_kernel": put(story, other_abi(story, variant.removeprefix("abi-"), tmp_path))}, "reads"
    play = story.update(**given)
    assert says in play.output, play.output
    story.must_hold(outcomes={"refused"})


def other_abi(story: Story, name: str, folder: Path) -> Path:
    """The target with another version of one part of the handover ABI."""
    (kernel,) = [kernel for kernel in build([story.host.kind]).kernels if kernel.release == story.target]
    image = kernel.image.read_bytes()
    spoken = _image.read(str(kernel.image))["abi"][name]
    other = spoken[:-1] + ("8" if spoken[-1] == "9" else "9")
    made = folder / "vmlinuz"
    made.write_bytes(bzimage.replace(image, bzimage.pack("gzip", bzimage.speak(bzimage.unpack(image), spoken, other))))
    return made


def put(story: Story, image: Path) -> str:
    """Copy an image to the host."""
    with image.open("rb") as source:
        command = story.host.ssh_command("--", f"cat > {OTHER}")
        subprocess.run(command, stdin=source, check=True, timeout=limits.HOST_COMMAND)
    return OTHER


@each(8)
def test_08_kernel_does_not_come_up(story: Story, variant: str) -> None:
    line = {
        "panic": cmdline(story, root=NOWHERE),
        "init": cmdline(story, init="/bin/false"),
        "hang": cmdline(story, root=NOWHERE) + " rootwait",
    }[variant]
    story.update(hypervisor_update_cmdline=line, hypervisor_update_timeout=600 if variant == "hang" else 1800)
    if variant == "hang":
        story.cut_power()
    story.must_hold(outcomes={"lost"} if variant == "hang" else {"failed"})
