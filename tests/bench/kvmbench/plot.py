# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/docsite/rst/bench.svg: a bar for each scenario's median pause, and a line from the shortest to the longest. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from .scenarios import SCENARIOS
from .summary import NOTICE
from .text import Figure

WIDTH, LABEL, VALUE, LANE, HEAD = 900, 330, 70, 30, 12
OURS, OTHERS, LINE, TEXT = "#2f9e6e", "#8fa3b5", "#1c2733", "#1c2733"


def bars(pauses: Mapping[str, Figure], floor: Figure | None) -> str:
    """The whole picture; pauses by scenario."""
    rows = [scenario for scenario in SCENARIOS if scenario.name in pauses]
    longest = max((figure.greatest for figure in pauses.values()), default=1.0)
    height = HEAD + LANE * len(rows) + 24

    def place(seconds: float) -> float:
        return LABEL + seconds / longest * (WIDTH - LABEL - VALUE)

    shapes = []
    for lane, scenario in enumerate(rows):
        seen, top = pauses[scenario.name], HEAD + lane * LANE
        colour = OURS if scenario.way in ("qemu", "libvirt") else OTHERS
        middle = top + LANE / 2
        shapes += [
            f'<text x="{LABEL - 8}" y="{middle + 4:.0f}" text-anchor="end">{escape(scenario.words)}</text>',
            f'<rect x="{LABEL}" y="{top + 5}" width="{place(seen.median) - LABEL:.1f}" height="{LANE - 10}" fill="{colour}"/>',
            f'<path d="M{place(seen.least):.1f} {middle:.0f}H{place(seen.greatest):.1f}" stroke="{LINE}" stroke-width="2"/>',
            f'<text x="{place(seen.greatest) + 6:.1f}" y="{middle + 4:.0f}">{seen.median:.1f} s</text>',
        ]
    if floor:
        at, bottom = place(floor.median), HEAD + LANE * len(rows)
        shapes += [
            f'<path d="M{at:.1f} {HEAD}V{bottom}" stroke="#d9480f" stroke-dasharray="4 3"/>',
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#d9480f">floor {floor.median:.1f} s</text>',
        ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" fill="{TEXT}">'
    return "\n".join([head, f"<!--\n{NOTICE}\n-->", f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *shapes, "</svg>\n"])
