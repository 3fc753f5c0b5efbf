# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each kind of host understands every unit text that the collection installs. No host is started for this."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _setup
from kvmlab import limits
from kvmlab.parts import packages, rootfs
from kvmlab.parts.kinds import USUAL

FOLDERS = (_units.FOLDER.lstrip("/"), "usr/lib/systemd/system")
# Stands for a guest's unit, and for those that get a drop-in although this host has none of them.
STAND_IN = "[Service]\nExecStart=/bin/true\n"


@pytest.fixture(scope="module", params=USUAL)
def tree(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The root file system of this kind of host, unpacked."""
    packed = rootfs.tar(request.param, packages.resolve())
    with TemporaryDirectory() as folder:
        command = ("tar", "-C", folder, "--numeric-owner", "--exclude=./dev/*", "--exclude=./usr/share/*", "-xpf", packed)
        subprocess.run(command, check=True, timeout=limits.TOOL)
        yield Path(folder)


def installed() -> dict[str, str]:
    """The files that a host with libvirt and one guest unit is given: the units and drop-ins, and the command that they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_setup, "has_libvirt", lambda: True)
        wanted = _runtime.files(["guest.service"], ram_size="50%")
    return {path: text for path, (text, _mode) in wanted.items() if path == _files.COMMAND or path.startswith(f"{_units.FOLDER}/")}


def complaints(tree: Path, texts: dict[str, str]) -> str:
    """What the tree's own systemd says about these units, and about the units that these drop-ins are for."""
    for path, text in texts.items():
        _write(tree / path.lstrip("/"), text)
    names = {Path(path).relative_to(_units.FOLDER).parts[0].removesuffix(".d") for path in texts if path.startswith(_units.FOLDER)}
    for name in names:
        if not any((tree / folder / name).exists() for folder in FOLDERS):
            _write(tree / FOLDERS[0] / name, STAND_IN)
    command = ("chroot", tree, "systemd-analyze", "verify", "--man=no", *sorted(names))
    done = subprocess.run(command, capture_output=True, text=True, timeout=limits.TOOL, check=False)
    said = done.stdout + done.stderr
    return said or (f"exit code {done.returncode}" if done.returncode else "")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if text.startswith("#!") else 0o644)


def test_every_unit_that_is_installed_is_understood(tree: Path) -> None:
    texts = installed()
    assert len(texts) > 20
    assert complaints(tree, texts) == ""


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        (_units.JUMP, "RefuseManualStop=yes", "RefuseManualStopp=yes"),
        (_units.HOLD, "Type=notify", "Type=notified"),
        (_units.REHEARSAL, f"ExecStart=:{_files.COMMAND}", f"ExecStart=:{_files.COMMAND}-none"),
        (_units.REST_UNIT, "[Service]", "[Services]"),
        (_units.TARGET, "DefaultDependencies=no", "DefaultDependencies=none"),
        (_setup.RAM_MOUNT, f"Where={_setup.RAM_DIRECTORY}", "Where=/elsewhere"),
        (f"guest.service.d/{_runtime.DROPIN}", "FileDescriptorStoreMax=4", "FileDescriptorStoreMax=four"),
        (f"sysinit.target.d/{_runtime.DROPIN}", "Wants=", "Want="),
    ],
)
def test_a_mistake_in_a_unit_is_noticed(tree: Path, path: str, right: str, wrong: str) -> None:
    texts = installed()
    text = texts[f"{_units.FOLDER}/{path}"]
    assert right in text
    assert complaints(tree, {**texts, f"{_units.FOLDER}/{path}": text.replace(right, wrong, 1)}) != ""
