# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The programs of the role build_kernel, with a make that compiles nothing; and its variables."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._kernel_build import progress
from test_roles import play

ROLE = Path(__file__).parents[3] / "roles/build_kernel"
# It prints what the kernel's build prints, and does what the file "script" says for the packages.
MAKE = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
*mm/) printf '  CC      mm/a.o\\n  AR      mm/built-in.a\\n  AS      mm/b.o\\n' ;;
*bindeb-pkg) . "$SCRIPT" ;;
esac
"""


@pytest.fixture(name="folder")
def a_build(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/make").write_text(MAKE)
    (tmp_path / "bin/make").chmod(0o755)
    (tmp_path / "work/linux").mkdir(parents=True)
    return tmp_path / "work"


def begin(folder, script, objects=10):
    """Start the build whose packages this script makes."""
    (folder / "script").write_text(script)
    path = f"{folder.parent}/bin:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CALLS": str(folder / "calls"), "SCRIPT": str(folder / "script")}
    return subprocess.Popen([str(ROLE / "files/build"), str(folder), "3", str(objects)], env=environment)


def read(folder):
    return (folder / "progress").read_text().splitlines()


def test_a_build_that_fails_is_continued(folder):
    objects = "for n in 1 2 3 4; do echo '  CC [M]  drivers/a.o'; done; "
    assert begin(folder, f"{objects} exit 2").wait(60) == 2
    lines = read(folder)
    assert lines[:2] == ["begun 0", "measured 2 0"] or lines[1].startswith("measured 2 "), lines
    assert lines[-1] == "ended 2" and lines[-2].startswith("built 6 ")
    assert progress("\n".join(lines), 10)["status"] == 2
    assert begin(folder, f"{objects} sleep 7; exit 0").wait(60) == 0
    lines = read(folder)
    assert lines[0] == "begun 6" and lines[1].startswith("measured 2 ") and lines[-1] == "ended 0"
    assert [line for line in lines if line.startswith("percent")] == [f"percent {step}" for step in range(10, 100, 10)]
    assert progress("\n".join(lines), 10) | {"done": 10, "percent": 100, "status": 0} == progress("\n".join(lines), 10)
    # What was measured is not measured again.
    calls = (folder / "calls").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == ["prepare", "mm/", "bindeb-pkg", "bindeb-pkg"]
    assert all(call.startswith("-C linux -j3 ") for call in calls)


def test_there_is_one_build_at_a_time_and_its_end_ends_make(folder):
    first = begin(folder, "exec sleep 300")
    deadline = time.monotonic() + 60
    while "bindeb-pkg" not in ((folder / "calls").read_text() if (folder / "calls").exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert begin(folder, "exec sleep 300").wait(60) == 0
    assert read(folder)[-1].startswith("measured")
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143 and read(folder)[-1] == "ended 143"
    with (folder / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def test_a_preparation_that_fails_ends_the_build(folder):
    (folder.parent / "bin/make").write_text("#!/bin/sh\nexit 7\n")
    assert begin(folder, "").wait(60) == 7
    assert read(folder) == ["begun 0", "ended 7"] and not (folder / "pace").exists()


STATE = {"digest": "d", "release": "7.3.4-a", "version": "1", "date": "2026-11-15", "epoch": 1, "objects": 10, "disk_mib": 4096, "lost": []}


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("for n in 1 2 3 4 5 6; do echo '  CC [M]  a.o'; done; sleep 30", 0, "8 of about 10 objects are compiled"),
        ("echo 'a.c: error: no'; exit 2", 2, "the build of Linux 7.3.4-a failed with exit code 2"),
    ],
)
def test_the_role_waits_for_a_build_and_says_how_far_it_is(tmp_path, script, code, says):
    """The build is a process of its own. The role starts it, and then only looks."""
    work = tmp_path / "kernels/work/linux-source-7.3-a"
    for name, text in (("make", MAKE), ("script", script)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (work / "linux").mkdir(parents=True)
    role = {"name": "kvm.liveupdate.build_kernel", "tasks_from": "compile"}
    host = {
        "build_kernel_source": "linux-source-7.3",
        "build_kernel_suffix": "-a",
        "build_kernel_directory": str(tmp_path / "kernels"),
        "build_kernel_timeout": 120,
        "__build_kernel_state": {**STATE, "lost": ["RUST"]},
    }
    environ = {"CALLS": str(tmp_path / "calls"), "SCRIPT": str(tmp_path / "script"), "ANSIBLE_ASYNC_DIR": str(tmp_path / "async")}
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended, output = play(tmp_path, [{"ansible.builtin.include_role": role}], {"here": host}, PATH=path, **environ)
    told = " ".join(output.split())
    assert (ended != 0) is bool(code) and says in told, output
    assert "the build of Linux 7.3.4-a takes" in told and "excludes them): RUST" in told
    assert (work / "progress").read_text().splitlines()[-1] == f"ended {code}"
    assert not code or "a.c: error: no" in told


@pytest.mark.skipif(not shutil.which("apt-ftparchive"), reason="apt-utils is not installed")
def test_the_repository_is_signed_and_its_index_is_renewed_only_if_a_package_is_new(tmp_path):
    tree, repository, keys = tmp_path / "tree", tmp_path / "repository", tmp_path / "gnupg"
    (tree / "DEBIAN").mkdir(parents=True)
    repository.mkdir()
    keys.mkdir(mode=0o700)
    environment = {**os.environ, "GNUPGHOME": str(keys), "LC_ALL": "C"}

    def run(*words):
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout

    def package(name):
        control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: {name}\n"
        (tree / "DEBIAN/control").write_text(control)
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(repository / f"{name}.deb"))

    def publish():
        return run(str(ROLE / "files/publish"), str(repository), "")

    try:
        package("one")
        assert publish() == "changed\n" and publish() == ""
        package("two")
        assert publish() == "changed\n" and publish() == ""
        assert re.findall("^Package: (.*)", (repository / "Packages").read_text(), re.MULTILINE) == ["one", "two"]
        # A run that stopped before it signed.
        (repository / "InRelease").unlink()
        assert publish() == "changed\n"
        run("gpg", "--batch", "--verify", str(repository / "InRelease"))
        assert not list(repository.glob("*.new"))
    finally:
        run("gpgconf", "--kill", "all")


def test_every_variable_is_told_with_its_default():
    spec = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert set(spec) == {*defaults, "build_kernel_source"}
    told = {name: option.get("default") for name, option in spec.items() if name in defaults}
    # The list of packages is told in words.
    assert told == {**defaults, "build_kernel_packages": None}


def test_every_task_file_is_used():
    texts = {path.stem: path.read_text() for path in (ROLE / "tasks").glob("*.yml")}
    used = {name for text in texts.values() for name in re.findall(r"_tasks: (\w+)\.yml", text)}
    assert used == set(texts) - {"main"}
