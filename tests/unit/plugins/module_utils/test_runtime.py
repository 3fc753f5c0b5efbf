# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _runtime, _unit_files
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _rehearsal
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _return
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _setup, _virsh

UTILS = Path(_runtime.__file__).parent
MOUNT = f"/etc/systemd/system/{_setup.RAM_MOUNT}"


@pytest.fixture(autouse=True)
def a_host_with_libvirt(monkeypatch):
    monkeypatch.setattr(_setup, "has_libvirt", lambda: True)


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
    monkeypatch.setattr(_setup, "has_libvirt", lambda: False)
    assert not [path for path in _runtime.files([], "64g") if "ram.mount" in path or "libvirt/hooks" in path]


def test_what_guests_wait_for_goes_ahead_of_the_boot_until_set_property_says_otherwise(monkeypatch):
    """systemctl set-property writes 50-*.conf, and the last name wins."""
    monkeypatch.setattr(_setup, "has_libvirt", lambda: True)
    ahead = {
        path.split("/")[-2].removesuffix(".d")
        for path, (content, _mode) in _runtime.files(["web.service"]).items()
        if "StartupCPUWeight=10000" in content and ".d/" in path
    }
    assert {"web.service", "systemd-networkd.service", "dbus.service", "libvirtd.service"} <= ahead
    for unit in ("systemd-remount-fs.service", "systemd-modules-load.service"):
        content, _mode = _runtime.files([])[f"{_units.FOLDER}/{unit}.d/{_runtime.DROPIN}"]
        assert "StartupCPUWeight=300" in content  # ahead of the rest, and behind the guests that need not wait for it
    assert not [unit for unit in ahead if unit.endswith(".slice")]  # what runs in one again would hold up the others
    assert _runtime.DROPIN < "50-StartupCPUWeight.conf"


def library(tmp_path):
    """The Python files of the runtime, below a folder as on a host."""
    for path, (content, _mode) in _runtime.files([]).items():
        if path.startswith(_files.LIBRARY):
            file = tmp_path / path.removeprefix(f"{_files.LIBRARY}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")


def test_the_runtime_stands_alone(tmp_path):
    """Each of its modules can be imported where there is nothing else: that is how the boot finds it."""
    library(tmp_path)
    wanted = "; ".join(f"import kvm_liveupdate.{part}" for part in _runtime._PARTS)
    program = f"import sys; sys.path.insert(0, '{tmp_path}'); {wanted}"
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imported(part):
    """The modules of the collection that a module imports anywhere, also inside functions."""
    package = part.split(".")[:-1]
    tree = ast.parse((UTILS / f"{part.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            prefix = ".".join(filter(None, base))
            for name in [prefix, *(".".join(filter(None, (prefix, alias.name))) for alias in node.names)]:
                if name and (UTILS / f"{name.replace('.', '/')}.py").is_file():
                    yield name


def test_a_host_gets_what_the_command_imports_and_no_more():
    """A module that is not there would be missed at the moment when it is needed, which may be in the pause."""
    found, left = set(), ["_command"]
    while left:
        part = left.pop()
        if part not in found:
            found.add(part)
            left += imported(part)
    assert "qemu._start" in found and "vmm._argv" in found
    assert sorted(found) == sorted(_runtime._PARTS)


def test_ansible_ships_all_of_it(tmp_path):
    """In a zip file, in which most of it is not imported."""
    command = ["ansible", "localhost", "-i", "localhost,", "-c", "local", "-m", "kvm.liveupdate.runtime", "--check", "--diff"]
    settings = {"ANSIBLE_HOME": str(tmp_path), "ANSIBLE_LOCAL_TEMP": str(tmp_path), "ANSIBLE_REMOTE_TEMP": str(tmp_path)}
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{_files.LIBRARY}/kvm_liveupdate/vmm/_argv.py" in done.stdout
    assert f"{_files.LIBRARY}/kvm_liveupdate/vmm/__init__.py" in done.stdout


def test_what_an_older_version_left_in_the_library_is_found(tmp_path):
    """Python would go on importing it."""
    wanted = _runtime.files([])
    assert _runtime.left_over(wanted, str(tmp_path)) == []
    library(tmp_path / _files.LIBRARY.lstrip("/"))
    package = tmp_path / _files.LIBRARY.lstrip("/") / "kvm_liveupdate"
    old = ["__pycache__/_qemu_argv.cpython-311.pyc", "_qemu_argv.py", "vmm/__pycache__/_now.cpython-311.pyc", "vmm/_now.py"]
    for name in (*old, "__pycache__/_command.cpython-311.pyc", "vmm/__pycache__/_changes.cpython-311.pyc"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).touch()
    found = _runtime.left_over(wanted, str(tmp_path))
    assert found == [f"{_files.LIBRARY}/kvm_liveupdate/{name}" for name in old]
    assert f"{_files.LIBRARY}/kvm_liveupdate/vmm/_argv.py" in _runtime.left_over([], str(tmp_path))


def test_the_hook_marks_a_saved_domain_as_resumed_and_no_other(tmp_path):
    """What says that the memory is no longer what the state belongs to. Where that cannot be written libvirt must not go on."""
    for folder in ("state", "run"):
        (tmp_path / folder).mkdir()
    script = _unit_files.HOOK.replace(_files.GUESTS_STATE, str(tmp_path / "state")).replace(_files.GUESTS_RUN, str(tmp_path / "run"))

    def hook(name, *words):
        return subprocess.run(["sh", "-c", script, "hook", name, *words], check=False, capture_output=True).returncode

    (tmp_path / "state/app.state").touch()
    (tmp_path / "run/db.stand-in").touch()
    assert [hook(name, "started", "begin") for name in ("app", "db", "web")] == [0, 0, 0]
    assert hook("app", "stopped", "end") == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["app.resumed", "db.stand-in"]
    shutil.rmtree(tmp_path / "run")
    assert hook("app", "started", "begin") != 0


def test_the_hook_asks_before_a_saved_domain_or_a_stand_in_starts_and_its_no_is_libvirts(tmp_path):
    asked = tmp_path / "asked"
    command = tmp_path / "command.py"
    command.write_text(f"import sys\nopen({str(asked)!r}, 'a').write(repr(sys.argv[1:]))\nsys.exit(1)\n")
    script = _unit_files.HOOK.replace(_files.COMMAND, str(command)).replace("/usr/bin/python3", sys.executable)
    script = script.replace(_files.GUESTS_STATE, str(tmp_path)).replace(_files.GUESTS_RUN, str(tmp_path))

    def hook(name, *words):
        return subprocess.run(["sh", "-c", script, "hook", name, *words], check=False).returncode

    (tmp_path / "-a $b.state").touch()
    (tmp_path / "db.stand-in").touch()
    assert [hook(name, "start", "begin") for name in ("-a $b", "db", "web")] == [1, 1, 0]
    assert asked.read_text() == "['hook', '-a $b']['hook', 'db']"


def sections(path):
    """A unit's or drop-in's settings, by section and name."""
    unit, section = {}, {}
    for line in _runtime.files(["web.service"])[path][0].splitlines():
        if line.startswith("["):
            section = unit.setdefault(line, {})
        elif line and not line.startswith("#"):
            key, _equals, value = line.partition("=")
            section[key] = value
    return unit


def test_a_holder_lives_through_the_shutdown_and_is_there_before_libvirt():
    """In [Service] systemd ignores SurviveFinalKillSignal=, and the memory is lost."""
    unit = sections(f"{_units.FOLDER}/kvm-liveupdate-hold@.service")
    wanted = {"SurviveFinalKillSignal": "yes", "IgnoreOnIsolate": "yes", "DefaultDependencies": "no"}
    assert wanted.items() <= unit["[Unit]"].items()
    assert {"libvirtd.service", "virtqemud.service"} <= set(unit["[Unit]"]["Before"].split())
    assert unit["[Service]"]["FileDescriptorStorePreserve"] == "yes" and int(unit["[Service]"]["FileDescriptorStoreMax"]) > 0


def test_a_guests_unit_keeps_its_session_and_is_not_stopped_before_the_jump():
    unit = sections(f"{_units.FOLDER}/web.service.d/{_runtime.DROPIN}")
    assert {"IgnoreOnIsolate": "yes", "DefaultDependencies": "no"}.items() <= unit["[Unit]"].items()
    assert {"FileDescriptorStorePreserve": "yes", "NotifyAccess": "all"}.items() <= unit["[Service]"].items()
    assert "Restart" not in unit["[Service]"]  # the operator's


@pytest.mark.parametrize("path", ["kvm-liveupdate-hold@.service", f"web.service.d/{_runtime.DROPIN}"])
def test_a_guest_that_cannot_be_brought_back_yet_is_tried_again(path):
    assert sections(f"{_units.FOLDER}/{path}")["[Service]"]["RestartForceExitStatus"] == str(_return.AGAIN)
    assert _return.AGAIN % 2 == 0  # a guest chooses the odd ones (isa-debug-exit)


def test_the_rest_of_the_boot_comes_also_when_what_orders_it_fails():
    assert sections(f"{_units.FOLDER}/kvm-liveupdate-boot.service")["[Unit]"]["OnFailure"] == "default.target"


def test_the_end_of_a_rehearsal_lets_the_guest_go_on_and_has_the_time_for_it():
    """systemd's own limit of 90 s is less than a libvirtd that hangs takes for its answers (virsh's limits)."""
    service = sections(f"{_units.FOLDER}/kvm-liveupdate-rehearsal@.service")["[Service]"]
    assert service["ExecStopPost"] == f":{_files.COMMAND} end-rehearsal %I"
    assert int(service["TimeoutStopSec"]) == _rehearsal.END_LIMIT_S >= 600 + 2 * 60 > 90
    assert _rehearsal.LOCK_LIMIT_S + 240 <= _rehearsal.END_LIMIT_S


def test_a_dollar_sign_in_a_name_is_no_variable():
    """systemd.service(5): only with a colon before the program it stands for itself."""
    for path, (content, _mode) in _runtime.files(["web.service"]).items():
        commands = [line.partition("=")[2] for line in content.splitlines() if line.startswith("Exec") and "%I" in line]
        assert all(command.startswith(":") for command in commands), path


def test_what_a_unit_calls_is_there_before_it():
    ordered = _runtime.in_order(list(_runtime.files(["web.service"])))
    ranks = [
        next((rank for rank, start in enumerate((_files.LIBRARY, _files.COMMAND, _units.FOLDER)) if path.startswith(start)), 3)
        for path in ordered
    ]
    assert ranks == sorted(ranks) and set(ranks) == {0, 1, 2, 3}


def test_what_is_not_brought_any_more_is_found_and_nothing_else(tmp_path):
    wanted = _runtime.files(["web.service"])
    old = {
        f"{_files.LIBRARY}/kvm_liveupdate/_old.py",
        f"{_units.FOLDER}/kvm-liveupdate-old.service",
        f"{_units.FOLDER}/gone.service.d/{_runtime.DROPIN}",
    }
    others = {
        f"{_units.FOLDER}/gone.service.d/50-operator.conf",
        f"{_units.FOLDER}/runs.service.d/{_runtime.DROPIN}",
        f"{_units.FOLDER}/web.service",
        _setup.RAM_SIZE,
    }
    for path in (*wanted, *old, *others):
        place = tmp_path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    assert set(_runtime.stale(wanted, ["runs.service"], str(tmp_path))) == old


def test_a_unit_without_its_suffix_is_refused():
    """A drop-in below web1.d would apply to nothing."""
    with pytest.raises(LiveUpdateError, match=r"'web1' is not the name of a service unit; write it as NAME\.service"):
        _runtime.files(["db1.service", "web1"])


def test_the_unit_that_jumps_undoes_what_a_crash_leaves_and_is_given_the_time():
    """Cut off, it would leave guests paused."""
    service = sections(f"{_units.FOLDER}/kvm-liveupdate-jump.service")["[Service]"]
    assert service["ExecStopPost"] == f"{_files.COMMAND} recover" and service["TimeoutStopSec"] == "30min"


def test_a_boot_whose_order_fails_is_an_ordinary_one():
    assert sections(f"{_units.FOLDER}/kvm-liveupdate-boot.service")["[Unit]"]["OnFailure"] == "default.target"


def test_a_guests_unit_keeps_its_memory_over_a_stop_and_its_guest_over_the_isolation():
    """Without the first the session is closed at the shutdown, without the second the guest is ended before it is saved."""
    dropin, _mode = _runtime.files(["web1.service"])[f"{_units.FOLDER}/web1.service.d/{_runtime.DROPIN}"]
    unit, service = dropin.split("[Service]")
    assert "\nIgnoreOnIsolate=yes\n" in unit and "\nDefaultDependencies=no\n" in unit
    assert "\nFileDescriptorStorePreserve=yes\n" in service and "\nFileDescriptorStoreMax=4\n" in service


def test_a_file_that_is_damaged_is_outdated(tmp_path):
    (tmp_path / "unit").write_bytes(b"\xff")
    assert _runtime.outdated({"/unit": ("x", 0o644)}, str(tmp_path)) == ["/unit"]


def test_everybody_may_read_the_runtime_and_only_programs_can_be_run(monkeypatch, tmp_path):
    """AppArmor's libvirtd reads as another user; libvirt refuses a hook that it cannot run, systemd complains of units that can be run."""
    monkeypatch.setattr(_setup, "APPARMOR_ABSTRACTION", str(tmp_path))
    programs = {_files.COMMAND, _virsh.HOOK}
    wanted = _runtime.files(["web.service"], "64g")
    assert {path: mode for path, (_content, mode) in wanted.items()} == {path: 0o755 if path in programs else 0o644 for path in wanted}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (_files.COMMAND, "COMMAND"),
        *(
            (f"{_units.FOLDER}/{unit}", text)
            for unit, text in {
                "kvm-liveupdate-jump.service": "JUMP_SERVICE",
                "kvm-liveupdate-hold@.service": "HOLD_SERVICE",
                "kvm-liveupdate-rehearsal@.service": "REHEARSAL_SERVICE",
                "kvm-liveupdate.target": "TARGET",
                "kvm-liveupdate-guests.target": "GUESTS_TARGET",
                "kvm-liveupdate-daemons.target": "DAEMONS_TARGET",
                "kvm-liveupdate-boot.service": "REST_SERVICE",
                "kvm-liveupdate-unclaimed.service": "UNCLAIMED_SERVICE",
                f"sysinit.target.d/{_runtime.DROPIN}": "EVERY_BOOT",
                f"web.service.d/{_runtime.DROPIN}": "GUEST_DROPIN",
                "run-kvm\\x2dliveupdate\\x2dram.mount": "RAM_MOUNT",
            }.items()
        ),
        ("/etc/libvirt/hooks/qemu.d/kvm-liveupdate", "HOOK"),
    ],
)
def test_each_text_is_where_systemd_and_libvirt_look_for_it(path, text):
    """The boot's command line, the update and the units name these units."""
    assert _runtime.files(["web.service"])[path][0] == getattr(_unit_files, text)


@pytest.mark.parametrize("there", [True, False])
def test_the_rule_for_apparmor_comes_where_its_profiles_include_it(monkeypatch, tmp_path, there):
    monkeypatch.setattr(_setup, "APPARMOR_ABSTRACTION", str(tmp_path / "libvirt-qemu"))
    if there:
        (tmp_path / "libvirt-qemu").touch()
    assert _runtime.files([]).get(_setup.APPARMOR_RULE) == ((_unit_files.APPARMOR, 0o644) if there else None)


def test_only_a_host_with_libvirt_has_its_daemons_ahead(monkeypatch):
    dropin = f"{_units.FOLDER}/libvirtd.service.d/{_runtime.DROPIN}"
    assert dropin in _runtime.files([])
    monkeypatch.setattr(_setup, "has_libvirt", lambda: False)
    assert dropin not in _runtime.files([])
    assert f"{_units.FOLDER}/systemd-networkd.service.d/{_runtime.DROPIN}" in _runtime.files([])


@pytest.mark.parametrize("found", [None, SimpleNamespace(loader=None)], ids=["no file", "a folder without a file"])
def test_a_part_that_the_collection_lacks_is_named(monkeypatch, found):
    """A host with an incomplete library would fail in the pause."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: found)
    with pytest.raises(LiveUpdateError, match=r"Python module \S+\._command is missing in the collection; install the collection again"):
        _runtime.files([])


def test_what_differs_on_the_host_is_outdated_and_nothing_else(tmp_path):
    wanted = {f"/etc/{name}": ("text", 0o644) for name in ("same", "missing", "changed", "secret", "program", "folder")}
    (tmp_path / "etc/folder").mkdir(parents=True)
    for name, mode in {"same": 0o644, "changed": 0o644, "secret": 0o600, "program": 0o755}.items():
        file = tmp_path / "etc" / name
        file.write_text("other" if name == "changed" else "text")
        file.chmod(mode)
    assert _runtime.outdated(wanted, str(tmp_path)) == [path for path in wanted if path != "/etc/same"]


@pytest.mark.parametrize("size", ["1", "68719476736", "64g", "64G", "512M", "9k", "80%"])
def test_a_size_of_tmpfs_is_taken(size):
    assert f"size={size.replace('%', '%%')}," in _runtime.files([], size)[_setup.RAM_SIZE][0]
