# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records are whole or not there, durable when they are written, and root's own."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files


@pytest.fixture(name="calls")
def recorded_calls(monkeypatch):
    """What is made durable, renamed and removed, in this order, by the names of the files."""
    done = []
    fsync, replace, unlink = os.fsync, os.replace, os.unlink

    def named(fd):
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).partition(".")[0]

    monkeypatch.setattr(os, "fsync", lambda fd: done.append(("fsync", named(fd))) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda old, new: done.append(("replace", os.path.basename(new))) or replace(old, new))
    monkeypatch.setattr(os, "unlink", lambda path: unlink(path) or done.append(("unlink", os.path.basename(path))))
    return done


def test_records_are_whole_or_an_error(tmp_path):
    path = str(tmp_path / "sub" / "record.json")
    assert _files.read_json(path) == {}
    _files.write_json(path, {"a": 1})
    assert _files.read_json(path) == {"a": 1}
    assert (tmp_path / "sub" / "record.json").stat().st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "sub").iterdir())) == 1
    (tmp_path / "sub" / "record.json").write_text('{"a": ')
    with pytest.raises(LiveUpdateError, match=r"record\.json"):
        _files.read_json(path)
    assert _files.remove(path) and not _files.remove(path)


def test_a_record_is_durable_under_its_own_name_only(tmp_path, calls):
    _files.write_json(str(tmp_path / "web.json"), {"state": "saved"})
    assert calls == [("fsync", "web"), ("replace", "web.json"), ("fsync", tmp_path.name)]
    assert _files.read_json(str(tmp_path / "web.json")) == {"state": "saved"}


def test_all_of_a_file_is_written_out_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append((os.fstat(fd).st_size, (tmp_path / "unit").exists())))
    _files.write_text(str(tmp_path / "unit"), "x" * 100_000, 0o644)
    assert seen[0] == (100_000, False) and seen[1][1] and len(seen) == 2


def test_a_record_is_the_same_text_for_the_same_content(tmp_path):
    _files.write_json(str(tmp_path / "record"), {"b": 1, "a": {"d": 2, "c": 3}})
    assert (tmp_path / "record").read_text() == '{\n "a": {\n  "c": 3,\n  "d": 2\n },\n "b": 1\n}\n'


def test_each_new_directory_is_durable(tmp_path, calls):
    _files.make_directory(str(tmp_path / "run/guests"))
    assert calls == [("fsync", tmp_path.name), ("fsync", "run")]
    _files.make_directory(str(tmp_path / "run/guests"))
    assert len(calls) == 2


def test_a_directory_that_another_process_makes_first_is_no_failure(tmp_path, monkeypatch, calls):
    def mkdir(path, mode, real=os.mkdir):
        if path.endswith("run"):
            real(path, mode)
        real(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    _files.make_directory(str(tmp_path / "run/guests"))
    assert (tmp_path / "run/guests").is_dir() and calls == [("fsync", "run")]


def test_the_parents_of_a_directory_are_looked_for_only_as_far_as_there_are_any(tmp_path, monkeypatch):
    looked = []

    def isdir(path, real=os.path.isdir):
        looked.append(path)
        assert len(looked) < 10, "it looks for ever"
        return real(path)

    monkeypatch.setattr(os.path, "isdir", isdir)
    _files.make_directory(str(tmp_path / "a/b"))
    assert looked == [str(tmp_path / "a/b"), str(tmp_path / "a"), str(tmp_path)]


@pytest.mark.parametrize(
    ("call", "flags"),
    [
        (_files.sync_directory, [os.O_RDONLY | os.O_DIRECTORY]),
        (_files.create, [os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW]),
        (_files.open_ordinary, [os.O_PATH, os.O_RDONLY | os.O_NONBLOCK]),
        (_files.digest, [os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK]),
    ],
)
def test_a_file_is_opened_so_that_nothing_else_can_be_meant_or_hang(tmp_path, monkeypatch, call, flags):
    """No link is followed, no pipe waited for, and no program that is started gets it."""
    opened, before = [], len(os.listdir("/proc/self/fd"))
    (tmp_path / "file").write_text("x")
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda path, flags, *mode, real=os.open: opened.append(flags) or real(path, flags, *mode))
        found = call(str(tmp_path / "file"))
    assert opened == [one | os.O_CLOEXEC for one in flags]
    if call in (_files.create, _files.open_ordinary):
        assert os.path.samestat(os.fstat(found), os.stat(tmp_path / "file"))
        os.close(found)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("pipe", "link", ""):
        with pytest.raises(ValueError, match="it is not a regular file"):
            _files.open_ordinary(str(tmp_path / name))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_record_that_may_not_be_read_names_who_may(monkeypatch):
    def refused(*_arguments, **_named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(LiveUpdateError, match=r"^record /r/web.json: Permission denied; only root may read it.* without User= and Dyn"):
        _files.read_json("/r/web.json")


def test_a_removal_is_durable(tmp_path, calls):
    (tmp_path / "web.state").touch()
    assert _files.remove(str(tmp_path / "web.state")) is True
    assert calls == [("unlink", "web.state"), ("fsync", tmp_path.name)]
    assert _files.remove(str(tmp_path / "web.state")) is False


def test_many_files_are_removed_with_one_write(tmp_path, calls):
    paths = [str(tmp_path / f"{name}.hold") for name in ("app", "absent", "web")]
    for path in paths[::2]:
        open(path, "x", encoding="utf-8").close()
    _files.remove_all(paths)
    assert calls == [("unlink", "app.hold"), ("unlink", "web.hold"), ("fsync", tmp_path.name)] and not os.listdir(tmp_path)
    _files.remove_all(paths)
    _files.remove_all([])
    assert len(calls) == 3


def test_what_was_there_stays_whole_when_the_disk_is_full(tmp_path, monkeypatch):
    path = str(tmp_path / "web.json")
    _files.write_json(path, {"state": "saved"})

    def full(_fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _files.write_json(path, {"state": "restored"})
    assert _files.read_json(path) == {"state": "saved"}
    assert os.listdir(tmp_path) == ["web.json"]


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "record.json" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"record\.json"):
        _files.write_json(str(tmp_path / "record.json"), {})
    assert [found.name for found in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        _files.write_json(str(tmp_path / "run/guests/web.json"), {})
        _files.write_text(str(tmp_path / "unit"), "", 0o644)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(os.stat(tmp_path / path).st_mode) for path in ("run", "run/guests", "run/guests/web.json", "unit")}
    assert modes == {"run": 0o700, "run/guests": 0o700, "run/guests/web.json": 0o600, "unit": 0o644}


def test_no_link_is_followed_to_write(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("web.json", f"web.json.{os.getpid()}.part", "web.state"):
        (tmp_path / name).symlink_to(victim)
    _files.write_json(str(tmp_path / "web.json"), {"state": "saved"})
    os.close(_files.create(str(tmp_path / "web.state")))
    assert victim.read_text() == "mine"
    assert not (tmp_path / "web.json").is_symlink() and not (tmp_path / "web.state").is_symlink()


def test_a_digest_tells_files_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"state")
    (tmp_path / "b").write_bytes(b"stats")
    (tmp_path / "c").write_bytes(b"state\0")
    digests = [_files.digest(str(tmp_path / name)) for name in "abc"]
    assert [digest["size"] for digest in digests] == [5, 5, 6]
    assert len({digest["crc32"] for digest in digests}) == 3


def test_any_path_can_be_written(tmp_path):
    """One that is no UTF-8 is in memory with surrogates (os.fsdecode)."""
    name = os.fsdecode(b"B\xfcro")
    _files.write_text(str(tmp_path / "unit"), f"ExecStart={name}\n", 0o644)
    assert (tmp_path / "unit").read_bytes() == b"ExecStart=B\xfcro\n"
    _files.write_json(str(tmp_path / "record"), {"name": name})
    assert _files.read_json(str(tmp_path / "record")) == {"name": name}
