# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host's kernel says of its network."""

from __future__ import annotations

import pytest
from kvmlab.story.night import last_forwarding

LINES = """1795682000.5
[    9.250000] hv1 kernel: br0: port 1(enp0s5) entered forwarding state
[   11.750000] hv1 kernel: br0: port 1(enp0s5) entered forwarding state
[   13.000000] hv1 kernel: br0: port 2(vnet0) entered forwarding state
"""


def test_the_network_is_there_when_the_card_is_let_through_for_the_last_time() -> None:
    assert last_forwarding(LINES) == 1795682012.25


@pytest.mark.parametrize("said", ["", "1795682000.5\n", "1795682000.5\n-- No entries --\n"])
def test_a_host_that_does_not_say(said: str) -> None:
    assert last_forwarding(said) is None
