# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A clock that is made up: only sleeps move it, so a wait for minutes takes no time, and a wait without an end fails."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

LOOKS = 100
SLEEPS = 10_000


class Clock:
    """The ``time`` of these modules. ``slept`` has how long each sleep was, in seconds; ``at`` what happens in a sleep, by its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules, step=None) -> None:
        self.now, self.slept, self.at = 0.0, [], {}
        self._looks = 0
        self._step = step  # seconds that each sleep takes, instead of those asked for
        made_up = SimpleNamespace(**{**vars(time), "monotonic": self.monotonic, "sleep": self.sleep})
        for module in modules:
            monkeypatch.setattr(module, "time", made_up)

    def monotonic(self):
        self._looks += 1
        assert self._looks < LOOKS, "it never sleeps"
        return self.now

    def sleep(self, seconds):
        assert seconds > 0, "a sleep that does not wait"
        self.slept.append(seconds)
        assert len(self.slept) < SLEEPS, "it waits for ever"
        self.now, self._looks = self.now + (self._step or seconds), 0
        self.at.get(len(self.slept), lambda: None)()
