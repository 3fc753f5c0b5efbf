# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _units
from ansible_collections.kvm.liveupdate.plugins.modules import runtime


@pytest.fixture(name="host")
def host_that_gets_a_runtime(tmp_path, monkeypatch):
    """Two files are wanted; systemd and the disk tell what is done in which order."""
    steps, fsync = [], os.fsync
    library, unit = str(tmp_path / "lib/kvm_liveupdate/_cli.py"), str(tmp_path / "units/x.service")
    wanted = {unit: ("[Unit]", 0o644), library: ("A = 1\n", 0o644)}
    monkeypatch.setattr(_files, "LIBRARY", str(tmp_path / "lib"))
    monkeypatch.setattr(_units, "FOLDER", str(tmp_path / "units"))
    monkeypatch.setattr(_runtime, "DIRECTORIES", (str(tmp_path / "state"),))
    monkeypatch.setattr(_runtime, "files", lambda *_given: wanted)
    monkeypatch.setattr(_runtime, "outdated", lambda wanted: [path for path in wanted if not os.path.exists(path)])
    monkeypatch.setattr(
        _runtime, "stale", lambda *_given: [path for path in [str(tmp_path / "lib/kvm_liveupdate/_old.py")] if os.path.exists(path)]
    )
    monkeypatch.setattr(_commands, "run", lambda *command: steps.append(command[-1]))
    monkeypatch.setattr(_providers, "known", dict)
    monkeypatch.setattr(_journal, "of_guests", dict)
    monkeypatch.setattr(_files, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "run/lock"))
    monkeypatch.setattr(
        os, "fsync", lambda fd: steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).partition(".")[0]) or fsync(fd)
    )
    return types.SimpleNamespace(steps=steps, library=library, unit=unit, folder=tmp_path)


def run(check=False, state="present"):
    return runtime.manage(types.SimpleNamespace(params={"state": state, "guest_units": [], "ram_size": ""}, check_mode=check))


def test_every_file_is_durable_before_systemd_reads_its_units(host):
    planned = run(check=True)
    assert not host.steps
    assert run() == planned and planned["changed"]
    assert host.steps.index("_cli") < host.steps.index("x") < host.steps.index("status") < host.steps.index("daemon-reload")
    assert host.steps.count("_cli") == 2  # what is compiled from it as well: Python trusts what it finds
    assert os.stat(host.folder / "state").st_mode & 0o777 == 0o700
    assert run()["changed"] is False


def test_what_is_not_wanted_any_more_is_removed_with_what_was_compiled(host):
    run()
    old = host.folder / "lib/kvm_liveupdate/_old.py"
    old.write_text("")
    runtime.compile_durably(str(old))
    planned = run(check=True)
    assert planned["files"] == [str(old)] and "_old.py: absent" in planned["diff"]["after"]
    assert run() == planned
    assert not list(old.parent.rglob("_old*")) and os.path.exists(host.library)


def test_a_runtime_that_a_guest_needs_to_come_back_is_not_removed(host, monkeypatch):
    run()
    saved = {"web": {"state": "saved", "unit": "web.service"}}
    monkeypatch.setattr(_journal, "of_guests", lambda: saved)
    with pytest.raises(LiveUpdateError, match=r"an update saved guest web .* 'kvm-liveupdate discard web'"):
        run(state="absent")
    monkeypatch.setattr(_journal, "of_guests", dict)
    assert run(state="absent")["changed"] and not os.path.exists(host.unit)
