# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of a boot that the update did not ask for: power cuts, and what somebody else does."""

from __future__ import annotations

from kvmfaults import agent, injections
from kvmfaults.marks import each
from kvmfaults.story import ALL, NAMES, Story


@each(9)
def test_09_power_cut(story: Story, variant: str) -> None:
    after_the_jump = {"booting": 0, "restoring": 1, "restored": len(NAMES)}
    step = "" if variant in after_the_jump else variant
    # The host waits in the step until its power is cut.
    mark = story.inject(step, "sleep 60", freeze=0 if step in agent.IN_ORDER else None) if step else ""
    story.begin()
    if mark:
        assert story.acts(mark)
    else:
        story.boots()
        story.resumed(after_the_jump[variant])
    story.cut_power()
    story.end()
    story.must_hold(ended=ALL)


@each(19)
def test_19_somebody_reboots(story: Story, variant: str) -> None:
    how, step = variant.split("-")
    command = {
        "reboot": injections.REBOOT,
        "kexec": injections.foreign_kexec(f"/boot/vmlinuz-{story.before.kernel}"),
        "unload": injections.UNLOAD,
    }[how]
    mark = story.inject(step, command, freeze=0 if step in agent.IN_ORDER else None)
    story.begin()
    assert story.acts(mark)
    story.end()
    if how == "unload":
        story.must_hold(outcomes={"undone"})
    else:
        story.must_hold(ended=ALL)
