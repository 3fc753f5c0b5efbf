# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults of the controller, of the way to the host, and of other controllers."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from kvmfaults.marks import each
from kvmfaults.story import ALL, NAMES, UPDATE, Story
from kvmlab.story.controller import Controller
from kvmlab.story.prepared import DOMAINS
from kvmlab.watch import ledger

# What Ansible shows when it begins a step.
TASKS = {
    "examine": "Examine the host and its guests",
    "lease": "Take the lease of the host",
    "stage": "Stage the kernel",
    "preserve": "Preserve the RAM of the guests",
    "commit": "Jump to the new kernel",
    "verify": "Wait for the guests",
}
# From the begin of a task until its module works on the host.
MIDDLE_S = 3.0
# A module whose controller has died may still commit the update.
COMMIT_S = 120.0


@each(1)
def test_01_controller_dies(story: Story, variant: str) -> None:
    mark = story.inject("stopping" if variant == "stopping" else "committed", "true")
    story.begin()
    if variant in TASKS:
        story.task(TASKS[variant])
        time.sleep(MIDDLE_S)
    elif variant == "stopping":
        assert story.acts(mark)
    else:
        story.boots()
    assert story.kill_controller(), story.play
    if variant == "commit":
        story.acts(mark, COMMIT_S)
    story.must_hold(action=story.rerun)


@each(2)
def test_02_ssh_breaks(story: Story, variant: str) -> None:
    mark = story.inject("stopping", "sleep 20", freeze=0) if variant == "jump" else ""
    story.begin()
    try:
        if mark:
            assert story.acts(mark)
            story.host.plug(False)
            story.boots()
            story.resumed(1)
        else:
            story.task(TASKS[variant])
            story.host.plug(False)
            story.end()
    finally:
        story.host.plug(True)
    story.end()
    if mark:
        story.must_hold(outcomes={"updated"})
    else:
        story.must_hold(outcomes={"lost"}, action=story.rerun)


@each(18)
def test_18_second_controller(story: Story, variant: str) -> None:
    # After its commit the update waits a minute, so that the second run surely finds it.
    mark = story.inject("preserved", "true") if variant == "preserved" else story.inject("committed", "sleep 60", freeze=0)
    story.begin()
    assert story.acts(mark)
    kernel = f"/boot/vmlinuz-{story.target}"
    second = Controller(story.lab).play(UPDATE, "--limit", story.host.name, hypervisor_update_kernel=kernel)
    first = story.end()
    outcome = second.report.get(story.host.name, {}).get("outcome")
    assert (second.code != 0 and outcome in ("refused", "failed", "lost")) or outcome == "current", second.output
    assert first.code == 0, first.output
    story.must_hold(outcomes={"updated"})


@each(21)
def test_21_collection_upgraded(story: Story, variant: str, tmp_path: Path) -> None:
    held = story.controller.ask(story.host.name, "guest", names=list(NAMES), state="preserved")
    assert held["changed"], held
    new = upgraded(story, tmp_path)
    if variant == "setup":
        setup(new)
        assert len(story.sessions()) == len(ALL)
    else:
        story.begin(new)
        assert "another version" in story.end().output

    def action() -> None:
        if variant == "no-setup":
            setup(new)
        story.controller = new
        story.rerun()

    story.must_hold(outcomes=() if variant == "setup" else {"refused"}, action=action)


def upgraded(story: Story, folder: Path) -> Controller:
    """A controller with another version of the collection."""
    place = folder / "ansible_collections/kvm/liveupdate"
    shutil.copytree(ledger.COLLECTION, place, ignore=shutil.ignore_patterns(".git", "tests", "docs", "__pycache__"))
    with (place / "plugins/module_utils/_limits.py").open("a") as file:
        file.write("# Another version.\n")
    return Controller(story.lab, environment={"ANSIBLE_COLLECTIONS_PATH": str(folder)})


def setup(controller: Controller) -> None:
    """Run the setup of this controller."""
    play = controller.play("kvm.liveupdate.setup", hypervisor_setup_domains=[domain.name for domain in DOMAINS])
    assert play.code == 0, play.output
