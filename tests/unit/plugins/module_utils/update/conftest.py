# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The made-up host as a fixture, for the tests of an update."""

from __future__ import annotations

import pytest
from made_up_host import make


@pytest.fixture(name="host")
def host_with_two_guests(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch, ["app", "web"])
