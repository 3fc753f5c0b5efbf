# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the log of a connection proves."""

from __future__ import annotations

import pytest
from kvmlab.watch.echo import read


def test_a_connection_that_is_silent_for_a_while_is_held() -> None:
    seen = read("10.000 OPEN\n10.100 ECHO 1\n10.400 ECHO 2\n42.400 ECHO 3\n42.700 ECHO 4\n", now=43.0)
    assert seen.held and seen.reason == "4 echoes on one connection"
    assert (seen.count, round(seen.gap_s, 3), round(seen.age_s, 3)) == (4, 32.0, 0.3)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "never connected"),
        ("Traceback (most recent call last):\n", "never connected"),
        ("1.0 OPEN\n1.1 ECHO 1\n9.1 END [Errno 104] Connection reset by peer\n", "END [Errno 104] Connection reset by peer"),
        ("1.0 OPEN\n1.1 ECHO 1\n9.1 END b'' came back for 2\n", "END b'' came back for 2"),
        ("1.0 OPEN\n1.1 ECHO 1\n3.0 OPEN\n3.1 ECHO 1\n", "opened again"),
        ("1.0 OPEN\n1.1 ECHO 1\n1.4 ECHO 3\n", "an echo is missing"),
    ],
)
def test_a_connection_that_was_lost_says_why(log: str, reason: str) -> None:
    seen = read(log, now=10.0)
    assert not seen.held
    assert seen.reason == reason
