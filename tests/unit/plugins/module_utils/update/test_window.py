# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _window


@pytest.mark.parametrize("text", ["1970-01-01T01:00+01:00", " 1970-01-01 00:00:00+00:00", "1970-01-01T00:00Z", "1969-12-31T19:00:00-05:00"])
def test_a_moment_is_read_with_its_offset(text):
    assert _window.closes(text) == 0.0


# What datetime.fromisoformat of Python 3.7 to 3.10 reads.
OLD_PYTHON = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?[+-]\d\d:\d\d")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python does not read these forms")
@pytest.mark.parametrize(
    "text",
    [
        "2026-12-01T04:00+0100",
        "20261201T0400+0100",
        "2026-12-01T04:00+01",
        "2026-12-01T03Z",
        "2026-W49-2T04:00:00,0+01:00",
        " 2026-12-01 03:00z ",
    ],
)
def test_a_form_that_only_a_newer_python_reads_is_rewritten(text):
    plain = _window.in_full(text)
    assert OLD_PYTHON.fullmatch(plain), plain
    assert _window.closes(plain) == _window.closes(text) == 1796094000.0


def test_the_operator_finds_his_own_offset_again():
    assert _window.in_full("2026-12-01T04:00+01:00") == "2026-12-01T04:00:00+01:00" and _window.in_full("") == ""


@pytest.mark.parametrize("text", ["tomorrow", "04:00", "2026-12-01", "2026-12-01T04:00", "2026-12-01T25:00Z"])
def test_a_moment_without_offset_or_in_another_form_is_refused(text):
    with pytest.raises(LiveUpdateError, match=r"write a date and a time with the offset from UTC"):
        _window.closes(text)


def test_nothing_begins_at_the_end_of_the_window():
    _window.refuse_after("", 9e9)
    _window.refuse_after("1970-01-01T00:01Z", 59.9)
    with pytest.raises(LiveUpdateError, match="nothing was stopped: the time of hypervisor_update_until"):
        _window.refuse_after("1970-01-01T00:01Z", 60.0)
