# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cache holds an artefact completely or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from kvmlab import cache
from kvmlab.errors import LabError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kvm-liveupdate"


def hello(folder: Path, log: Path) -> None:
    """A build that leaves one file."""
    (folder / "file").write_text("hello")


def never(folder: Path, log: Path) -> None:
    """A build that must not run."""
    raise AssertionError("built although it is there")


def test_the_cache_is_where_the_user_says(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.root() == own_cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.root() == tmp_path / "home" / ".cache" / "kvm-liveupdate"


def test_the_key_is_of_all_inputs_and_of_nothing_else() -> None:
    inputs = {"package": "linux-source-7.2", "version": "7.2.13-1"}
    assert cache.key(inputs) == cache.key(dict(reversed(inputs.items())))
    others = [
        {**inputs, "version": "7.2.14-1"},
        {**inputs, "recipe": ""},
        {"package": "linux-source-7.2"},
        {"package": "linux-source-7.27.2.13-1", "version": ""},
    ]
    assert len({cache.key(inputs), *map(cache.key, others)}) == len(others) + 1


CODE = '''"""What for."""

import os

SCRIPT = """
# not a comment
"""


def make():
    return os.getpid()
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("What for", "For what"),
        ("import os", "from os import getpid"),
        ("SCRIPT", "# Why.\nSCRIPT"),
        ("    return", '    """Make it."""\n    return'),
    ],
)
def test_neither_a_comment_nor_an_import_changes_the_recipe(tmp_path: Path, before: str, after: str) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(CODE)
    new.write_text(CODE.replace(before, after))
    assert old.read_text() != new.read_text()
    assert cache.recipe(str(old)) == cache.recipe(str(new))


@pytest.mark.parametrize(("before", "after"), [("getpid", "getppid"), ("# not", "# no"), ("make", "build")])
def test_other_code_is_another_recipe(tmp_path: Path, before: str, after: str) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(CODE)
    new.write_text(CODE.replace(before, after))
    assert cache.recipe(str(old)) != cache.recipe(str(new))
    assert cache.recipe(str(old), str(new)) != cache.recipe(str(new), str(old))


def test_what_is_there_is_not_built_again(own_cache: Path) -> None:
    built = cache.artefact("thing", {"a": "1"}, hello)
    assert (built / "file").read_text() == "hello"
    assert built.parent == own_cache
    assert cache.artefact("thing", {"a": "1"}, never) == built
    assert cache.artefact("thing", {"a": "2"}, hello) != built


def test_a_build_that_fails_leaves_nothing_but_its_log(own_cache: Path) -> None:
    def fail(folder: Path, log: Path) -> None:
        (folder / "half").write_text("half")
        log.write_text("cannot")
        raise LabError("no")

    with pytest.raises(LabError, match="no"):
        cache.artefact("thing", {"a": "1"}, fail)
    assert not list(own_cache.glob("thing-*"))
    assert cache.log_of("thing", {"a": "1"}).read_text() == "cannot"
    assert (cache.artefact("thing", {"a": "1"}, hello) / "file").exists()


def killed_build() -> None:
    """Build, and die in the middle."""

    def die(folder: Path, log: Path) -> None:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    cache.artefact("thing", {"a": "1"}, die)


def test_a_killed_build_is_never_taken_for_finished(own_cache: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed_build)
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    (left,) = own_cache.glob("thing-*")
    assert left.name.endswith(cache.PARTIAL)

    built = cache.artefact("thing", {"a": "1"}, hello)
    assert sorted(path.name for path in built.iterdir()) == ["file", "inputs.json"]
    assert list(own_cache.glob("thing-*")) == [built]


def test_what_another_killed_build_left_is_removed(own_cache: Path) -> None:
    stale = own_cache / f"other-0123{cache.PARTIAL}"
    stale.mkdir(parents=True)
    cache.artefact("thing", {"a": "1"}, hello)
    assert not stale.exists()


def test_a_build_that_runs_is_not_stale(own_cache: Path) -> None:
    running = own_cache / f"other-0123{cache.PARTIAL}"
    running.mkdir(parents=True)
    with cache.locked("other-0123"):
        cache.artefact("thing", {"a": "1"}, hello)
    assert running.exists()


def slow_build(counter: Path) -> None:
    """Build slowly and count it."""

    def build(folder: Path, log: Path) -> None:
        with counter.open("a") as stream:
            stream.write("built\n")
        time.sleep(0.5)
        hello(folder, log)

    cache.artefact("thing", {"a": "1"}, build)


def test_two_runs_build_once(own_cache: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    runs = [multiprocessing.get_context("fork").Process(target=slow_build, args=(counter,)) for dummy in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(20)
    assert [run.exitcode for run in runs] == [0, 0]
    assert counter.read_text() == "built\n"


def test_a_lock_is_waited_for_only_so_long() -> None:
    with (
        cache.locked("name"),
        pytest.raises(LabError, match=r"another run has held the lock name for more than 1 s"),
        cache.locked("name", limit_s=1.0),
    ):
        pass


def test_prune_keeps_what_was_used_last(own_cache: Path) -> None:
    built = [cache.artefact("thing", {"a": str(number)}, hello) for number in range(4)]
    other = cache.artefact("thing2", {"a": "0"}, hello)
    for age, path in enumerate(built):
        os.utime(path, (1000 - age, 1000 - age))
    cache.artefact("thing", {"a": "3"}, never)
    cache.prune("thing", 2)
    assert [path for path in built if path.exists()] == [built[0], built[3]]
    assert other.exists()
    assert not list(own_cache.glob("*" + cache.PARTIAL))
