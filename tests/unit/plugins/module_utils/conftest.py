# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _ram, _save, _virsh
from made_up_clock import Clock

# It looks domains up as the real one does: by id, by UUID, by name; "start" by UUID and name only (tools/virsh-util.c).
PROGRAM = """#!{python} -IS
import json, shlex, sys, time

words = sys.argv[1:]
assert words[:2] == ["--quiet", "--connect"], words
rest = words[3:]
NO_DOMAIN = ("define", "restore")
host = json.load(open({state!r}))
with open({log!r}, "a") as log:
    log.write("PROCESS\\n")
commands, tokens = [[]], rest
if len(rest) == 1:
    lexer = shlex.shlex(rest[0], posix=True, punctuation_chars=";")
    lexer.whitespace_split, lexer.commenters = True, ""
    tokens = list(lexer)
for token in tokens:
    commands.append([]) if token == ";" else commands[-1].append(token)


def find(word, by_id):
    keys = (("id",) if by_id else ()) + (("uuid",) if len(word) == 36 else ()) + ("name",)
    return next((domain for key in keys for domain in host["domains"] if str(domain.get(key)) == word), None)


def run(verb, *words):
    if verb == "echo":
        if "--err" in words:
            sys.stderr.write(f"error: {{words[-1]}}\\n")
        else:
            sys.stdout.write("".join(words))
        return True
    said = host["says"].get(" ".join((verb, *words)))
    if said is None:
        named = [] if verb in NO_DOMAIN else [word for word in words if not word.startswith("-")]
        word = named[-2 if verb == "migrate" else 0] if named else ""
        domain = find(word, verb != "start") if word else {{"name": "", "says": {{}}}}
        if not domain:
            sys.stderr.write(f"error: failed to get domain '{{word}}'\\n")
            return False
        with open({log!r}, "a") as log:
            log.write(f"{{verb}} {{domain['name']}}\\n")
        asked = json.loads(words[1]) if verb == "qemu-monitor-command" else {{"execute": verb}}
        key = "".join((asked["execute"], *asked.get("arguments", {{}}).get("path", "").rpartition("/machine")[2:]))
        said = domain["says"].get(key, "")
    if said == "HANGS":
        sys.stdout.flush()
        time.sleep(60)
    failed = said.startswith("error: ")
    (sys.stderr if failed else sys.stdout).write(said)
    return not failed


good = True
for command in commands:
    good = run(*command)
    sys.stdout.flush()
sys.exit(not good)
"""


class Host:
    """A libvirt that a stub of virsh speaks for: its domains, and what it says to whole commands."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.domains: list[dict] = []
        self.says: dict[str, str] = {}
        program = folder / "bin" / "virsh"
        program.parent.mkdir()
        program.write_text(PROGRAM.format(python=sys.executable, state=str(folder / "state.json"), log=str(folder / "log")))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        for place in ("run", "etc"):
            (folder / place).mkdir()
        monkeypatch.setattr(_virsh, "PIDS", str(folder / "run"))
        monkeypatch.setattr(_virsh, "DEFINITIONS", str(folder / "etc"))
        monkeypatch.setattr(_ram, "directory", lambda: _ram.DIRECTORY)
        self.clock = Clock(monkeypatch, _save, step=40)  # so that the limit of an undo comes soon
        self.keep()

    def add(self, name, number, **says):
        """A domain with a UUID of its own; returns a record of it."""
        uuid = f"{len(self.domains) + 1:08d}-1111-4111-8111-111111111111"
        usual = {
            "dumpxml": "<domain/>",
            "domjobinfo": "Job type:         None        \n",
            "domstate": "running\n\n",
            "query-migrate": '{"return": {}}',
            "query-block-jobs": '{"return": []}',
            "query-block": '{"return": []}',
            "qom-list/peripheral": '{"return": []}',
            "qom-list/peripheral-anon": '{"return": []}',
            "query-status": '{"return": {"status": "running"}}',
            "query-migrate-capabilities": '{"return": [{"capability": "x-ignore-shared", "state": false}]}',
            "migrate-set-capabilities": '{"return": {}}',
        }
        said = {**usual, **{key.replace("_", "-"): value for key, value in says.items()}}
        self.domains.append({"name": name, "id": number, "uuid": uuid, "says": said})
        (self.folder / "etc" / f"{name}.xml").write_text(f"<domain>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n</domain>\n")
        self.keep()
        return {"name": name, "uuid": uuid, "pid": os.getpid(), "started": _processes.start_time(os.getpid()), "backends": [], "ram": []}

    def keep(self):
        """Let the stub know."""
        (self.folder / "state.json").write_text(json.dumps({"domains": self.domains, "says": self.says}))

    def asked(self):
        """Which commands reached which domain, by its name."""
        return [line for line in self.log() if line != "PROCESS"]

    def processes(self):
        """How many virsh ran."""
        return self.log().count("PROCESS")

    def log(self):
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(name="libvirt")
def libvirt_with_a_stub_of_virsh(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)
