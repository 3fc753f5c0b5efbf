# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _paths, _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError

MOUNT = f"/etc/systemd/system/{_runtime.RAM_MOUNT}"


@pytest.fixture(autouse=True)
def a_host_with_libvirt(monkeypatch):
    monkeypatch.setattr(_runtime, "has_libvirt", lambda: True)


def test_the_domains_ram_has_a_size_of_its_own():
    usual = _runtime.files([])
    assert "size=95%%," in usual[MOUNT][0]  # systemd makes one of two
    given = _runtime.files([], "64g")
    assert set(given) - set(usual) == {f"{MOUNT}.d/50-size.conf"}
    assert given[f"{MOUNT}.d/50-size.conf"][0] == "[Mount]\nOptions=mode=0755,size=64g,huge=within_size\n"
    assert "size=80%%," in _runtime.files([], "80%")[f"{MOUNT}.d/50-size.conf"][0]
    assert {path: usual[path] for path in usual} == {path: given[path] for path in usual}


@pytest.mark.parametrize("size", ["0", "lots", "64 g", "-1g", "5%,mode=777"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(LiveUpdateError, match="not a size"):
        _runtime.files([], size)


def test_a_host_without_libvirt_gets_nothing_for_it(monkeypatch):
    monkeypatch.setattr(_runtime, "has_libvirt", lambda: False)
    assert not [path for path in _runtime.files([], "64g") if "ram.mount" in path or "libvirt/hooks" in path]


def test_what_guests_wait_for_goes_ahead_of_the_boot_until_set_property_says_otherwise(monkeypatch):
    """systemctl set-property writes 50-*.conf, and the last name wins."""
    monkeypatch.setattr(_runtime, "has_libvirt", lambda: True)
    ahead = {
        path.split("/")[-2].removesuffix(".d")
        for path, (content, _mode) in _runtime.files(["web.service"]).items()
        if "StartupCPUWeight=10000" in content and ".d/" in path
    }
    assert {"web.service", "systemd-networkd.service", "dbus.service", "libvirtd.service"} <= ahead
    for unit in ("systemd-remount-fs.service", "systemd-modules-load.service"):
        content, _mode = _runtime.files([])[f"{_runtime.UNITS}/{unit}.d/{_runtime.DROPIN}"]
        assert "StartupCPUWeight=300" in content  # ahead of the rest, and behind the guests that need not wait for it
    assert not [unit for unit in ahead if unit.endswith(".slice")]  # what runs in one again would hold up the others
    assert _runtime.DROPIN < "50-StartupCPUWeight.conf"


def test_the_runtime_stands_alone(tmp_path):
    """Each of its modules can be imported where there is nothing else: that is how the boot finds it."""
    package = f"{_runtime.LIBRARY}/kvm_liveupdate/"
    names = []
    (tmp_path / "kvm_liveupdate").mkdir()
    for path, (content, _mode) in _runtime.files([]).items():
        if path.startswith(package):
            names.append(path.removeprefix(package).removesuffix(".py"))
            (tmp_path / "kvm_liveupdate" / path.removeprefix(package)).write_text(content, encoding="utf-8")
    wanted = "; ".join(f"import kvm_liveupdate.{name}" for name in names if name != "__init__")
    program = f"import sys; sys.path.insert(0, '{tmp_path}'); {wanted}"
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_hook_marks_a_saved_domain_as_resumed_and_no_other(tmp_path):
    """What says that the memory is no longer what the state belongs to. Where that cannot be written libvirt must not go on."""
    for folder in ("state", "run"):
        (tmp_path / folder).mkdir()
    script = _runtime._HOOK.replace(_paths.GUESTS_STATE, str(tmp_path / "state")).replace(_paths.GUESTS_RUN, str(tmp_path / "run"))

    def hook(name, *words):
        return subprocess.run(["sh", "-c", script, "hook", name, *words], check=False, capture_output=True).returncode

    (tmp_path / "state/app.state").touch()
    (tmp_path / "run/db.stand-in").touch()
    assert [hook(name, "started", "begin") for name in ("app", "db", "web")] == [0, 0, 0]
    assert hook("app", "stopped", "end") == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["app.resumed", "db.stand-in"]
    shutil.rmtree(tmp_path / "run")
    assert hook("app", "started", "begin") != 0


def test_a_unit_without_its_suffix_is_refused():
    """A drop-in below web1.d would apply to nothing."""
    with pytest.raises(LiveUpdateError, match=r"'web1': not the name of a service unit; write web1\.service"):
        _runtime.files(["db1.service", "web1"])


def sections(path):
    """A unit file as its sections, each with its lines."""
    found: dict = {}
    for line in _runtime.files([])[f"{_runtime.UNITS}/{path}"][0].splitlines():
        if line.startswith("["):
            found[line] = []
        elif line and not line.startswith("#"):
            found[line and list(found)[-1]].append(line)
    return found


def test_the_unit_that_jumps_undoes_what_a_crash_leaves_and_is_given_the_time():
    """Cut off, it would leave guests paused."""
    service = sections("kvm-liveupdate-jump.service")["[Service]"]
    assert f"ExecStopPost={_runtime.COMMAND} recover" in service and "TimeoutStopSec=30min" in service


def test_a_holder_lives_through_the_shutdown():
    """In [Service] the word is ignored, and the session is lost without a sound."""
    assert "SurviveFinalKillSignal=yes" in sections("kvm-liveupdate-hold@.service")["[Unit]"]


def test_a_boot_whose_order_fails_is_an_ordinary_one():
    assert "OnFailure=default.target" in sections("kvm-liveupdate-boot.service")["[Unit]"]
