# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _lease

UTILS = Path(_lease.__file__).parents[1]
LEASE = {"run": "first", "by": "alice on ctl", "begun": 1000.0, "since": 1000.0, "seconds": 60}


@pytest.fixture(name="lease")
def a_place(tmp_path, monkeypatch):
    """Where the lease is."""
    monkeypatch.setattr(_files, "LEASE", str(tmp_path / "state/lease.json"))
    return tmp_path / "state/lease.json"


@pytest.mark.parametrize(("now", "left"), [(1000.0, 60.0), (1059.0, 1.0), (1060.0, 0.0), (9000.0, 0.0), (990.0, 70.0), (940.0, 0.0)])
def test_a_lease_expires_also_if_the_clock_was_set_back(now, left):
    assert _lease.seen(LEASE, now)["left"] == left and _lease.seen({}, now) == {}


def test_another_run_waits_until_the_lease_expires_or_its_process_has_ended():
    assert _lease.refuse_other({}, "second", 1000.0) == {}
    assert _lease.refuse_other(LEASE, "first", 1000.0) == {}
    with pytest.raises(LiveUpdateError, match=r"another run updates this host: alice on ctl - wait for its end.*'ended=first seconds=1'$"):
        _lease.refuse_other(LEASE, "second", 1000.0)
    with pytest.raises(LiveUpdateError):
        _lease.refuse_other(LEASE, "second", 1000.0, ended="third")
    assert _lease.told(_lease.refuse_other(LEASE, "second", 1000.0, ended="first")) == "alice on ctl; its process has ended"
    assert _lease.told(_lease.refuse_other(LEASE, "second", 1060.0)).startswith("alice on ctl; it expired at 1970-01-01T")
    assert _lease.told({}) == ""


def test_a_run_takes_renews_and_releases_its_own_lease_only(lease):
    _lease.renew("first", 1000.0)
    assert not lease.exists()
    _lease.take("first", "alice on ctl", 60, 1000.0)
    assert _lease.read() == LEASE and os.stat(lease).st_mode & 0o777 == 0o600
    _lease.renew("first", 1050.0)
    assert _lease.read() == {**LEASE, "since": 1050.0}
    _lease.release("second")
    with pytest.raises(LiveUpdateError):
        _lease.renew("second", 1100.0)
    assert _lease.read()["since"] == 1050.0
    _lease.renew("second", 1110.0)  # it has expired, and is still not the lease of this run
    assert _lease.read()["since"] == 1050.0
    _lease.release("first")
    assert not lease.exists()
    _lease.release("first")


def test_a_lease_knows_since_when_no_run_has_ended_well(lease):
    """Else a second run that is killed would hide from the third one that nobody has verified the guests."""
    _lease.take("first", "alice on ctl", 60, 1000.0)
    _lease.renew("first", 1010.0)
    _lease.take("second", "bob on ctl", 60, 1100.0)
    assert _lease.read() == {"run": "second", "by": "bob on ctl", "begun": 1000.0, "since": 1100.0, "seconds": 60}
    _lease.release("second")
    _lease.take("third", "eve on ctl", 60, 1200.0)
    assert _lease.read()["begun"] == 1200.0


def test_a_damaged_lease_is_an_error(lease):
    lease.parent.mkdir()
    lease.write_text("{")
    with pytest.raises(LiveUpdateError, match="is damaged"):
        _lease.renew("first", 1000.0)


def test_the_host_does_not_need_a_lease_to_jump_boot_restore_or_undo():
    """The host's own way uses module_utils only. Nothing there imports the lease or its path."""
    for path in UTILS.rglob("*.py"):
        names = {alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert "_lease" not in names, path
        assert path.name == "_lease.py" or "_files.LEASE" not in path.read_text(), path
