# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Paths, names and what programs print are UTF-8, whatever the locale of the host is.

Each test starts a Python that takes another encoding: as on a host with de_DE.ISO-8859-15, which test machines do not have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _module, _unit_files
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files

NO_UTF8 = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
PACKAGE = _module.__name__.rpartition(".")[0]
NAME = "B\u00fcro \udcff"  # the second is no UTF-8

MODULE = f"""#!/usr/bin/python
import os
from {PACKAGE} import _module
from {PACKAGE}.host import _commands
from {PACKAGE}.vmm import _reopened

_module.require_root = lambda: None


def look(module):
    path = _commands.run("cat", module.params["list"])  # as virsh prints it
    gone = _reopened._stat(os.getpid(), path)[1]
    names = os.listdir(os.path.dirname(path))
    return {{"path": path, "gone": gone, "names": names, "argument": module.params["path"], "bad": {{"a": ["x" + chr(0xDCFF)]}}}}


_module.run_module(look, argument_spec={{"list": {{"type": "str"}}, "path": {{"type": "str"}}}})
"""
PLAY = """- hosts: all
  gather_facts: false
  environment: {environment}
  tasks:
    - name: Look
      probe: {{list: "{list}", path: "{path}"}}
"""


def python(code, *words):
    """What a Python with another encoding prints."""
    environment = {**os.environ, **NO_UTF8}
    return subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, check=True).stdout.decode().strip()


def test_the_encoding_of_these_tests_is_another():
    assert python("import sys; print(sys.getfilesystemencoding())") == "ascii"


def test_what_programs_print_is_utf_8():
    """Back to the encoding of the locale, a disk's path would be another one, or the text could not be read at all."""
    code = f"from {PACKAGE}.host import _commands; print(ascii(_commands.run('printf', r'B\\303\\274ro \\377')))"
    assert python(code) == ascii(NAME)


@pytest.mark.parametrize("pipelining", ["true", "false"])
def test_a_module_finds_a_file_by_the_name_that_virsh_prints(tmp_path, pipelining):
    """The reason was file-gone. What is no UTF-8 comes back too: Ansible refuses an answer with such bytes."""
    (tmp_path / "images").mkdir()
    path = tmp_path / "images/B\u00fcro.img"
    path.touch()
    (tmp_path / "list").write_bytes(os.fsencode(path))
    (tmp_path / "library").mkdir()
    (tmp_path / "library/probe.py").write_text(MODULE)
    play = PLAY.format(environment=json.dumps(NO_UTF8), list=tmp_path / "list", path=path)
    (tmp_path / "play.yml").write_text(play, encoding="utf-8")
    environment = {
        **os.environ,
        "ANSIBLE_LIBRARY": f"{tmp_path}/library",
        "ANSIBLE_HOME": str(tmp_path),
        "ANSIBLE_REMOTE_TMP": f"{tmp_path}/remote",
        "ANSIBLE_PIPELINING": pipelining,
        "ANSIBLE_STDOUT_CALLBACK": "default",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
        "LC_ALL": "C.UTF-8",
    }
    words = ["ansible-playbook", "-vv", "-i", "here,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run([*words, f"{tmp_path}/play.yml"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    said = done.stdout.decode()
    assert done.returncode == 0, said
    assert "gone: false" in said and "- x\\udcff" in said, said
    assert said.count(f"path: {path}") == said.count(f"argument: {path}") == 1 and "- B\u00fcro.img" in said, said


def test_a_module_whose_arguments_do_not_fit_into_a_pipe_says_what_to_do(monkeypatch):
    monkeypatch.setattr(_module.sys, "getfilesystemencoding", lambda: "iso8859-15")
    monkeypatch.setattr(_module.basic, "_ANSIBLE_ARGS", b"x" * 48_001)
    started = []
    monkeypatch.setattr(_module.respawn, "respawn_module", started.append)
    with pytest.raises(LiveUpdateError, match=r"48001 bytes.*set environment: \{PYTHONUTF8: '1'\}"):
        _module._use_utf8()
    monkeypatch.setattr(_module.basic, "_ANSIBLE_ARGS", b"{}")
    monkeypatch.setenv("PYTHONUTF8", "0")
    _module._use_utf8()
    assert started == [sys.executable] and os.environ["PYTHONUTF8"] == "1"
    monkeypatch.setattr(_module.sys, "getfilesystemencoding", lambda: "utf-8")
    _module._use_utf8()
    assert len(started) == 1


COMMAND = """import os, sys


def main():
    print(ascii(sys.argv[1:]), *map(os.path.exists, sys.argv[2:]), sys.flags.isolated, sys.flags.no_site, sys._xoptions.get("utf8"))
"""


def script(tmp_path, text):
    """A script of the runtime that is to run here: with this Python, and with a command that tells its words."""
    package = tmp_path / "library/kvm_liveupdate"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "_command.py").write_text(COMMAND)
    places = {"/usr/bin/python3": sys.executable, _files.LIBRARY: f"{tmp_path}/library", _files.COMMAND: f"{tmp_path}/command"}
    places[_files.GUESTS_STATE], places[_files.GUESTS_RUN] = f"{tmp_path}/state", f"{tmp_path}/run"
    for place, here in places.items():
        text = text.replace(place, here)
    return text


@pytest.mark.parametrize("by", ["command", "hook"])
def test_the_command_takes_names_as_utf_8(tmp_path, by):
    """Else a guest would have one name for units and another for modules, and the gate would say that it no longer runs.

    The option is looked at as well: isolated, Python ignores these settings, and takes UTF-8 in the locale POSIX by itself.
    """
    for name, text in (("command", _unit_files.COMMAND), ("hook", _unit_files.HOOK)):
        (tmp_path / name).write_text(script(tmp_path, text))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "state").mkdir()
    name = f"{tmp_path}/{NAME}" if by == "command" else NAME
    (tmp_path / "state" / f"{NAME}.state").touch()
    (tmp_path / NAME).touch()
    words = ["hook", name] if by == "command" else [name, "start", "begin"]
    done = subprocess.run([f"{tmp_path}/{by}", *words], env={**os.environ, **NO_UTF8}, capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout.decode() == f"{['hook', name]!a} True 1 1 True\n", done.stderr
