# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/docsite/rst/guests.rst lists the units that continue to run, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _services

PAGE = Path(__file__).parents[3] / "docs/docsite/rst/guests.rst"


def test_the_units_that_continue_to_run_are_those_of_the_code():
    kept = {*_services.KEPT, *_services.NOTICED, *(unit for provider in _providers.all_of_them() for unit in provider.kept)}
    text = PAGE.read_text().partition("These units continue to run")[2].partition(".. list-table::")[2]
    told = re.findall(r"``(\S+?)``", text.partition("* - the guests' units")[0])
    assert len(told) == len(set(told)) > 50
    assert set(told) == {unit.removesuffix(".service") for unit in kept}
