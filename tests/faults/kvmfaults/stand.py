# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hosts of the suite: one at a time, from the disk of a prepared one."""

from __future__ import annotations

import shutil

from kvmlab import cache
from kvmlab.lab import Lab, uninterrupted
from kvmlab.machines.host import Host
from kvmlab.parts.kinds import USUAL
from kvmlab.story import prepared

from .story import Story, wait_ready


class Stand:
    """Gives each case a host. one_host: as long as all holds, the next case gets the host as the case before left it."""

    def __init__(self, one_host: bool) -> None:
        self._lab = Lab(cache.root() / "lab-faults")
        self._one_host = one_host
        self._clean = False
        self._story: Story | None = None

    def story(self, fault: str, kind: str = USUAL[0]) -> Story:
        """A host of this kind whose guests run."""
        host = self._left(kind) or self._fresh(kind)
        self._clean = False
        self._story = Story(self._lab, host, fault)
        return self._story

    def _left(self, kind: str) -> Host | None:
        if not (self._one_host and self._clean):
            return None
        host = self._lab.host("hv1")
        return host if host.record and host.kind == kind else None

    def _fresh(self, kind: str) -> Host:
        self._lab.down()
        (host,) = self._lab.up([kind], prepared={kind: prepared.disk(kind)})
        wait_ready(host)
        return host

    def end_of_case(self, held: bool) -> str:
        """Close the story of the case. held: all that must hold did. Returns what was seen."""
        story, self._story, self._clean = self._story, None, held
        if story:
            story.close()
            if not held:
                keep_logs(story)
        return f"{story.plan}{story.seen}" if story else ""

    def down(self) -> None:
        """End the host, and what still runs of a story that was interrupted."""
        if self._story:
            self._story.close(interrupted=True)
        with uninterrupted():
            self._lab.down()


def keep_logs(story: Story) -> None:
    """Keep the logs of the host and the output of the run: the next host begins new ones."""
    folder = cache.root() / "faults-logs" / story.fault
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for log in story.host.folder.glob("*.log"):
        shutil.copy2(log, folder)
    if story.play:
        (folder / "run.log").write_text(story.play.output, encoding="utf-8")
