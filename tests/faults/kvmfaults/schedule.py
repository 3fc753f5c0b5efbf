# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random schedules of faults. The same seed always gives the same schedule. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .cases import STEPS

# Faults that may happen together, and the steps in which they can.
LASTING: dict[str, tuple[str, ...]] = {
    "clock": ("staged", "preserved"),
    "cut": ("staged", "preserved", "stopping"),
    "device": ("preserved", "stopping", "jumping"),
    "fail-save": ("preserved", "stopping"),
    "full": ("preserved", "stopping", "saving"),
    "hang": ("saving",),
    "hot-plug": ("preserved", "stopping"),
    "ignore": ("staged", "preserved"),
    "kill-controller": STEPS[:4],
    "kill-holder": ("preserved", "stopping", "saving"),
    "kill-jump": ("committed", "stopping", "saving", "jumping"),
    "second": ("preserved",),
    "snapshot": ("preserved",),
    "swap": ("staged", "preserved", "stopping"),
}
# Faults that end the boot. A schedule has at most one, as its last fault.
ENDING: dict[str, tuple[str, ...]] = {
    "power": STEPS,
    "reboot": STEPS[:5],
    "unload": ("saving", "jumping"),
}
LEAST, MOST = 2, 4


@dataclass(frozen=True)
class Fault:
    """One fault of a schedule."""

    name: str
    step: str

    def __str__(self) -> str:
        return f"{self.name}@{self.step}"


def seed_of(turn: int, variant: int) -> int:
    """The seed of a variant in a pass: each pass has its own."""
    return 100 * turn + variant


def schedule(seed: int) -> list[Fault]:
    """Two to four faults in the order of their steps. Each is there once."""
    dice = random.Random(f"kvm.liveupdate faults {seed}")
    while True:
        ending = dice.choice((None, *sorted(ENDING)))
        last = dice.choice(ENDING[ending]) if ending else STEPS[-1]
        possible = {name: [step for step in steps if STEPS.index(step) <= STEPS.index(last)] for name, steps in LASTING.items()}
        names = dice.sample(sorted(name for name, steps in possible.items() if steps), dice.randint(1, MOST - 1))
        chosen = [Fault(name, dice.choice(possible[name])) for name in names] + ([Fault(ending, last)] if ending else [])
        if len(chosen) >= LEAST:
            return sorted(chosen, key=lambda fault: (STEPS.index(fault.step), fault.name in ENDING))


def read(text: str) -> list[Fault]:
    """A schedule as it is printed: NAME@STEP, separated by spaces."""
    return [Fault(*word.split("@", 1)) for word in text.split()]
