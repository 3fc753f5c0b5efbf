# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import threading
import zlib
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _processes
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _guests, _save
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _changes, _disk_files, _monitor, _reopened
from made_up_clock import Clock

SMALL = """55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me ac
7f0000000000-7f4000000000 r--p 00000000 fe:01 99                         /usr/lib/large-but-read-only.so
KernelPageSize:        4 kB
"""
RAM = """7f5a00000000-7f5a08000000 {mode} 00000000 00:01 1037                       {backing}
Size:             131072 kB
KernelPageSize:     {page:4d} kB
MMUPageSize:        {page:4d} kB
VmFlags: rd wr sh mr mw me ms
"""


@pytest.mark.parametrize(
    ("backing", "page"),
    [
        ("", 4),
        ("/memfd:memory-backend-memfd (deleted)", 4),
        ("/memfd:memory-backend-memfd (deleted)", 2048),
        ("/dev/hugepages/x (deleted)", 2048),
    ],
)
def test_the_largest_writable_mapping_is_the_ram(backing, page):
    ram = RAM.format(mode="rw-s", backing=backing, page=page)
    assert _guests.largest_mapping((SMALL + ram).splitlines(keepends=True)) == (backing, page)
    assert _guests.largest_mapping((ram + SMALL).splitlines(keepends=True)) == (backing, page)


def test_a_process_without_memory():
    assert _guests.largest_mapping([]) == ("", 0)


class Machine(_monitor.Monitor):
    """A QEMU that answers from a script: of each command the answers in their order, the last one for ever; an error is raised."""

    def __init__(self, **script):
        self._path, self.script, self.asked, self.arguments = "/run/qmp", script, [], []
        self._file = self._socket = SimpleNamespace(close=lambda: None)

    def execute(self, command, **arguments):
        self.asked.append(command)
        self.arguments.append(arguments)
        assert len(self.asked) < 50_000, "it asks for ever"
        answers = self.script.get(command.replace("-", "_"), [{}])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


REFUSED = LiveUpdateError('cont: Failed to get "write" lock', refused="cont")
PAUSED, RUNNING = {"status": "paused"}, {"status": "running"}


@pytest.mark.parametrize(("limit", "goes_on"), [(10.0, True), (-1.0, False)])
def test_a_disk_that_is_still_locked_is_waited_for_and_then_the_guest_has_not_run(monkeypatch, capsys, limit, goes_on):
    monkeypatch.setattr(_monitor, "GO_ON_LIMIT_S", limit)
    machine = Machine(cont=[REFUSED, REFUSED, {}], query_status=[PAUSED])
    assert _monitor.go_on(machine) is goes_on
    assert ("write" in capsys.readouterr().err) is not goes_on


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (LiveUpdateError("cont: no answer within 60 s"), PAUSED),
        (REFUSED, RUNNING),
        (REFUSED, LiveUpdateError("QEMU closed the connection")),
    ],
)
def test_a_guest_that_may_have_run_is_not_said_to_have_not(answer, status):
    with pytest.raises(LiveUpdateError):
        _monitor.go_on(Machine(cont=[answer], query_status=[status]))


ON = [{"capability": "x-ignore-shared", "state": True}]


def resumed(monkeypatch, machine, running=True, alive=True, marks="/none"):
    """The undo of a save of ours: QEMU still leaves the RAM out of its saves."""
    machine.script.setdefault("query_migrate_capabilities", [ON])
    monkeypatch.setattr(_files, "GUESTS_RUN", str(marks))
    machine.clock = Clock(monkeypatch, _save)
    monkeypatch.setattr(_monitor, "time", _save.time)
    monkeypatch.setattr(_monitor, "Monitor", lambda _path: machine)
    process = {"pid": os.getpid(), "started": _processes.start_time(os.getpid()) if alive else 1}
    _save.resume({"name": "web", "monitor": "/run/qmp", **process}, running)
    return machine.asked


def test_a_save_that_was_cut_off_is_ended_before_the_guest_runs_on(monkeypatch):
    states = [PAUSED] * 5 + [RUNNING]
    machine = Machine(query_status=states, query_migrate=[{"status": "active"}, {"status": "cancelling"}, {"status": "cancelled"}])
    asked = resumed(monkeypatch, machine)
    assert "migrate_cancel" in asked
    assert asked.index("migrate_cancel") < asked.index("migrate-set-capabilities") < asked.index("cont")


def test_a_guest_that_runs_keeps_the_migration_that_somebody_else_began(monkeypatch):
    assert "migrate_cancel" not in resumed(monkeypatch, Machine(query_status=[RUNNING], query_migrate=[{"status": "active"}]))


def test_the_guest_runs_on_although_a_setting_cannot_be_taken_back(monkeypatch):
    monkeypatch.setattr(_save, "UNDO_LIMIT_S", -1)
    states = [{"status": "postmigrate"}] * 3 + [RUNNING]
    machine = Machine(query_status=states, migrate_set_capabilities=[LiveUpdateError("in progress")])
    with pytest.raises(LiveUpdateError, match=r"x-ignore-shared is still on, .* 'kvm-liveupdate resume web' .* in progress"):
        resumed(monkeypatch, machine)
    assert machine.asked[-2:] == ["cont", "query-status"]


def test_a_guest_that_does_not_go_on_at_once_is_told_again_and_its_monitor_is_opened_again(monkeypatch):
    states = [LiveUpdateError("no answer"), PAUSED, PAUSED, PAUSED, PAUSED, PAUSED, PAUSED, PAUSED, RUNNING]
    machine = Machine(query_status=states, migrate_set_capabilities=[LiveUpdateError("in progress"), {}], cont=[REFUSED, {}])
    assert resumed(monkeypatch, machine).count("cont") == 2


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"query_status": [PAUSED], "cont": [REFUSED]}, 'the guest is still paused after 300 s: cont: Failed to get "write" lock'),
        ({"query_status": [PAUSED]}, "the guest is still paused after 300 s: no command failed"),
        ({"query_status": [{"status": "finish-migrate"}]}, "the guest is still finish-migrate after 300 s: .*did not end its migration"),
        ({"query_status": [LiveUpdateError("no answer")]}, "the guest is still in an unknown state after 300 s: no answer"),
    ],
)
def test_a_guest_that_never_goes_on_is_given_up_at_the_limit(monkeypatch, script, says):
    machine = Machine(**script)
    with pytest.raises(LiveUpdateError, match=says) as told:
        resumed(monkeypatch, machine)
    assert 300 < machine.clock.now < 310 and set(machine.clock.slept) <= {0.5, 0.05} and not told.value.details


OFF = [{"capability": "x-ignore-shared", "state": False}]


def settings(machine):
    return [
        told["capabilities"]
        for command, told in zip(machine.asked, machine.arguments, strict=True)
        if command == "migrate-set-capabilities"
    ]


def test_the_setting_is_taken_back_once_and_the_guest_told_to_go_on_until_it_does(monkeypatch):
    machine = Machine(query_status=[PAUSED] * 11 + [RUNNING], cont=[REFUSED, REFUSED, {}])
    asked = resumed(monkeypatch, machine)
    assert settings(machine) == [OFF] and asked.count("cont") == 3 and machine.clock.slept == [0.5] * 2


@pytest.mark.parametrize("state", ["paused", "postmigrate"])
def test_a_guest_that_was_paused_before_its_save_stays_paused(monkeypatch, state):
    machine = Machine(query_status=[{"status": state}], migrate_set_capabilities=[LiveUpdateError("in progress"), {}])
    assert "cont" not in resumed(monkeypatch, machine, running=False)
    assert settings(machine) == [OFF, OFF] and machine.clock.slept == [0.5]


OVER = [{"status": "completed"}]
GONE = "another program has migrated or saved it, so it may run on another host"


def test_a_guest_that_another_program_has_migrated_is_not_resumed(monkeypatch):
    """It runs on the other host, with the same disks."""
    machine = Machine(query_status=[{"status": "postmigrate"}], query_migrate=OVER, query_migrate_capabilities=[OFF])
    with pytest.raises(LiveUpdateError, match=GONE) as told:
        resumed(monkeypatch, machine)
    assert told.value.details == {"elsewhere": True}
    assert not {"cont", "migrate_cancel"} & set(machine.asked) and not machine.clock.slept


def test_a_migration_of_another_program_goes_on_and_its_end_is_waited_for(monkeypatch):
    states = [PAUSED] * 2 + [{"status": "finish-migrate"}] * 3 + [{"status": "postmigrate"}]
    machine = Machine(query_status=states, query_migrate=[{"status": "active"}], query_migrate_capabilities=[OFF], cont=[REFUSED])
    with pytest.raises(LiveUpdateError, match=GONE):
        resumed(monkeypatch, machine)
    assert machine.asked.count("cont") == 1 and "migrate_cancel" not in machine.asked  # our "stop" may have come first


def test_a_guest_that_its_owner_paused_and_migrated_is_let_alone(monkeypatch):
    machine = Machine(query_status=[{"status": "postmigrate"}], query_migrate=OVER, query_migrate_capabilities=[OFF])
    assert not {"cont", "migrate_cancel"} & set(resumed(monkeypatch, machine, running=False))


@pytest.mark.parametrize(("ran", "elsewhere"), [(0, False), (1, True)])
def test_the_mark_of_a_save_counts_until_the_guest_runs(monkeypatch, tmp_path, ran, elsewhere):
    """An undo that gave up has switched x-ignore-shared off already."""
    process = {"pid": os.getpid(), "started": _processes.start_time(os.getpid())}
    monkeypatch.setattr(_processes, "guest_time", lambda _pid: 70)
    saving = Machine(query_status=[RUNNING, RUNNING, PAUSED], query_migrate=OVER)
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    _save.pause_and_write({"name": "web", **process}, saving, str(tmp_path / "state"))
    monkeypatch.setattr(_processes, "guest_time", lambda _pid: 70 + ran)
    machine = Machine(query_status=[{"status": "postmigrate"}] * 3 + [RUNNING], query_migrate=OVER, query_migrate_capabilities=[OFF])
    with contextlib.ExitStack() as told:
        if elsewhere:
            machine.script["query_status"] = [{"status": "postmigrate"}]
            told.enter_context(pytest.raises(LiveUpdateError, match=GONE))
        resumed(monkeypatch, machine, marks=tmp_path)
    assert ("cont" in machine.asked) is (not elsewhere) and os.path.exists(tmp_path / "web.written") is elsewhere


@pytest.fixture(name="marked")
def a_guest_without_kvm_after_a_save(monkeypatch, tmp_path):
    """QEMU emulates its processors, so nothing shows how long they ran."""
    monkeypatch.setattr(_processes, "guest_time", lambda _pid: 0)
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    record = {"name": "web", "pid": os.getpid(), "started": _processes.start_time(os.getpid())}
    _save.pause_and_write(record, Machine(query_status=[PAUSED], query_migrate=OVER), str(tmp_path / "state"))
    assert os.path.exists(tmp_path / "web.written")
    return record


@pytest.mark.parametrize(("state", "running"), [("paused", False), ("postmigrate", False), ("running", False), ("running", True)])
def test_no_mark_of_a_save_is_left_when_it_is_undone(monkeypatch, tmp_path, marked, state, running):
    """Else the guest would be resumed after another program has migrated it."""
    resumed(monkeypatch, Machine(query_status=[{"status": state}], query_migrate=OVER), running=running, marks=tmp_path)
    assert not os.path.exists(tmp_path / "web.written")
    machine = Machine(query_status=[{"status": "postmigrate"}], query_migrate=OVER, query_migrate_capabilities=[OFF])
    with pytest.raises(LiveUpdateError, match=GONE):
        resumed(monkeypatch, machine, marks=tmp_path)
    assert "cont" not in machine.asked


def test_a_guest_that_was_resumed_by_hand_and_migrated_during_a_save_is_not_resumed(monkeypatch, tmp_path, marked):
    """The undo of an earlier save gave up and left its mark."""
    migrated = Machine(query_status=[RUNNING, {"status": "postmigrate"}], query_migrate=OVER)
    with pytest.raises(LiveUpdateError, match="postmigrate"):
        _save.pause_and_write(marked, migrated, str(tmp_path / "state"))
    machine = Machine(query_status=[{"status": "postmigrate"}], query_migrate=OVER, query_migrate_capabilities=[OFF])
    with pytest.raises(LiveUpdateError, match=GONE):
        resumed(monkeypatch, machine, marks=tmp_path)
    assert not {"stop", "cont"} & {*migrated.asked, *machine.asked}


@pytest.mark.parametrize("state", ["running", "shutdown", "internal-error"])
def test_a_guest_in_another_state_is_not_told_to_go_on(monkeypatch, state):
    """It runs, or nothing that an undo can do makes it run."""
    assert "cont" not in resumed(monkeypatch, Machine(query_status=[{"status": state}]))


def test_whether_qemu_lives_is_asked_until_the_guest_goes_on(monkeypatch):
    machine = Machine(query_status=[PAUSED], cont=[REFUSED])
    lives = [True] * 5 + [False] * 9
    monkeypatch.setattr(_processes, "lives", lambda record: lives.pop(0))
    with pytest.raises(LiveUpdateError, match="has ended") as told:
        resumed(monkeypatch, machine)
    assert machine.clock.slept == [0.5] * 5 and told.value.details == {"ended": True}


def test_a_guest_whose_qemu_has_ended_is_not_waited_for(monkeypatch):
    with pytest.raises(LiveUpdateError, match="has ended") as caught:
        resumed(monkeypatch, Machine(query_status=[LiveUpdateError("is QEMU running?")]), alive=False)
    assert caught.value.details == {"ended": True}


def test_a_migration_that_does_not_end_is_told():
    with pytest.raises(LiveUpdateError, match="did not end its migration within -1 s"):
        Machine(query_migrate=[{"status": "active"}]).end_migration(-1)


@pytest.mark.parametrize(
    ("states", "says"),
    [
        (["postmigrate"], ""),
        (["finish-migrate", "finish-migrate", "postmigrate"], ""),
        (["running"], "guest web was saved and is running now"),
        (["paused"], "guest web was saved and is paused now"),  # it went on meanwhile: a save leaves it in postmigrate
    ],
)
def test_a_guest_that_went_on_after_its_save_is_seen(monkeypatch, states, says):
    seen = list(states)

    class Monitor:
        def __init__(self, path):
            assert path == "web.qmp"

        def __enter__(self):
            return self

        def __exit__(self, *_exception):
            pass

        def status(self):
            return seen.pop(0) if len(seen) > 1 else seen[0]

    monkeypatch.setattr(_monitor, "Monitor", Monitor)
    problems = _save.still_saved([{"name": "web", "monitor": "web.qmp"}])
    assert len(problems) == bool(says) and all(problem.startswith(says) for problem in problems)


def test_a_save_that_does_not_settle_is_told_at_its_limit(monkeypatch):
    clock = Clock(monkeypatch, _save)
    monkeypatch.setattr(_monitor, "Monitor", lambda _path: Machine(query_status=[{"status": "finish-migrate"}]))
    (problem,) = _save.still_saved([{"name": "web", "monitor": "m"}])
    assert problem.startswith("guest web was saved and is finish-migrate now")
    assert _save.SETTLE_LIMIT_S <= sum(clock.slept) < _save.SETTLE_LIMIT_S + 0.02 and set(clock.slept) == {0.005}
    assert _save.still_saved([]) == []


def test_a_qemu_that_does_not_answer_is_a_problem(tmp_path):
    (problem,) = _save.still_saved([{"name": "web", "monitor": str(tmp_path / "none")}])
    assert problem.startswith("guest web: it is unknown whether it is still paused")


def test_what_the_command_line_says_is_told_once():
    """The wrapper noted why it gave the guest no RAM file; today's reader says that again, and may say more."""
    argv = ["qemu", "-mem-path", "/dev/hugepages", "-snapshot"]
    record = {"reason": {"code": "ram-hugetlb", "message": "old", "remedy": "old"}, "argv": argv}
    assert [reason["code"] for reason in _guests.inspect(record)] == ["ram-hugetlb", "transient-disk"]
    assert [reason["code"] for reason in _guests.inspect({**record, "argv": ["qemu"]})] == ["ram-hugetlb"]


ANSWERS = {
    "query_status": [RUNNING],
    "query_block": [[]],
    "query_block_jobs": [[]],
    "qom_list": [[]],
    "human_monitor_command": [""],
    "query_cpus_fast": [[{}]],
}


@pytest.mark.parametrize("state", ["running", "paused", "postmigrate", "io-error"])
def test_a_guest_that_qemu_cannot_save_again_is_told_what_helps(monkeypatch, state):
    """A pause alone does not leave that state."""
    machine = Machine(**copy.deepcopy({**ANSWERS, "query_status": [{"status": state}]}))
    monkeypatch.setattr(_monitor, "Monitor", lambda _path, answer_s: machine)
    record = {"name": "web", "pid": os.getpid(), "monitor": "/run/qmp", "ram": [], "argv": ["qemu", "-m", "1", "-nodefaults"]}
    found = _guests.inspect(record)
    assert [reason["code"] for reason in found] == ["run-state"] * (state in ("postmigrate", "io-error"))
    if state == "postmigrate":
        assert found[0]["remedy"].startswith("if it runs on no other host, resume it in its QEMU monitor (cont)")
    assert _guests.describe(record)["paused"] is (state == "paused")


@pytest.fixture(name="inspected")
def examination(monkeypatch):
    """The codes of the reasons against a guest, by what its QEMU answers."""
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 4096)
    record = {"name": "web", "pid": os.getpid(), "monitor": "/run/qmp", "ram": [{"fd": fd, "size": 4096}], "argv": ["qemu", "-nodefaults"]}

    def inspect(noted=None, **other):
        machine = Machine(**copy.deepcopy({**ANSWERS, **other}))

        def monitor(_path, answer_s):
            assert answer_s >= 600  # what is late would be a reason against a guest on a host that is only slow
            return machine

        monkeypatch.setattr(_monitor, "Monitor", monitor)
        return [reason["code"] for reason in _guests.inspect({**record, "reason": noted})]

    yield inspect
    os.close(fd)


def test_a_guest_that_is_as_it_was_started_has_no_reasons(inspected):
    assert inspected() == []


def test_what_qemu_has_now_counts_and_not_what_it_was_started_with(inspected, monkeypatch):
    assert inspected(query_block=[[{"inserted": {"file": "/srv/snap.qcow2", "ro": False}}]]) == ["disk-changed"]
    assert inspected(qom_list=[[{"name": "k", "type": "child<usb-kbd>"}], []]) == ["device-changed"]
    assert inspected(query_block_jobs=[[{"type": "mirror"}]]) == ["block-job"]
    on = [[{"capability": "xbzrle", "state": True}, {"capability": "x-ignore-shared", "state": True}]]
    assert inspected(query_migrate_capabilities=on) == ["ignore-shared"]
    assert inspected(query_migrate_capabilities=[[{"capability": "x-ignore-shared", "state": False}]]) == []
    assert inspected(query_migrate=[{"blocked-reasons": ["invtsc"]}]) == ["qemu-blocker"]
    assert inspected(query_status=[{"status": "io-error"}]) == ["run-state"]
    assert inspected(query_migrate=[{"status": "active"}]) == ["run-state"]
    assert inspected(query_migrate=[{"status": "completed"}]) == []
    # Also of a guest that cannot stay: were it shut down, it would start on the image below its snapshot.
    noted = {"code": "ram-hugetlb", "message": "m", "remedy": "r"}
    assert inspected(noted, query_block=[[{"inserted": {"file": "/srv/snap.qcow2", "ro": False}}]]) == ["ram-hugetlb", "disk-changed"]
    assert inspected(qom_list=[LiveUpdateError("no answer")]) == ["monitor"]
    monkeypatch.setattr(_reopened, "replaced", lambda _pid, _argv: [{"code": "rom-replaced"}])
    assert inspected() == ["rom-replaced"]


@pytest.mark.parametrize(("size", "large"), [((1 << 40) - 1, False), (1 << 40, True), (3 << 40, True)])
def test_ram_that_the_kernel_cannot_describe_is_a_reason(inspected, monkeypatch, size, large):
    monkeypatch.setattr(_guests, "_is_memory_file", lambda *_file: True)
    monkeypatch.setattr(_monitor, "Monitor", lambda *_words, **_limit: Machine(**copy.deepcopy(ANSWERS)))
    record = {"pid": os.getpid(), "monitor": "m", "ram": [{"fd": 3, "size": size}], "argv": ["qemu", "-nodefaults"], "name": "web"}
    found = _guests.inspect(record)
    assert [why["code"] for why in found] == (["ram-size"] if large else [])
    assert not large or f"one memory file of {size >> 30} GiB, and the kernel preserves less than 1024 GiB" in found[0]["message"]


def test_only_a_file_of_its_size_without_a_name_is_ram(tmp_path):
    ram = os.memfd_create("ram")
    os.ftruncate(ram, 4096)
    (tmp_path / "named").write_bytes(bytes(4096))
    named, folder = os.open(tmp_path / "named", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    found = [_guests._is_memory_file(os.getpid(), fd, size) for fd, size in ((ram, 4096), (ram, 8192), (named, 4096), (999_999, 4096))]
    assert found == [True, False, False, False]
    read, write = os.pipe()
    os.unlink(tmp_path / "named")
    gone = tmp_path / "gone"
    gone.mkdir()
    below = os.open(gone, os.O_RDONLY)
    gone.rmdir()
    assert _guests._is_memory_file(os.getpid(), named, 4096)
    assert not _guests._is_memory_file(os.getpid(), below, os.fstat(below).st_size)  # a folder without a name
    for fd in (ram, named, folder, read, write, below):
        os.close(fd)


def test_what_a_change_says_is_told_once(inspected, monkeypatch):
    changed = [{"code": "device-changed", "message": "m"}, {"code": "block-job", "message": "again"}]
    monkeypatch.setattr(_changes, "differences", lambda argv, now: changed)
    assert inspected(query_block_jobs=[[{"type": "mirror"}]]) == ["block-job", "device-changed"]


@pytest.mark.parametrize(
    ("mapping", "code", "says"),
    [
        (
            RAM.format(mode="rw-s", backing="/dev/hugepages/x (deleted)", page=2048),
            "ram-hugetlb",
            "huge pages of 2048 KiB (/dev/hugepages/x",
        ),
        (RAM.format(mode="rw-p", backing="", page=2048), "ram-hugetlb", "huge pages of 2048 KiB"),
        (RAM.format(mode="rw-p", backing="", page=5), "ram-hugetlb", "huge pages of 5 KiB"),
        (RAM.format(mode="rw-p", backing="", page=4), "ram-anonymous", "anonymous memory, which has no file descriptor"),
        (RAM.format(mode="rw-s", backing="/memfd:ram (deleted)", page=4), "not-managed", "its RAM is /memfd:ram (deleted), but neither"),
        (None, "ram-anonymous", "anonymous memory"),
    ],
)
def test_why_a_qemu_that_somebody_else_started_cannot_be_preserved(monkeypatch, mapping, code, says):
    def opened(path, **_how):
        assert path == "/proc/7/smaps"
        if mapping is None:
            raise PermissionError(1, "Operation not permitted")
        return io.StringIO(SMALL + mapping)

    monkeypatch.setattr(_guests, "open", opened, raising=False)
    found = _guests.foreign_reason(7)
    assert found["code"] == code and says in found["message"] and "kvm-liveupdate run NAME --" in found["remedy"]


def test_of_mappings_of_one_size_the_first_counts():
    """And a mapping that only can be read never does, whatever its page size is."""
    first = RAM.format(mode="rw-s", backing="/first", page=4)
    second = RAM.format(mode="rw-s", backing="/second", page=2048)
    assert _guests.largest_mapping((first + second).splitlines(keepends=True)) == ("/first", 4)
    assert _guests.largest_mapping((RAM.format(mode="r--s", backing="/x", page=2048)).splitlines(keepends=True)) == ("", 0)


def test_the_facts_the_memory_and_the_state_of_a_guest(monkeypatch):
    assert _guests.describe({"argv": ["qemu", "-m", "2G"]})["memory_mib"] == 2048
    ram = os.memfd_create("ram")
    (taken,) = _guests.memory({"pid": os.getpid(), "ram": [{"fd": ram, "size": 0}]})
    assert os.path.sameopenfile(ram, taken) and taken != ram
    for fd in (ram, taken):
        os.close(fd)
    monkeypatch.setattr(_monitor, "Monitor", lambda _path: Machine(query_status=[PAUSED]))
    assert _guests.status({"monitor": "m"}) == "paused"


def test_a_record_whose_process_id_is_somebody_elses_by_now_is_no_guest(monkeypatch, tmp_path):
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "never"))
    assert _guests.known() == []
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    me = {"pid": os.getpid(), "started": _processes.start_time(os.getpid())}
    for name, record in {"web": me, "old": {**me, "started": 1}, "gone": {"pid": 1 << 30, "started": 1}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, **record}))
    (tmp_path / "web.qmp").write_text("no record")
    assert [record["name"] for record in _guests.known()] == ["web"]
    monkeypatch.setattr(_files, "read_json", lambda path: {})  # its guest has just ended
    assert _guests.known() == []


def test_a_record_that_cannot_be_read_is_a_guest_that_cannot_be_preserved(monkeypatch, tmp_path):
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    (tmp_path / "web.json").write_text("{")
    (record,) = _guests.known()
    (reason,) = _guests.inspect(record)
    assert record["name"] == "web" and reason["code"] == "record-damaged" and f"remove {tmp_path}/web.json" in reason["remedy"]
    assert _guests.warn({**record, "argv": ["qemu", *PLAIN]}) == []
    argv = ["qemu", *PLAIN, "-serial", "tcp:127.0.0.1:4555", "-serial", "tcp:192.0.2.9:4556"]
    assert [warning["code"] for warning in _guests.warn({**record, "argv": argv})] == ["peer-remote"]


PLAIN = ["-machine", "pc-q35-10.0", "-nodefaults"]


def test_a_state_is_durable_and_roots_alone_before_the_save_ends(tmp_path, monkeypatch):
    """QEMU writes into the file that it finds there."""
    path, synced = tmp_path / "web.state", []
    path.write_text("of an update before")
    path.chmod(0o644)

    class Saving(Machine):
        def execute(self, command, **arguments):
            if command == "stop":
                assert path.read_bytes() == b"" and path.stat().st_mode & 0o777 == 0o600
            if command == "migrate":
                path.write_bytes(b"state")
            return super().execute(command, **arguments)

    machine = Saving(query_migrate=OVER, query_status=[RUNNING, PAUSED])
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_monitor, "Monitor", lambda _path: machine)
    monkeypatch.setattr(_files, "write_json", lambda _path, _mark: None)
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.pread(fd, 9, 0)))
    record = {"name": "web", "pid": 1 << 30, "started": 1, "monitor": "m", "argv": ["qemu"], "needs": NEEDS}
    saved = _save.save(record, str(path), True)
    assert synced == [b"state"] and path.stat().st_mode & 0o777 == 0o600
    assert saved["digest"] == {"size": 5, "crc32": zlib.crc32(b"state")}


NEEDS = {"interfaces": ["tap0"], "paths": ["/srv/web.qcow2"], "ports": [4555], "devices": {"/dev/sdb": ["wwid naa.5000"]}}


def test_a_save_asks_for_no_path_of_its_guest(tmp_path, monkeypatch):
    """One on a server that does not answer would keep all guests paused."""
    asked = []

    def blocks(access):
        def accessed(path, *words, **more):
            if str(path).startswith("/srv/"):
                asked.append(path)
                threading.Event().wait(2)
            return access(path, *words, **more)

        return accessed

    machine = Machine(query_migrate=OVER, query_status=[RUNNING, PAUSED])
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_monitor, "Monitor", lambda _path: machine)
    for name in ("open", "stat", "lstat", "readlink"):
        monkeypatch.setattr(os, name, blocks(getattr(os, name)))
    with open("/dev/null", "rb") as disk:  # then a link elsewhere may lead to a disk, too
        monkeypatch.setattr(_processes, "open_paths", lambda pid: {disk.fileno(): ("/dev/sg0", os.O_RDWR)})
        argv = ["qemu", "-drive", "file=/srv/link", "-readconfig", "/srv/web.cfg"]
        record = {"name": "web", "pid": os.getpid(), "started": 1, "monitor": "m", "argv": argv, "needs": NEEDS}
        saved = _save.save(record, str(tmp_path / "web.state"), True)
    assert asked == [] and {key: saved[key] for key in NEEDS} == NEEDS


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_save_records_what_identifies_its_disks_with_their_sizes_after_the_pause(tmp_path, monkeypatch, exchanged):
    """A file that took the place of its disk since the gate ends the save: after the jump the guest would not come back."""
    image, other = tmp_path / "web1.qcow2", tmp_path / "other"
    image.write_bytes(b"disk")
    other.write_bytes(b"disk")
    known = _disk_files.identity(str(image), ("/srv", "xfs", "/dev/a"))

    class Saving(Machine):
        def execute(self, command, **arguments):
            if command == "migrate":
                (tmp_path / "web.state").write_bytes(b"state")
                if exchanged:
                    other.rename(image)
                else:
                    image.write_bytes(b"disk and its bitmaps")
            return super().execute(command, **arguments)

    machine = Saving(query_migrate=OVER, query_status=[RUNNING, PAUSED])
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_monitor, "Monitor", lambda _path: machine)
    record = {
        "name": "web",
        "pid": os.getpid(),
        "started": 1,
        "monitor": "m",
        "argv": ["qemu"],
        "disks": {str(image): known},
        "needs": NEEDS,
    }
    if exchanged:
        with pytest.raises(LiveUpdateError, match=f"guest web cannot be saved: another file took the place of its disk {image}"):
            _save.save(record, str(tmp_path / "web.state"), True)
        return
    saved = _save.save(record, str(tmp_path / "web.state"), True)
    assert saved["disks"] == {str(image): {**known, "size": 20}} and _disk_files.amiss(saved["disks"]) == []
