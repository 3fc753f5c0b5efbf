# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import os
import signal

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _session as _handover_session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _processes, _systemd, _this_boot, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo

RECORD = {"name": "web 1", "unit": "web.service", "pid": 1, "started": 2, "ram": []}


@pytest.mark.parametrize(("version", "unit"), [(262, "web.service"), (261, "web.service"), (260, "kvm-liveupdate-hold@web\\x201.service")])
def test_systemd_decides_who_holds(monkeypatch, version, unit):
    monkeypatch.setattr(_systemd, "version", lambda: version)
    assert _hold.holder(RECORD) == unit


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("web-1", "web\\x2d1"),
        ("a/b", "a-b"),
        (".hidden", "\\x2ehidden"),
        ("a.b:c_d", "a.b:c_d"),
        ("\u00fc", "\\xc3\\xbc"),
        ("\\", "\\x5c"),
    ],
)
def test_names_are_escaped_as_systemd_escape_does(name, escaped):
    assert _units.escape(name) == escaped


def test_a_hold_of_another_process_is_not_in_force(monkeypatch):
    monkeypatch.setattr(_files, "read_json", lambda path: {"pid": 1, "started": 3})
    assert _hold.held(RECORD) == {}


@pytest.mark.parametrize("other", [(0, 0), (1, 0), (0, 1)])
def test_a_memory_file_that_was_exchanged_ends_the_hold(tmp_path, monkeypatch, other):
    """A file system of its own gives every guest's file the same inode."""
    with open(tmp_path / "ram", "wb") as ram:
        seen = os.fstat(ram.fileno())
        mine = {**RECORD, "pid": os.getpid(), "started": _processes.start_time(os.getpid()), "ram": [{"fd": ram.fileno(), "size": 4096}]}
        noted = {**mine, "files": [[seen.st_dev + other[0], seen.st_ino + other[1]]]}
        monkeypatch.setattr(_files, "read_json", lambda path: noted)
        monkeypatch.setattr(_systemd, "version", lambda: 262)
        monkeypatch.setattr(_systemd, "fdstore_each", lambda units: {unit: [_handover_session.FDNAME] for unit in units})
        assert bool(_hold.held(mine)) is (other == (0, 0))


@pytest.mark.parametrize("version", [262, 257])
def test_all_holds_are_looked_at_with_one_question(monkeypatch, version):
    """Of each guest it counts that its own session lasts, whatever lasts beside it."""
    records = [{**RECORD, "name": name, "unit": f"{name}.service"} for name in ("web", "db", "app", "new")]
    notes = {name: {**RECORD, "files": [], "session": f"kvm-{name}"} for name in ("web", "db", "app")}
    asked = []
    monkeypatch.setattr(_processes, "start_time", lambda pid: RECORD["started"])
    monkeypatch.setattr(_files, "read_json", lambda path: notes.get(path.rpartition("/")[2].removesuffix(".held"), {}))
    monkeypatch.setattr(_systemd, "version", lambda: version)
    stores = {"web.service": [_handover_session.FDNAME], "db.service": [], "app.service": ["other"]}
    monkeypatch.setattr(_systemd, "fdstore_each", lambda units: asked.append(units) or stores)
    monkeypatch.setattr(
        _systemd,
        "show_each",
        lambda units, *_names: asked.append(units) or {unit: {"MainPID": str(at), "ControlGroup": "/"} for at, unit in enumerate(units)},
    )
    links = {0: {3: _processes.SESSION_LINK + "kvm-web"}, 1: {}, 2: {3: _processes.SESSION_LINK + "kvm-web"}}
    monkeypatch.setattr(_processes, "fd_links", links.get)
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1", raising=False)
    assert _hold.held_each(records) == {"web": notes["web"]}
    holders = ["web", "db", "app"] if version == 262 else [f"kvm-liveupdate-hold@{name}" for name in ("web", "db", "app")]
    assert asked == [[f"{unit}.service" for unit in holders]]
    notes.clear()
    assert _hold.held_each(records) == {} and len(asked) == 1  # nothing is asked where nothing is noted


@pytest.fixture(name="held")
def guest_that_is_held(tmp_path, monkeypatch):
    """A guest of this very process whose RAM is held; ``held`` is its record."""
    with open(tmp_path / "ram", "wb") as ram:
        record = {**RECORD, "pid": os.getpid(), "started": _processes.start_time(os.getpid()), "ram": [{"fd": ram.fileno(), "size": 0}]}
        for name in ("GUESTS_RUN", "GUESTS_STATE"):
            monkeypatch.setattr(_files, name, str(tmp_path))
        hold = {**record, "hold": "h", "session": "kvm-1", "files": _hold._ram_files(record)}
        _files.write_json(str(tmp_path / "web 1.held"), hold)
        monkeypatch.setattr(_systemd, "version", lambda: 262)
        monkeypatch.setattr(
            _systemd, "fdstore_each", lambda units: {unit: [_handover_session.FDNAME] * (unit == "web.service") for unit in units}
        )
        yield record


def test_a_hold_is_of_a_process_that_runs(held):
    """Its id may be another one's by now, and what was recorded of it is as before."""
    hold = _hold.held(held)
    assert hold and _hold.is_of(hold, held)
    gone = {**held, "started": 1}
    assert not _hold.is_of({**hold, "started": 1}, gone)


def test_a_hold_lasts_as_long_as_its_session(held, monkeypatch):
    monkeypatch.setattr(_systemd, "fdstore_each", lambda units: {unit: [] for unit in units})
    assert _hold.held(held) == {}


@pytest.mark.parametrize(
    ("survives", "open_session", "lasts"), [(b"1", True, True), (b"0", True, False), (None, True, False), (b"1", False, False)]
)
def test_a_resident_lasts_when_it_has_the_session_open_and_survives_the_final_kill(held, monkeypatch, survives, open_session, lasts):
    def getxattr(path, name):
        assert (path, name) == ("/sys/fs/cgroup/system.slice/hold", "user.survive_final_kill_signal")
        if survives is None:
            raise OSError
        return survives

    monkeypatch.setattr(_systemd, "version", lambda: 257)
    shown = {"MainPID": "77", "ControlGroup": "/system.slice/hold"}
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: dict.fromkeys(units, shown))
    monkeypatch.setattr(_processes, "fd_links", lambda pid: {3: "anon_inode:[luo_session] kvm-1"} if pid == 77 and open_session else {})
    monkeypatch.setattr(os, "getxattr", getxattr)
    assert bool(_hold.held(held)) is lasts


class Preserving:
    """A guest's provider and the kernel that preserves its RAM; ``fails`` at a step."""

    def __init__(self, monkeypatch, fails=""):
        self.closed, self.preserved = [], []
        self.session = os.memfd_create("session")
        self.fails = fails
        monkeypatch.setattr(_providers, "of", lambda record: self)
        monkeypatch.setattr(_luo, "create_session", lambda name: os.dup(self.session))
        monkeypatch.setattr(_luo, "preserve_fd", self.preserve)
        monkeypatch.setattr(_this_boot, "random_uuid", lambda: "h2")
        real = os.close
        monkeypatch.setattr(os, "close", lambda fd: (self.closed.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))

    def memory(self, record):
        return [os.dup(record["ram"][0]["fd"])]

    def preserve(self, _session, fd, token):
        if self.fails == "preserve" and token:
            raise LiveUpdateError("no room")
        if self.fails == "disk" and token:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.preserved.append((token, _handover_session.read_note(fd) if not token else None))


@pytest.mark.parametrize(("fails", "says"), [("preserve", "no room"), ("disk", r"\[Errno 28\] No space left on device")])
def test_a_failure_to_preserve_closes_the_session_and_all_else(held, monkeypatch, fails, says):
    """Its last descriptor closed, the kernel gives up what it preserved already."""
    kernel = Preserving(monkeypatch, fails)
    with pytest.raises(LiveUpdateError, match=f"guest web 1: {says}"):
        _hold._preserve({**held, "uuid": "1-2"}, "h2")
    closed = [link.split(" ")[0].rpartition("/")[2] for link in kernel.closed]
    assert [name for name in closed if name == "ram" or "memfd:" in name] == ["memfd:session", "ram", "memfd:kvm-liveupdate-note"]
    assert _hold.held(held)["hold"] == "h"


def test_a_hold_is_on_record_while_it_lasts(held, monkeypatch):
    """Before there is a session: after somebody else's kexec nobody would know of that one."""
    seen = []
    guest = {**held, "uuid": "6f9619ff-8b86-d011-b42d-00cf4fc964ff"}
    Preserving(monkeypatch)
    monkeypatch.setattr(
        _luo, "create_session", lambda name: seen.append((name, _handover_session.recorded_holds())) or os.memfd_create("session")
    )
    os.close(_hold._preserve(guest, "h2"))
    name = "kvm-6f9619ff8b86d011b42d00cf4fc964ff"
    assert seen == [(name, ["web 1"])]
    assert _files.read_json(_files.hold_path("web 1")) == {"session": name, "unit": "web.service", "boot_id": _this_boot.boot_id()}
    monkeypatch.setattr(_systemd, "fdstore", lambda unit: [])
    assert _hold.release(guest) and _handover_session.recorded_holds() == []


def test_the_note_names_the_qemu_whose_memory_it_is(held, monkeypatch):
    kernel = Preserving(monkeypatch)
    os.close(_hold._preserve({**held, "uuid": "1-2"}, "h2"))
    ((token, note), (ram, _none)) = kernel.preserved
    assert (token, ram) == (_handover_session.META_TOKEN, _handover_session.RAM_TOKEN)
    assert note["hold"] == "h2" and note["qemu"] == [held["pid"], held["started"]]


def test_a_hold_that_nobody_has_is_an_error_and_given_up(held, monkeypatch):
    Preserving(monkeypatch)
    released = []
    monkeypatch.setattr(_hold, "release", lambda record: released.append(record["name"]))
    monkeypatch.setattr(_systemd, "give_fd", lambda *_what: None)
    monkeypatch.setattr(_systemd, "fdstore", lambda unit: [])
    monkeypatch.setattr(_systemd, "fdstore_each", lambda units: {unit: [] for unit in units})
    _files.remove(_files.run_path("web 1", "held"))
    with pytest.raises(LiveUpdateError, match=r"guest web 1: web\.service did not keep its session"):
        _hold.hold({**held, "uuid": "1-2"})
    assert released == ["web 1"]


def test_a_guest_that_is_still_being_brought_back_is_not_held(tmp_path, monkeypatch):
    """A new hold would end the process that does that."""
    monkeypatch.setattr(_systemd, "version", lambda: 257)
    monkeypatch.setattr(_systemd, "fdstore_each", lambda units: {unit: [] for unit in units})
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    (tmp_path / "web 1.json").write_text('{"state": "saved"}')
    with pytest.raises(LiveUpdateError, match=r"guest web 1: the last update has not restored it yet.*web\.service"):
        _hold.hold(RECORD)


@pytest.fixture(name="ended")
def guest_that_ended_while_it_was_held(tmp_path, monkeypatch):
    """What is asked of systemd when its hold is given up; its unit may have a new process."""
    asked = []
    for place in ("GUESTS_RUN", "GUESTS_STATE"):
        monkeypatch.setattr(_files, place, str(tmp_path))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    monkeypatch.setattr(_systemd, "version", lambda: 262)
    monkeypatch.setattr(_systemd, "show", lambda unit, name: asked.append(f"{name} of {unit}") or {"MainPID": "9", "ActiveState": "active"})
    monkeypatch.setattr(_commands, "run", lambda *command: asked.append(command[1:]))
    monkeypatch.setattr(_systemd, "fdstore", lambda unit: [_handover_session.FDNAME] if unit == "web.service" else [])
    monkeypatch.setattr(_systemd, "forget_fd", lambda unit, pid, name: asked.append((unit, pid)))
    _files.write_json(_files.hold_path("web"), {"session": "kvm-1", "unit": "web.service", "boot_id": "now"})
    _files.write_json(_files.run_path("web", "held"), {"session": "kvm-1", "pid": 7, "started": 70})
    return asked


@pytest.mark.parametrize("left", ["both", "held", "hold"])
def test_the_session_of_a_guest_that_has_ended_is_given_up_by_its_name(ended, tmp_path, left):
    if left == "held":  # an update removes the other one before it saves
        (tmp_path / "web.hold").unlink()
        _files.write_json(_files.run_path("web", "held"), {"session": "kvm-1", "unit": "web.service"})
    elif left == "hold":
        (tmp_path / "web.held").unlink()
    assert _hold.release_ended("web")
    assert ended == ["MainPID of web.service", ("web.service", 9)] and not list(tmp_path.iterdir())
    assert not _hold.release_ended("web")


def test_the_session_of_a_domain_that_has_ended_is_given_up_with_its_holder(ended):
    unit = _units.hold("web")
    _files.write_json(_files.run_path("web", "held"), {"session": "kvm-1", "unit": unit})
    assert _hold.release_ended("web")
    assert ended == [f"ActiveState of {unit}", ("stop", unit)]


def test_what_an_update_saved_is_not_given_up(ended, tmp_path):
    """The guest comes back from it; and what a boot before held is another's business."""
    _files.write_json(_files.journal_path("web"), {"state": "saved", "boot_id": "now"})
    assert not _hold.release_ended("web")
    (tmp_path / "web.json").unlink()
    (tmp_path / "web.held").unlink()
    _files.write_json(_files.hold_path("web"), {"session": "kvm-1", "unit": "web.service", "boot_id": "before"})
    assert not _hold.release_ended("web") and not ended


class Holding:
    """What systemd and the kernel do for guests that are held; ``lost`` are those whose descriptor PID 1 does not keep."""

    def __init__(self, lost=()):
        self.lost, self.stored, self.released, self.asked, self.at_work = lost, {"old"}, [], [], ""

    def fdstore_each(self, units):
        self.asked.append("fdstore")
        return {unit: [_handover_session.FDNAME] if unit.removesuffix(".service") in self.stored else [] for unit in units}

    def preserve(self, record, _hold_id):
        if record["name"] == "bad":
            raise LiveUpdateError("guest bad: no room")
        self.at_work = record["name"]
        return os.memfd_create("session")

    def give_fd(self, _pid, name, fd):
        assert name == _handover_session.FDNAME and os.fstat(fd)
        self.stored |= {self.at_work} - set(self.lost)

    def release(self, record):
        self.released.append(record["name"])
        self.stored.discard(record["name"])

    def held_each(self, records):
        self.asked.append("held")
        return {record["name"]: {"hold": "h"} for record in records if record["name"] in self.stored}


@pytest.fixture(name="holding")
def systemd_and_the_kernel(tmp_path, monkeypatch):
    host = Holding(lost=["gone"])
    for name in ("GUESTS_RUN", "GUESTS_STATE"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_systemd, "version", lambda: 262)
    for name in ("fdstore_each", "give_fd"):
        monkeypatch.setattr(_systemd, name, getattr(host, name))
    for name in ("release", "held_each"):
        monkeypatch.setattr(_hold, name, getattr(host, name))
    monkeypatch.setattr(_hold, "_preserve", host.preserve)
    return host


def test_guests_are_held_and_it_is_proven_for_all_at_once(holding):
    """What is left of an older hold goes first; the guest whose hold fails is as before, and the others are held."""
    records = [{**RECORD, "name": name, "unit": f"{name}.service"} for name in ("web", "old", "bad", "gone", "db")]
    found, problems = _hold.hold_each(records)
    assert list(found) == ["web", "old", "db"] and holding.asked == ["fdstore", "held"]
    assert {name: err.message for name, err in problems.items()} == {
        "bad": "guest bad: no room",
        "gone": "guest gone: gone.service did not keep its session; 'journalctl -u gone.service' may show why",
    }
    assert holding.released == ["old", "gone"]


def test_a_hold_that_is_not_kept_and_cannot_be_released_is_told_by_its_last_failure(holding, monkeypatch):
    def fail(_record):
        raise LiveUpdateError("guest gone: systemd does not answer")

    monkeypatch.setattr(_hold, "release", fail)
    records = [{**RECORD, "name": name, "unit": f"{name}.service"} for name in ("gone", "db")]
    found, problems = _hold.hold_each(records)
    assert list(found) == ["db"]
    assert {name: err.message for name, err in problems.items()} == {"gone": "guest gone: systemd does not answer"}


def test_a_disk_that_accepts_nothing_fails_that_guest_alone(holding, monkeypatch):
    """Also when its hold cannot be released, or an older one."""

    def fail(record):
        raise OSError(errno.ENOSPC, "No space left on device", f"/run/{record['name']}")

    monkeypatch.setattr(_hold, "release", fail)
    records = [{**RECORD, "name": name, "unit": f"{name}.service"} for name in ("web", "old", "gone", "db")]
    found, problems = _hold.hold_each(records)
    assert list(found) == ["web", "db"]
    told = "guest {0}: [Errno 28] No space left on device: '/run/{0}'"
    assert {name: (type(err), str(err)) for name, err in problems.items()} == {
        name: (LiveUpdateError, told.format(name)) for name in ("old", "gone")
    }


def test_a_session_that_was_given_to_pid_1_is_not_kept_open_here(holding):
    """As long as it is open, the kernel preserves the memory, also after the release."""
    before = set(os.listdir("/proc/self/fd"))
    _hold.hold({**RECORD, "name": "web", "unit": "web.service"})
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_hold_that_fails_is_an_error(holding):
    with pytest.raises(LiveUpdateError, match=r"guest gone: gone\.service did not keep its session"):
        _hold.hold({**RECORD, "name": "gone", "unit": "gone.service"})
    assert _hold.hold({**RECORD, "name": "web", "unit": "web.service"}) == {"hold": "h"}


def test_the_note_comes_back():
    fd = _hold._note({"hold": "h", "sizes": [1]})
    try:
        assert _handover_session.read_note(fd) == {"hold": "h", "sizes": [1]}
    finally:
        os.close(fd)


def test_commands_answer_in_one_language(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    assert _commands.run("sh", "-c", "echo $LC_ALL $LANGUAGE").split() == ["C.UTF-8", "C"]


def test_a_holder_without_its_guest_tells_systemd_why(monkeypatch):
    told = []
    monkeypatch.setattr(_providers, "known", dict)
    monkeypatch.setattr(_systemd, "notify", told.append)
    monkeypatch.setattr("signal.pthread_sigmask", lambda how, mask: set())
    with pytest.raises(LiveUpdateError, match="does not run on this host"):
        _hold.serve("web")
    assert told and told[0].startswith("STATUS=") and "does not run on this host" in told[0]


@pytest.fixture(name="serving")
def process_of_a_hold_unit(monkeypatch):
    """All that the process of a hold unit does, in order."""
    did = []
    session = os.memfd_create("session")
    monkeypatch.setattr(_providers, "find", lambda name: {"name": name})
    monkeypatch.setattr(_this_boot, "random_uuid", lambda: "h1")
    monkeypatch.setattr(_hold, "_preserve", lambda record, hold: did.append(("preserve", record["name"], hold)) or session)
    monkeypatch.setattr(_systemd, "notify", lambda text, fds=(): did.append((text, fds)))
    monkeypatch.setattr(_early, "not_early", lambda unit: did.append(("not early", unit)))
    monkeypatch.setattr("signal.pthread_sigmask", lambda how, mask: did.append((how, mask)))
    monkeypatch.setattr("signal.sigwait", lambda signals: did.append(("wait", signals, os.readlink(f"/proc/self/fd/{session}"))))
    return did, session


@pytest.mark.parametrize("version", [260, 261, 262])
def test_the_process_of_a_hold_unit_keeps_the_session_open_until_it_is_told_to_end(serving, monkeypatch, version):
    """SIGTERM is blocked first: it may come at any moment. From systemd 261 on, PID 1 gets the session, too."""
    did, session = serving
    monkeypatch.setattr(_systemd, "version", lambda: version)
    _hold.serve("web")
    stored = [(f"FDSTORE=1\nFDPOLL=0\nFDNAME={_handover_session.FDNAME}", (session,))]
    assert did == [
        (signal.SIG_BLOCK, (signal.SIGTERM,)),
        ("preserve", "web", "h1"),
        *(stored if version >= 261 else []),
        ("READY=1\nSTATUS=Preserves the guest's memory", ()),
        ("wait", (signal.SIGTERM,), "/memfd:session (deleted)"),
    ]
    with pytest.raises(OSError):
        os.fstat(session)


@pytest.mark.parametrize("error", [LiveUpdateError("no room"), OSError("no room")])
def test_a_hold_unit_that_cannot_preserve_says_why_and_is_not_started_early_again(serving, monkeypatch, error):
    def fail(*_what):
        raise error

    monkeypatch.setattr(_hold, "_preserve", fail)
    with pytest.raises(type(error), match="no room"):
        _hold.serve("web")
    assert serving[0][1:] == [("STATUS=no room", ()), ("not early", _units.hold("web"))]


@pytest.mark.parametrize(
    ("said", "message"), [("guest web 1: no room", "^guest web 1: no room$"), ("", "web 1: it timed out; 'journalctl")]
)
def test_a_hold_unit_that_does_not_start_is_told_as_it_says_itself(held, monkeypatch, said, message):
    unit, left = _units.hold("web 1"), []

    def run(*_words, **_limit):
        raise LiveUpdateError("it timed out")

    monkeypatch.setattr(_systemd, "version", lambda: 257)
    monkeypatch.setattr(_systemd, "fdstore_each", lambda units: {name: [] for name in units})
    monkeypatch.setattr(_systemd, "show", lambda name, _what: {"StatusText": said} if name == unit else {})
    monkeypatch.setattr(_hold, "release", lambda record: left.append(record["name"]))
    monkeypatch.setattr(_commands, "run", run)
    with pytest.raises(LiveUpdateError, match=message):
        _hold.hold(held)
    assert left == ["web 1"]  # what an older hold left, before the new one


def test_each_part_of_the_memory_has_its_number(held, monkeypatch, tmp_path):
    """The restore asks for them in the order of the command line."""
    kernel = Preserving(monkeypatch)
    with open(tmp_path / "more", "wb") as more:
        monkeypatch.setattr(kernel, "memory", lambda record: [os.dup(held["ram"][0]["fd"]), os.dup(more.fileno())])
        seen = []
        monkeypatch.setattr(
            _luo, "preserve_fd", lambda _session, fd, token: seen.append((token, os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2]))
        )
        guest = {**held, "uuid": "1-2", "ram": [{"fd": held["ram"][0]["fd"], "size": 5}, {"fd": more.fileno(), "size": 6}]}
        os.close(_hold._preserve(guest, "h2"))
        assert seen == [(_handover_session.META_TOKEN, "memfd:kvm-liveupdate-note (deleted)"), (1, "ram"), (2, "more")]
        recorded = _files.read_json(_files.run_path("web 1", "held"))
        assert recorded["hold"] == "h2" and recorded["sizes"] == [5, 6] and recorded["files"] == _hold._ram_files(guest)


@pytest.mark.parametrize("session", [0, 4])
def test_a_session_that_is_not_there_is_not_closed(held, monkeypatch, session):
    kernel, closed = Preserving(monkeypatch), []
    monkeypatch.setattr(os, "close", closed.append)
    monkeypatch.setattr(_handover_session, "record_hold", lambda record: None)
    monkeypatch.setattr(kernel, "memory", lambda record: [])
    monkeypatch.setattr(_hold, "_note", lambda content: 99)

    def fail(*_what):
        raise LiveUpdateError("no room")

    monkeypatch.setattr(_luo, "create_session", fail)
    with pytest.raises(LiveUpdateError, match="guest web 1: no room"):
        _hold._preserve({**held, "uuid": "1-2"}, "h2")
    assert closed == [99]
    monkeypatch.setattr(_luo, "create_session", lambda name: session)
    monkeypatch.setattr(_luo, "preserve_fd", fail)
    with pytest.raises(LiveUpdateError, match="guest web 1: no room"):
        _hold._preserve({**held, "uuid": "1-2"}, "h2")
    assert closed == [99, session, 99]


def test_a_record_of_another_process_is_of_another_hold(held):
    hold = _hold.held(held)
    assert not _hold.is_of({**hold, "pid": hold["pid"] + 1}, held)


@pytest.mark.parametrize(("active", "found"), [("active", True), ("deactivating", True), ("inactive", False), ("failed", False)])
def test_it_is_known_whether_a_hold_unit_ran(ended, monkeypatch, active, found):
    """A descriptor in its store is given up as nobody's: the process ends with its unit."""
    unit = _units.hold("db")
    monkeypatch.setattr(_systemd, "show", lambda unit, name: {"ActiveState": active})
    domain = {"name": "db", "unit": unit, "pid": 7, "started": 70}
    assert _hold.release(domain) is found
    monkeypatch.setattr(_systemd, "fdstore", lambda unit: [_handover_session.FDNAME])
    assert _hold.release(domain) is True
    assert ended == [("stop", unit), ("stop", unit), (unit, 0)]


@pytest.mark.parametrize("main", ["9", ""])
def test_a_unit_without_a_process_is_told_by_nobody(ended, monkeypatch, main):
    monkeypatch.setattr(_systemd, "show", lambda unit, name: {"MainPID": main})
    assert _hold.release({"name": "web", "unit": "web.service", "pid": 7, "started": 70})
    assert ended == [("web.service", int(main or 0))]


def test_the_unit_of_a_hold_without_one_on_record_is_its_hold_unit(ended):
    _files.write_json(_files.run_path("web", "held"), {"session": "kvm-1"})
    _files.remove(_files.hold_path("web"))
    assert _hold.outlives("web") == _units.hold("web")
    assert not ended


def test_a_guest_that_has_ended_has_no_process(ended, monkeypatch):
    """Process 0 is nobody: a real number may be another process by now."""
    seen = []
    monkeypatch.setattr(_hold, "release", lambda record: seen.append((record["pid"], record["started"])) or True)
    assert _hold.release_ended("web")
    assert seen == [(0, 0)] and not ended


@pytest.mark.parametrize("version", [262, 257])
def test_a_domain_is_held_by_the_process_of_its_hold_unit(held, monkeypatch, version):
    """Also where PID 1 holds the memory of units: a domain's QEMU is no main process of a unit of ours."""
    unit = _units.hold("web 1")
    domain, did = {**held, "unit": unit}, []
    shown = {"MainPID": "77", "ControlGroup": "/hold"}
    monkeypatch.setattr(_systemd, "version", lambda: version)
    monkeypatch.setattr(_systemd, "fdstore_each", lambda units: {unit: [] for unit in units})
    monkeypatch.setattr(_commands, "run", lambda *words, **_limit: did.append(words))
    monkeypatch.setattr(_systemd, "show_each", lambda units, *_names: did.append(tuple(units)) or dict.fromkeys(units, shown))
    monkeypatch.setattr(_processes, "fd_links", lambda pid: {3: "anon_inode:[luo_session] kvm-1"} if pid == 77 else {})
    monkeypatch.setattr(os, "getxattr", lambda *_what: b"1")
    monkeypatch.setattr(_hold, "release", lambda record: None)
    assert _hold.hold(domain)["hold"] == "h"
    assert did == [("systemctl", "restart", unit), (unit,)]


@pytest.mark.parametrize("shown", [{"MainPID": ""}, {}])
def test_a_hold_unit_without_a_process_serves_nobody(monkeypatch, shown):
    """A made-up process number could be that of another process."""
    asked = []
    monkeypatch.setattr(_processes, "fd_links", lambda pid: asked.append(pid) or {})
    assert not _hold._serves({"ControlGroup": "/hold", **shown}, "kvm-1") and asked == [0]


def test_ram_whose_file_is_gone_is_of_no_file():
    """It compares unequal to every file that is preserved."""
    assert _hold._ram_files({**RECORD, "pid": os.getpid(), "ram": [{"fd": 999999, "size": 0}]}) == [[]]


def test_where_nothing_was_held_nothing_is_found(ended, monkeypatch, tmp_path):
    monkeypatch.setattr(_systemd, "fdstore", lambda unit: [])
    for left in tmp_path.iterdir():
        left.unlink()
    assert _hold.release({"name": "web", "unit": "web.service", "pid": 7, "started": 70}) is False


@pytest.mark.parametrize("other", [(0, 0), (1, 0), (0, 1)])
def test_only_the_files_that_are_preserved_are_read_for_digests(tmp_path, other):
    with open(tmp_path / "ram", "w+b") as ram:
        seen, open_before = os.fstat(ram.fileno()), len(os.listdir("/proc/self/fd"))
        mine = {**RECORD, "pid": os.getpid(), "ram": [{"fd": ram.fileno(), "size": 0}]}
        hold = {"files": [[seen.st_dev + other[0], seen.st_ino + other[1]]]}
        if other == (0, 0):
            (taken,) = _hold.preserved_files(hold, mine)
            assert os.path.sameopenfile(taken, ram.fileno()) and not os.get_inheritable(taken)
            os.close(taken)
        else:
            with pytest.raises(LiveUpdateError, match="are not the ones that are preserved"):
                _hold.preserved_files(hold, mine)
        assert len(os.listdir("/proc/self/fd")) == open_before
