# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prepare the root file system: the runtime as on a host, and the units of :file:`boot.sh`. /exchange has the collection's module_utils."""

from __future__ import annotations

import compileall
import os
import sys

sys.path.insert(0, "/exchange")

from module_utils import _runtime
from module_utils.host import _files, _units

HERE = "/usr/local/lib/kvm-liveupdate-bench"
GUEST = "[Unit]\nDescription=A guest in a unit\n\n[Service]\nExecStart=/usr/bin/python3 -IS {here}/start.py unit\n"
DOMAIN = "[Service]\nExecStart=\nExecStart=/usr/bin/python3 -IS {here}/start.py domain\n"
# systemd knows the dependencies of the units of an ordinary boot only while these are loaded.
PLAN = """[Unit]
DefaultDependencies=no
Wants=default.target

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 {here}/before_libvirt.py
"""


def write(path: str, text: str, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


for path, (content, mode) in _runtime.files(["bench.service"]).items():
    write(path, content, mode)
for folder in _runtime.DIRECTORIES:
    _files.make_directory(folder)
with open("/etc/libvirt/qemu.conf", "a", encoding="utf-8") as configuration:
    configuration.write('memory_backing_dir = "/run/kvm-liveupdate-ram"\n')

write(f"{_units.FOLDER}/bench.service", GUEST.format(here=HERE))
write(f"{_units.FOLDER}/{_units.hold('bench')}.d/bench.conf", DOMAIN.format(here=HERE))
write(f"{_units.FOLDER}/bench-plan.service", PLAN.format(here=HERE))
# What an update writes before the jump. The guest is saved, so the rest of the boot waits for it.
_files.write_json(_files.journal_path("bench"), {"guest": "bench", "state": "saved"})
for kind in ("unit", "domain"):
    _files.write_json(f"{_files.STATE}/{kind}.json", {"stages": [{"guests": ["bench"], "start": "default.target"}]})

compileall.compile_dir(_files.LIBRARY, quiet=1)
compileall.compile_dir(HERE, quiet=1)
