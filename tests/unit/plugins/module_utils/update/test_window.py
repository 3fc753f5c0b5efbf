# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _window


@pytest.mark.parametrize("text", ["1970-01-01T01:00+01:00", " 1970-01-01 00:00:00+00:00", "1970-01-01T00:00Z", "1969-12-31T19:00:00-05:00"])
def test_a_moment_is_read_with_its_offset(text):
    assert _window.closes(text) == 0.0


@pytest.mark.parametrize("text", ["tomorrow", "04:00", "2026-12-01", "2026-12-01T04:00", "2026-12-01T25:00Z"])
def test_a_moment_without_offset_or_in_another_form_is_refused(text):
    with pytest.raises(LiveUpdateError, match=r"write a date and a time with the offset from UTC"):
        _window.closes(text)


def test_nothing_begins_at_the_end_of_the_window():
    _window.refuse_after("", 9e9)
    _window.refuse_after("1970-01-01T00:01Z", 59.9)
    with pytest.raises(LiveUpdateError, match="nothing was stopped: the time of hypervisor_update_until"):
        _window.refuse_after("1970-01-01T00:01Z", 60.0)
