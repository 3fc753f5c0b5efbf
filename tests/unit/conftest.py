# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every unit test."""

from __future__ import annotations

import signal

import pytest

pytest.register_assert_rewrite("made_up_clock", "made_up_host")  # so that their assertions show what they compared

_HANDLED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def signals_as_before():
    """A command that a test calls may handle signals. Its handlers must not reach later tests, whose child processes would inherit them."""
    before = {number: signal.getsignal(number) for number in _HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
