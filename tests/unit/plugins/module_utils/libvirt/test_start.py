# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import os
import re
import socket
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _digests, _early, _journal, _return
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _session as _handover_session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files as _host_files
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes, _systemd, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import (
    _agent,
    _hook,
    _keeper,
    _probe_cache,
    _save,
    _save_directory,
    _start,
    _virsh,
)
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _block, _disk_files
from made_up_clock import Clock

SAVED = {
    "guest": "app",
    "provider": "libvirt",
    "state": "saved",
    "hold": "h",
    "uuid": "0-1-2",
    "sizes": [4096],
    "on_loss": "start",
    "boot_id": "before",
    "session": "kvm-012",
    "unit": "kvm-liveupdate-hold@app.service",
    "was_running": True,
    "times": {"paused": 1.0},
}


@pytest.fixture(name="clock")
def clock_of_a_restore(monkeypatch):
    return Clock(monkeypatch, _start)


@pytest.fixture(name="domain")
def scripted_domain(tmp_path, monkeypatch, clock):
    """A domain whose states come in the given order; a start either works or raises the next error. With a * it has run."""

    class Domain:
        def __init__(self):
            self.states, self.errors, self.starts, self.resumed, self.calls = [], [], 0, [], 0
            self.image = str(tmp_path / "app.save")
            self.saved = {**SAVED, "image": self.image}
            self.marker = tmp_path / "app.resumed"

        def virsh(self, verb, uuid, **_limit):
            assert uuid == SAVED["uuid"]
            self.calls += 1
            assert self.calls < 10_000, "it asks for ever"
            if verb == "resume":
                self.resumed.append(clock.now)
                return ""
            if verb == "domstate":
                state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
                if isinstance(state, LiveUpdateError):
                    raise state
                return self.seen(state) + "\n"
            self.starts += 1
            if self.errors:
                raise LiveUpdateError(self.seen(self.errors.pop(0)))
            self.marker.touch()
            return ""

        def seen(self, text):
            if text.endswith("*"):
                self.marker.touch()
            return text.rstrip("*")

    made = Domain()
    monkeypatch.setattr(_host_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_virsh, "virsh", made.virsh)
    monkeypatch.setattr(_virsh, "HOOK", str(tmp_path / "qemu.d/kvm-liveupdate"))
    return made


def test_a_domain_is_started_again_until_what_it_needs_is_there(domain):
    domain.states, domain.errors = ["shut off"], ["no bridge br0"]
    _start._start("app", domain.saved)
    assert domain.starts == 2
    assert os.path.exists(_host_files.run_path("app", "late"))  # the rest of the boot, which may bring that, does not wait for it


def test_a_start_that_works_asks_for_nothing_else(domain):
    domain.states = ["not to be asked for"]
    _start._start("app", domain.saved)
    assert domain.starts == 1 and domain.states == ["not to be asked for"]


def test_a_domain_that_libvirt_does_not_know_yet_is_started_when_it_does(domain):
    domain.states, domain.errors = [LiveUpdateError("no connection")], ["no connection", "no connection"]
    _start._start("app", domain.saved)
    assert domain.starts == 3


def test_an_autostart_under_way_is_waited_for(domain):
    domain.states, domain.errors = ["paused", "paused*", "running"], ["it is being started", "it is being started"]
    _start._start("app", domain.saved)
    assert domain.states == ["running"] and domain.starts == 2
    assert not os.path.exists(_host_files.run_path("app", "late"))


def test_an_autostart_that_was_quicker_is_no_failure(domain):
    domain.states, domain.errors = ["running*"], ["domain is already running"]
    _start._start("app", domain.saved)
    domain.errors = ["domain is already running*"]
    _start._start("app", domain.saved)
    assert domain.starts == 1


def test_a_guest_that_was_paused_comes_back_paused(domain):
    domain.states = ["paused*"]
    domain.marker.touch()
    _start._start("app", domain.saved)
    assert domain.starts == 0


def test_a_domain_that_is_being_started_is_not_back_yet(domain):
    """Libvirt says paused, and takes the image away when the start is over."""
    image = Path(domain.image)
    image.touch()
    domain.states, domain.errors = ["paused*", "paused*", "running"], ["it is being started"]
    _start._start("app", domain.saved)
    assert domain.states == ["running"] and not image.exists()


def test_a_start_that_libvirt_took_back_after_the_memory_was_given_is_the_operators(domain, monkeypatch, tmp_path):
    """Whether the domain ran for a moment nobody knows: neither its state nor a clean start is right by itself."""
    monkeypatch.setattr(_host_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_systemd, "notify", lambda state: None)
    monkeypatch.setattr(_start, "_listens", lambda path: True)
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: None)
    dropped = []
    monkeypatch.setattr(_handover_session, "drop", lambda *session: dropped.append(session))
    domain.states = ["shut off*"]
    domain.marker.touch()
    Path(domain.image).touch()
    with pytest.raises(LiveUpdateError, match=r"guest app: libvirt gave its preserved memory to a QEMU.*'kvm-liveupdate discard app'"):
        _start.restore("app", domain.saved)
    assert not dropped and not domain.starts and Path(domain.image).exists()


def test_a_domain_that_ran_and_went_off_is_not_started_from_its_old_state(domain):
    domain.states, domain.errors = ["shut off"], ["QEMU crashed*"]
    with pytest.raises(LiveUpdateError, match="app is shut off, not running: QEMU crashed"):
        _start._start("app", domain.saved)
    assert domain.starts == 1


@pytest.mark.parametrize(
    ("states", "was_running", "resumed"),
    [
        (["paused*"], True, True),
        (["paused"], True, False),  # its memory was not given to a QEMU: libvirt still starts it
        (["paused*"], False, False),  # its owner had paused it
        (["in shutdown*"], True, False),
    ],
)
def test_only_a_domain_that_stays_paused_for_long_is_resumed(domain, clock, states, was_running, resumed):
    """Libvirt says paused during a start, too. The start takes away the image at its end."""
    Path(domain.image).touch()
    domain.states, domain.errors = states, ["it is being started"] * 9999
    with pytest.raises(LiveUpdateError, match="not running"):
        _start._start("app", {**domain.saved, "was_running": was_running})
    assert clock.now > _return.BACK_LIMIT_S >= clock.now - _start.RETRY_S
    if resumed:
        assert domain.resumed[0] == _start.STUCK_S + _start.RETRY_S and len(domain.resumed) > 1000  # and it ends at the limit
    else:
        assert not domain.resumed
    assert domain.starts == (2 * _return.BACK_LIMIT_S + 2 if states == ["paused"] else 1)


def test_a_refusal_to_resume_is_only_said(domain, monkeypatch, capsys):
    def refuse(*_words, **_limit):
        raise LiveUpdateError("domain is not paused")

    monkeypatch.setattr(_virsh, "virsh", refuse)
    _start._go_on(domain.saved)
    assert "domain is not paused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("states", "again"), [(["shut off*"], False), (["paused*"], True), (["shut off"], True), ([LiveUpdateError("no answer")], True)]
)
def test_what_may_have_run_and_went_off_is_not_tried_again_by_itself(domain, clock, states, again):
    """Of anything else the memory is kept, and systemd tries it again."""
    Path(domain.image).touch()
    domain.states, domain.errors = states, ["no"] * 9999
    with pytest.raises(LiveUpdateError, match="not running: no") as told:
        _start._start("app", {**domain.saved, "was_running": False})
    assert told.value.details["again"] is again
    assert len(clock.slept) == (2 * _return.BACK_LIMIT_S + 1 if again else 1)


@pytest.mark.parametrize(
    ("state", "said"), [("paused", "app is paused, not running: no"), (LiveUpdateError("gone"), "is in an unknown state, not running: no")]
)
def test_the_wait_has_a_limit(domain, monkeypatch, state, said):
    domain.states, domain.errors = [state], ["no"] * 2
    monkeypatch.setattr(_return, "BACK_LIMIT_S", -1)
    with pytest.raises(LiveUpdateError, match=said):
        _start._start("app", domain.saved)


def test_nothing_runs_before_libvirt_listens(tmp_path, monkeypatch, clock):
    """Three of them that ran virsh all the time kept a host with one processor from starting the daemon for more than a minute."""
    path = str(tmp_path / "libvirt-sock")
    monkeypatch.setattr(_start, "SOCKETS", (str(tmp_path / "virtqemud-sock"), path))
    monkeypatch.setattr(_start, "LIBVIRT_LIMIT_S", -1)
    with pytest.raises(LiveUpdateError, match=r"no process listens at .*virtqemud-sock or .*libvirt-sock"):
        _start._wait_for_socket("app")
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(path)
        with pytest.raises(LiveUpdateError, match="no process listens") as told:
            _start._wait_for_socket("app")
        assert told.value.details["again"] and not clock.slept  # systemd starts the unit once more
        monkeypatch.setattr(_start, "LIBVIRT_LIMIT_S", 5)
        clock.at = {3: daemon.listen}
        _start._wait_for_socket("app")
        assert clock.slept == [_start.POLL_S] * 3
        _start._wait_for_socket("app")
        assert len(clock.slept) == 3
    monkeypatch.setattr(_start, "_listens", lambda path: False)
    with pytest.raises(LiveUpdateError, match="within 5 s; start libvirt's daemon"):
        _start._wait_for_socket("app")
    assert sum(clock.slept[3:]) == pytest.approx(5, abs=0.2)


def test_a_daemon_that_accepts_nobody_is_not_waited_for_in_one_look(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(socket.socket, "settimeout", lambda self, limit: limits.append(limit))
    assert not _start._listens(str(tmp_path / "none")) and limits == [_start.RETRY_S]


def test_an_answer_of_libvirt_is_waited_for(domain, clock, monkeypatch):
    """Without its state the image of a domain whose memory is lost would not be removed."""
    listened = []
    monkeypatch.setattr(_start, "_listens", lambda path: listened.append(path) or True)
    domain.states = [LiveUpdateError("no connection"), LiveUpdateError("no connection"), "shut off"]
    assert _start._wait_for_answer("app", domain.saved) == "shut off"
    assert clock.slept == [_start.RETRY_S] * 2 and listened
    monkeypatch.setattr(_start, "LIBVIRT_LIMIT_S", 5)
    domain.states = [LiveUpdateError("no connection")]
    with pytest.raises(LiveUpdateError, match=r"within 5 s; 'journalctl -b -u \S+' shows why") as told:
        _start._wait_for_answer("app", domain.saved)
    assert told.value.details["again"] and len(clock.slept) == 2 + 11


def test_the_boot_does_not_wait_for_a_domain_that_fails_or_is_not_to_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(_host_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_systemd, "notify", lambda state: None)
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: None)
    saved = {**SAVED, "on_loss": "stop"}
    monkeypatch.setattr(_start, "_wait_for_answer", lambda *_what: 1 // 0)
    with pytest.raises(LiveUpdateError, match="its memory did not survive the reboot"):
        _start.restore("app", saved)
    assert os.path.exists(_host_files.run_path("app", "late"))
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        _start.restore("db", saved)
    assert os.path.exists(_host_files.run_path("db", "late"))


@pytest.mark.parametrize("outcome", [{"clock": "synchronised", "thawed": True}, {"clock": "failed: it hangs", "thawed": False}])
def test_the_journal_tells_what_became_of_the_clock(tmp_path, monkeypatch, outcome):
    monkeypatch.setattr(_host_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_agent, "correct_clock", lambda name: outcome)
    _start._correct_clock("app", {"state": "restored", "guest": "app"}, True)
    assert _host_files.read_json(str(tmp_path / "app.json")) == {"state": "restored", "guest": "app", **outcome}


@pytest.fixture(name="way")
def a_domain_on_its_way_back(tmp_path, monkeypatch, clock):
    """What is done on the way back in its order; a step that is in ``fails`` raises once."""

    class Way:
        done, fails, state = [], set(), "running"
        image, marker = tmp_path / "app.save", tmp_path / "app.resumed"

        def step(self, name):
            def call(*_words, **_more):
                self.done.append(name)
                if name in self.fails:
                    self.fails.discard(name)
                    raise OSError(28, "No space left on device")

            return call

        def virsh(self, verb, uuid, *more, **_limit):
            assert uuid == SAVED["uuid"]
            if verb == "domstate":
                return self.state
            self.done.append(" ".join((verb, *more)))
            if verb == "start" and (tmp_path / "app.offer").exists():
                self.marker.touch()
                (tmp_path / "app.placed").touch()
            return ""

        def journal(self):
            return {**SAVED, "image": str(self.image), "digest": _host_files.digest(str(self.image))}

    made = Way()
    made.done, made.fails = [], set()
    for name in ("GUESTS_RUN", "GUESTS_STATE", "RUN"):
        monkeypatch.setattr(_host_files, name, str(tmp_path))
    monkeypatch.setattr(_host_files, "LOCK", str(tmp_path / "lock"))
    made.image.write_text("image")
    (tmp_path / "app.state").write_text("{}")
    hook = tmp_path / "hook"
    hook.touch(mode=0o755)
    monkeypatch.setattr(_virsh, "HOOK", str(hook))
    monkeypatch.setattr(_virsh, "virsh", made.virsh)
    monkeypatch.setattr(_start, "_listens", lambda path: True)
    monkeypatch.setattr(_start, "_offer", lambda *_files: (tmp_path / "app.offer").touch())
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: 5)
    monkeypatch.setattr(_handover_session, "note", lambda session: {key: SAVED[key] for key in ("hold", "guest", "uuid", "sizes")})
    monkeypatch.setattr(_handover_session, "take", lambda *_session: [9])
    monkeypatch.setattr(_handover_session, "drop", made.step("drop"))
    monkeypatch.setattr(_return, "SETTLE_S", 0)
    monkeypatch.setattr(_systemd, "notify", lambda state: made.done.append("forget") if "REMOVE" in state else None)
    monkeypatch.setattr(_luo, "finish", made.step("finish"))
    monkeypatch.setattr(_early, "start_early", made.step("not early"))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    monkeypatch.setattr(_this_boot, "ahead", lambda: None)
    monkeypatch.setattr(_agent, "correct_clock", lambda _name: {"clock": "synchronised", "thawed": False})
    _host_files.write_json(_host_files.journal_path("app"), made.journal())
    return made


def left(tmp_path):
    return {path.suffix[1:] for path in tmp_path.iterdir()} & {"save", "state", "offer", "resumed"}


def test_a_domain_that_is_back_leaves_nothing_to_start_it_from_again(way, tmp_path):
    _start.restore("app", way.journal())
    assert way.done == ["start", "finish", "forget", "not early"]
    assert left(tmp_path) == {"resumed"}
    assert (_journal.of_guest("app")["state"], _journal.of_guest("app")["clock"]) == ("restored", "synchronised")


def test_libvirts_cache_is_carried_over_before_its_daemon_starts_and_forgotten_once_the_domain_is_back(way, monkeypatch):
    """The unit is ordered before the daemon, which starts when the unit is ready."""
    monkeypatch.setattr(_systemd, "notify", lambda state: way.done.append("ready") if "READY" in state else None)
    for name in ("carry_over", "forget"):
        monkeypatch.setattr(_probe_cache, name, way.step(name))
    _start.restore("app", way.journal())
    assert way.done == ["carry_over", "ready", "start", "finish", "not early", "forget"]


@pytest.mark.parametrize(("check", "extended"), [("full", 2), ("sample", 1), ("none", 1), (None, 1)])
def test_systemd_gives_a_restore_the_time_that_it_may_take(way, monkeypatch, check, extended):
    """At its start, and once more for a check of all memory. Else systemd would stop the unit, and an operator have to start it again."""
    told = []
    monkeypatch.setattr(_systemd, "notify", told.append)
    monkeypatch.setattr(_return, "check_memory", lambda *_what: told.append("checked"))
    _start.restore("app", {**way.journal(), "memory_check": check})
    more = f"EXTEND_TIMEOUT_USEC={_return.BACK_LIMIT_S * 1_000_000:.0f}"
    assert told[: extended + 1] == [more] * extended + ["checked"] and told.count(more) == extended
    assert told[extended + 1].startswith("READY=1\n")


@pytest.mark.parametrize("missing", ["app.placed", "app.resumed"])
def test_a_domain_that_libvirt_started_without_its_memory_is_told(way, tmp_path, monkeypatch, missing):
    """Its hook did not run."""
    monkeypatch.setattr(_start, "_start", lambda *_what: (tmp_path / ({"app.placed", "app.resumed"} - {missing}).pop()).touch() or 2.0)
    with pytest.raises(LiveUpdateError, match=r"guest app: libvirt started it without its preserved memory \(.*No such file.*hook"):
        _start.restore("app", way.journal())
    assert _journal.recorded("app")["state"] == "saved" and "finish" not in way.done


def test_a_restored_domain_has_all_its_times(way, tmp_path, monkeypatch):
    (tmp_path / "app.resumed").touch()
    os.utime(tmp_path / "app.resumed", (7.0, 7.0))
    (tmp_path / "app.placed").touch()
    os.utime(tmp_path / "app.placed", (6.0, 6.0))
    monkeypatch.setattr(_start, "_start", lambda *_what: 8.0)
    _start._bring_back("app", way.journal(), 5, 3.0)
    times = _journal.recorded("app")["times"]
    assert {key: times[key] for key in ("paused", "start", "libvirt", "loaded", "resumed")} == {
        "paused": 1.0,
        "start": 3.0,
        "libvirt": 6.0,
        "loaded": 7.0,
        "resumed": 8.0,
    }
    assert times["retrieved"] > 8.0


@pytest.mark.parametrize("was_running", [True, False])
def test_only_the_clock_of_a_guest_that_runs_is_corrected(way, monkeypatch, was_running):
    asked = []
    monkeypatch.setattr(_agent, "correct_clock", lambda name: asked.append(name) or {"clock": "synchronised", "thawed": False})
    _start.restore("app", {**way.journal(), "was_running": was_running})
    assert asked == (["app"] if was_running else []) and _journal.recorded("app")["state"] == "restored"


def test_a_record_that_the_disk_does_not_take_waits_for_the_clock_too(way, monkeypatch):
    """The clock's outcome is in the record that is tried again, and is written by nothing else."""
    tried = []
    monkeypatch.setattr(_return, "settled", lambda restored: False)
    monkeypatch.setattr(_return, "settle_at_last", lambda restored, lasts: tried.append((restored["clock"], lasts())))
    _start.restore("app", way.journal())
    assert tried == [("synchronised", True)] and _journal.recorded("app")["state"] == "saved"


@pytest.mark.parametrize(
    ("state", "image", "starts"), [("paused", True, 1), ("in shutdown", True, 1), ("paused", False, 0), ("running", True, 0)]
)
def test_a_start_that_goes_on_in_libvirts_daemon_is_waited_for(way, tmp_path, monkeypatch, state, image, starts):
    started = []
    monkeypatch.setattr(_start, "_start", lambda name, journal: started.append(name))
    journal, way.state = way.journal(), state
    way.marker.touch()
    if not image:
        way.image.unlink()
    _start.restore("app", journal)
    assert len(started) == starts and left(tmp_path) == {"resumed"}


@pytest.mark.parametrize("failing", ["finish", "not early"])
def test_what_fails_once_a_domain_runs_keeps_it_from_nothing(way, tmp_path, failing):
    way.fails.add(failing)
    _start.restore("app", way.journal())
    assert _journal.recorded("app")["state"] == "restored" and _journal.recorded("app")["clock"] == "synchronised"
    assert left(tmp_path) == {"resumed"}


def test_an_image_that_cannot_be_removed_keeps_its_guard(way, tmp_path, monkeypatch):
    """Without its RAM no other start may find it: until it is gone the state, which libvirt's hook looks for, stays."""
    real = _save_directory.remove

    def remove(path):
        if path == str(way.image):
            raise OSError(30, "Read-only file system")
        return real(path)

    monkeypatch.setattr(_save_directory, "remove", remove)
    with pytest.raises(OSError, match="Read-only"):
        _start.restore("app", way.journal())
    assert left(tmp_path) >= {"save", "state"} and _journal.of_guest("app")["state"] == "saved"
    monkeypatch.setattr(_save_directory, "remove", real)
    _start.restore("app", _journal.recorded("app"))  # its unit is started again
    assert left(tmp_path) == {"resumed"} and _journal.of_guest("app")["state"] == "restored"


@pytest.mark.parametrize(
    ("state", "image", "again"), [("running", True, "restored"), ("running", False, "restored"), ("shut off", False, "restored")]
)
def test_a_holder_that_ended_once_the_memory_was_given_finds_the_domain_back(way, tmp_path, state, image, again):
    """It is told as restored, also one that was shut down since; that one is not started against the wish of whoever did that."""
    journal, way.state = way.journal(), state
    way.marker.touch()
    if not image:
        way.image.unlink()
    _start.restore("app", journal)
    assert "start" not in way.done and "finish" in way.done
    assert _journal.recorded("app")["state"] == again and left(tmp_path) == {"resumed"}


def test_a_start_that_is_being_ended_is_not_taken_for_one_that_is_over(way, tmp_path, clock):
    """Libvirt keeps the image then: whether the guest ran for a moment nobody knows."""
    journal, way.state = way.journal(), "in shutdown"
    way.marker.touch()
    clock.at = {1: lambda: setattr(way, "state", "shut off")}
    with pytest.raises(LiveUpdateError, match="app is shut off, not running"):
        _start.restore("app", journal)
    assert way.done == [] and {"save", "state"} <= left(tmp_path)


def test_a_domain_that_the_daemon_left_paused_goes_on(way, clock, monkeypatch):
    """The daemon ended between the hook and the guest's first step: nobody else would let it go on."""
    journal, way.state = way.journal(), "paused"
    way.marker.touch()
    monkeypatch.setattr(_start, "STUCK_S", -1)
    clock.at = {1: lambda: setattr(way, "state", "running")}
    _start.restore("app", journal)
    assert way.done[0] == "resume" and _journal.recorded("app")["state"] == "restored"


@pytest.mark.parametrize("amiss", ["another image", "no image", "no hook"])
def test_no_domain_is_started_from_another_image_or_without_its_hook(way, tmp_path, amiss):
    journal = way.journal()
    if amiss == "another image":
        way.image.write_text("images")
    elif amiss == "no image":
        way.image.unlink()
    else:
        (tmp_path / "hook").chmod(0o644)
    with pytest.raises(LiveUpdateError, match=r"guest app: .*kept"):
        _start.restore("app", journal)
    assert not way.done and "offer" not in left(tmp_path) and "state" in left(tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_libvirt_gets_no_memory_that_differs(way, tmp_path, monkeypatch, same, memfd):
    os.pwrite(memfd, b"memory", 0)
    journal = {**way.journal(), "memory_check": "full", "memory": _digests.note("full", [memfd])}
    monkeypatch.setattr(_handover_session, "take", lambda *_session: [memfd])
    if same:
        _start.restore("app", journal)
        assert _journal.recorded("app")["memory_verified"] == "full" and "memory" not in _journal.recorded("app")
        times = _journal.recorded("app")["times"]
        assert times["retrieved"] <= times["checked"] <= times["libvirt"] + 0.1  # which is the time of a file
        return
    os.pwrite(memfd, b"M", 0)
    with pytest.raises(LiveUpdateError, match=r"guest app: its preserved memory is not the same as before the jump.*kept"):
        _start.restore("app", journal)
    assert not way.done and "offer" not in left(tmp_path) and {"save", "state"} <= left(tmp_path)
    assert _journal.of_guest("app")["state"] == "saved" and _journal.of_guest("app")["memory_wrong"]


@pytest.mark.parametrize("was_running", [True, False])
def test_a_domain_whose_memory_is_lost_is_not_started_from_its_image(way, monkeypatch, tmp_path, was_running):
    """Libvirt may not know of the image, and then removes nothing; but it would start the domain from it. One that was paused stays so."""
    monkeypatch.setattr(_handover_session, "note", lambda session: None)
    real = _save_directory.remove
    monkeypatch.setattr(_save_directory, "remove", lambda path: real(path) or way.done.append("image removed"))
    way.state = "shut off"
    _start.restore("app", {**way.journal(), "was_running": was_running})
    start = "start" if was_running else "start --paused"
    assert way.done == ["drop", "managedsave-remove", "image removed", "not early", start]
    assert _journal.recorded("app")["state"] == "lost" and not {"save", "state"} & left(tmp_path)
    assert os.path.exists(_host_files.run_path("app", "late"))


@pytest.mark.parametrize("seen", ["paused", "in shutdown"])
def test_a_start_of_another_program_finds_no_image_without_a_guard(way, monkeypatch, tmp_path, clock, seen):
    """It may have opened the image. Until it ends, libvirt's hook has to refuse it."""
    monkeypatch.setattr(_handover_session, "note", lambda session: None)
    way.state = seen
    clock.at = {3: lambda: setattr(way, "state", "shut off")}
    lost = _return.lost
    monkeypatch.setattr(_return, "lost", lambda journal, why: way.done.append(f"lost when {way.state}") or lost(journal, why))
    _start.restore("app", way.journal())
    assert way.done == ["drop", "managedsave-remove", "lost when shut off", "not early", "start"]
    assert clock.slept == [_start.RETRY_S] * 3


def test_a_start_of_another_program_that_does_not_end_keeps_the_guard(way, monkeypatch, tmp_path):
    monkeypatch.setattr(_handover_session, "note", lambda session: None)
    way.state = "paused"
    with pytest.raises(LiveUpdateError, match="its memory is lost, and it is paused, so another program may be starting it") as told:
        _start.restore("app", way.journal())
    assert told.value.details == {"again": True} and "state" in left(tmp_path) and "save" not in left(tmp_path)
    assert _journal.recorded("app")["state"] == "saved"


@pytest.mark.parametrize("state", ["shut off", "running"])
def test_what_a_cold_start_needs_early_in_the_boot_is_waited_for(way, monkeypatch, clock, state):
    """Or another program starts it first. Libvirt tries the autostart only once in a boot."""
    monkeypatch.setattr(_handover_session, "note", lambda session: None)
    way.state = "shut off"
    real, tries = _virsh.virsh, []

    def virsh(verb, *words, **limit):
        if verb == "start" and len(tries) < 2:
            tries.append(verb)
            way.state = state if len(tries) == 2 else "shut off"
            raise LiveUpdateError("no bridge br0")
        return real(verb, *words, **limit)

    monkeypatch.setattr(_virsh, "virsh", virsh)
    _start.restore("app", way.journal())
    assert way.done[-1] == ("start" if state == "shut off" else "not early")
    assert clock.slept == [_start.COLD_RETRY_S] * (2 if state == "shut off" else 1)


def test_a_cold_start_that_never_works_is_told_at_the_limit(way, monkeypatch, clock, capsys):
    """Somebody may start the guest on another host meanwhile. So the record and the log say until when, and what stops it."""
    monkeypatch.setattr(_handover_session, "note", lambda session: None)
    way.state = "shut off"
    real = _virsh.virsh

    def virsh(verb, *words, **limit):
        if verb == "start":
            raise LiveUpdateError("no bridge br0")
        return real(verb, *words, **limit)

    monkeypatch.setattr(_virsh, "virsh", virsh)
    with pytest.raises(
        LiveUpdateError, match=r"^guest app: it does not start from its disks: no bridge br0\. Correct this, then start it$"
    ):
        _start.restore("app", way.journal())
    assert _start.COLD_LIMIT_S < clock.now < _start.COLD_LIMIT_S + 2 * _start.COLD_RETRY_S <= 400
    until = r"If the start from its disks fails, the host repeats it until 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    says = rf"{until}\. To stop the repeated start, run 'kvm-liveupdate discard app'"
    assert re.fullmatch(rf"its memory did not survive .*; it starts from its disks\. {says}", _journal.recorded("app")["why"])
    assert len(re.findall(rf"app: no bridge br0\. {says}", capsys.readouterr().err)) == 1


def test_a_domain_whose_memory_is_lost_is_not_started_while_its_image_cannot_be_removed(way, monkeypatch, tmp_path):
    monkeypatch.setattr(_handover_session, "note", lambda session: None)
    way.state, journal = "shut off", way.journal()
    way.image.unlink()
    way.image.mkdir()
    with pytest.raises(
        LiveUpdateError, match=rf"^guest app: the saved image {way.image}, .* cannot be removed: .* 'kvm-liveupdate discard app'\."
    ):
        _start.restore("app", journal)
    assert "start" not in way.done and _journal.recorded("app")["state"] == "saved" and "state" in left(tmp_path)


def test_an_image_that_is_not_there_yet_is_waited_for(way, tmp_path):
    """Its file system may be mounted late. To discard the memory would lose it for nothing, unless somebody removed the image."""
    journal = way.journal()
    way.image.unlink()
    says = rf"guest app: its saved state {way.image} does not exist, .* is kept\. If the file system .* mount it .*repeated automatically\."
    says += (
        r" If somebody removed the file, run 'kvm-liveupdate discard app'\. This discards the memory\. Then start the guest: it starts from"
        r" its disks$"
    )
    with pytest.raises(LiveUpdateError, match=says) as told:
        _start.restore("app", journal)
    assert told.value.details == {"again": True}
    assert not way.done and _journal.recorded("app")["state"] == "saved" and "state" in left(tmp_path)


@pytest.mark.parametrize("session", [5, None])
def test_a_domain_whose_memory_is_lost_and_that_runs_is_left_alone(way, monkeypatch, tmp_path, session):
    """Its autostart was faster. The daemon starts only when the unit is ready, and the boot does not wait."""
    seen = []
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: session)
    monkeypatch.setattr(_handover_session, "note", lambda session: None)
    monkeypatch.setattr(_systemd, "notify", lambda state: seen.append((state, os.path.exists(_host_files.run_path("app", "late")))))
    _start.restore("app", way.journal())
    assert way.done == ["drop", "managedsave-remove", "not early"] and _journal.recorded("app")["state"] == "lost"
    assert "repeated" not in _journal.recorded("app")["why"]
    assert not {"save", "state"} & left(tmp_path)
    assert seen[1:] == [("READY=1", True)]


@pytest.fixture(name="offered")
def saved_domain_whose_memory_is_offered(tmp_path, monkeypatch):
    """A hook's call for a domain that is saved; its memory is in this process."""
    directory = tmp_path / "ram/libvirt/qemu/7-app"
    directory.mkdir(parents=True)
    monkeypatch.setattr(_host_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_host_files, "GUESTS_RUN", str(tmp_path))

    def call(fd, hold="h", started=None, memory=None, image=None, **more):
        os.pwrite(fd, b"memory", 0)
        monkeypatch.setattr("sys.stdin", io.StringIO("<domain id='7'/>"))
        places = {"directory": str(directory.parent), "files": ["pc.ram"]}
        if memory:
            _host_files.write_json(str(tmp_path / "app.stand-in"), {**places, "memory": [memory]})
        _host_files.write_json(str(tmp_path / "app.state"), {**places, "hold": "h", **({"image": str(image)} if image else {})})
        pid = os.getpid()
        started = started or _processes.start_time(pid)
        _host_files.write_json(str(tmp_path / "app.offer"), {"pid": pid, "started": started, "hold": hold, "fds": [fd], **more})
        _hook.hook("app")
        return directory / "pc.ram"

    return call


@pytest.fixture(name="memfd")
def memory_that_came_over():
    fd = os.memfd_create("ram")
    yield fd
    os.close(fd)


def test_qemu_finds_a_link_to_its_memory(offered, memfd, tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    path = offered(memfd)
    assert path.is_symlink() and path.read_bytes() == b"memory"
    assert (tmp_path / "app.placed").exists()  # its time is when QEMU started
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_domain_that_nobody_saved_is_none_of_the_hooks_business(tmp_path, monkeypatch):
    for name in ("GUESTS_STATE", "GUESTS_RUN"):
        monkeypatch.setattr(_host_files, name, str(tmp_path))
    monkeypatch.setattr("sys.stdin", None)
    _hook.hook("app")
    assert not list(tmp_path.iterdir())


def test_a_saved_domain_without_an_offer_is_not_started(offered, memfd, tmp_path, monkeypatch):
    offered(memfd).unlink()
    (tmp_path / "app.offer").unlink()
    (tmp_path / "app.placed").unlink()
    with pytest.raises(LiveUpdateError, match=r"guest app is not started, because its preserved memory is not available now"):
        _hook.hook("app")
    assert not (tmp_path / "app.placed").exists()


@pytest.mark.parametrize(
    ("made", "xml", "found"),
    [
        ([], "<domain type='kvm' id='7'>", r"domain ID '7', found \[\]"),
        (["17-app", "7app"], "<domain type='kvm' id='7'>", r"domain ID '7', found \[\]"),
        (["7-app", "7-db"], "<domain id='7'>", r"domain ID '7', found \['7-"),
        (["-app", "7-app"], "<domain type='kvm'><name id='7'/>", r"domain ID '', found \[\]"),
    ],
)
def test_only_the_one_directory_of_this_start_gets_memory(tmp_path, made, xml, found):
    for name in made:
        (tmp_path / name).mkdir()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LiveUpdateError, match=rf"guest app: libvirt made no directory for its RAM below {tmp_path} \({found}"):
        _hook._ram_directory("app", str(tmp_path), xml)
    assert set(os.listdir("/proc/self/fd")) == before
    (tmp_path / "8-app").mkdir()
    fd = _hook._ram_directory("app", str(tmp_path), "<!-- id='9' --><domain type='kvm' id='8'>")
    assert os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / "8-app")
    os.close(fd)


@pytest.mark.parametrize(
    ("path", "followed", "not_followed"),
    [
        ("/ram/libvirt/qemu/7-app", "/ram", ["libvirt", "qemu", "7-app"]),
        ("/libvirt/qemu/ram/libvirt/qemu/7-app", "/libvirt/qemu/ram", ["libvirt", "qemu", "7-app"]),
        ("/ram/libvirt/qemu", "/ram", ["libvirt", "qemu"]),
        ("/libvirt/qemu", "/", ["libvirt", "qemu"]),
        ("/dev/shm/ram", "/dev/shm/ram", []),
    ],
)
def test_links_are_followed_only_in_what_the_operator_has_configured(monkeypatch, path, followed, not_followed):
    """Below memory_backing_dir everything is libvirt/qemu/DOMAIN, and belongs to QEMU's user."""
    opened, numbers = [], iter(range(100, 200))

    def record(part, flags, dir_fd=None):
        opened.append((part, flags, dir_fd))
        return next(numbers)

    closed = []
    monkeypatch.setattr(os, "open", record)
    monkeypatch.setattr(os, "close", closed.append)
    last = _hook._open_directory(path)
    plain = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    assert opened == [(followed, plain, None), *((part, plain | os.O_NOFOLLOW, 100 + n) for n, part in enumerate(not_followed))]
    assert last == 100 + len(not_followed) and closed == list(range(100, last))


def test_libvirt_starts_no_domain_with_another_disk_under_the_name_of_its_own(offered, memfd, monkeypatch, tmp_path, way):
    """The holder looks too, but the device may come only after that."""
    monkeypatch.setattr(_block, "identity", lambda path: ["wwid b"])
    monkeypatch.setattr(
        _host_files, "read_json", lambda path, real=_host_files.read_json: {**real(path), **DEVICES} if "state" in path else real(path)
    )
    with pytest.raises(LiveUpdateError, match=r"guest app: .* at /dev/sdb \(wwid b, not wwid a\)\. .* its memory is kept"):
        offered(memfd)
    with pytest.raises(LiveUpdateError, match=r"guest app: .* at /dev/sdb \(wwid b, not wwid a\)\. .* its memory is kept") as told:
        _start.restore("app", {**way.journal(), **DEVICES})
    assert told.value.details["again"] and not way.done  # systemd starts the unit once more
    monkeypatch.setattr(_block, "identity", lambda path: ["wwid a"])
    assert offered(memfd).is_symlink()


@pytest.fixture(name="below")
def old_copy_below_a_mount_point(tmp_path):
    """The disk's path has an old copy; a call brings the mount."""
    path, mounted = tmp_path / "app.raw", tmp_path / "mounted"
    mounted.write_text("own")
    files = {str(path): _disk_files.identity(str(mounted), ("/srv", "xfs", "/dev/mapper/vg-srv"))}
    path.write_text("old")
    return files, lambda: mounted.rename(path)


def test_libvirt_starts_no_domain_on_another_file_than_its_own(offered, memfd, below):
    """Whoever starts it, also its autostart."""
    files, mount = below
    says = r"guest app: the host still has another file at .*/app\.raw \(inode .*mounted at /srv\); mount what is missing"
    with pytest.raises(LiveUpdateError, match=says):
        offered(memfd, disks=files)
    mount()
    placed = offered(memfd, disks=files)
    assert placed.is_symlink()
    placed.unlink()
    with open(next(iter(files)), "a", encoding="utf-8") as disk:
        disk.write("bitmaps")
    assert offered(memfd, disks=files).is_symlink()  # after a start that failed, which may have changed its size
    os.unlink(_host_files.run_path("app", "placed"))
    with pytest.raises(LiveUpdateError, match="10 bytes, not 3"):
        offered(memfd, disks=files)


def test_a_domain_waits_for_the_mount_with_its_disk_although_an_old_copy_is_below_it(domain, clock, below, capsys):
    """Each try would start virsh and the hook; and one line says what is missing, not one for each try."""
    files, mount = below
    domain.states = ["shut off"]
    clock.at = {3: mount}
    _start._start("app", {**domain.saved, "disks": files})
    assert clock.slept == [_start.RETRY_S] * 3 and domain.starts == 1
    assert capsys.readouterr().err.count("another file at") == 1
    assert os.path.exists(_host_files.run_path("app", "late"))  # the rest of the boot brings the mount


def test_a_disk_that_the_owners_hook_attaches_at_the_start_is_not_waited_for_before(domain, below, tmp_path, monkeypatch):
    """Libvirt calls that hook before ours, which looks at the disk."""
    monkeypatch.setattr(_return, "BACK_LIMIT_S", -1)
    domain.states = ["not to be asked for"]
    (tmp_path / "qemu").touch()
    _start._start("app", {**domain.saved, "disks": below[0]})
    assert domain.starts == 1


def test_a_domain_whose_disk_does_not_come_is_tried_again(domain, below, monkeypatch):
    domain.states = ["shut off"]
    monkeypatch.setattr(_return, "BACK_LIMIT_S", -1)
    with pytest.raises(LiveUpdateError, match=r"app is shut off, not running: guest app: the host still has another file") as told:
        _start._start("app", {**domain.saved, "disks": below[0]})
    assert told.value.details["again"] and not domain.starts
    (own,) = below[0].values()
    own.update(inode=os.stat(next(iter(below[0]))).st_ino, size=4096)
    with pytest.raises(LiveUpdateError, match="3 bytes, not 4096"):
        _start._start("app", {**domain.saved, "disks": below[0]})
    _host_files.write_json(_host_files.run_path("app", "placed"), {})
    _start._start("app", {**domain.saved, "disks": below[0]})
    assert domain.starts == 1


def test_the_hook_gets_from_the_holder_what_identifies_the_disks(way, tmp_path, monkeypatch, below):
    offers = []
    monkeypatch.setattr(_start, "_offer", lambda record, *_memory: offers.append(record) or (tmp_path / "app.offer").touch())
    below[1]()
    _start.restore("app", {**way.journal(), "disks": below[0]})
    assert offers[0]["disks"] == below[0] and "start" in way.done


def test_an_offer_tells_what_identifies_the_disks(tmp_path, monkeypatch):
    monkeypatch.setattr(_host_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_keeper, "keep_open", lambda *_memory: os.getpid())
    _start._offer({"name": "app", "disks": {"/srv/a": {"inode": 7}}}, "h", [3])
    assert _host_files.read_json(str(tmp_path / "app.offer"))["disks"] == {"/srv/a": {"inode": 7}}
    _start._offer({"name": "app"}, "h", [3])  # from an older journal
    assert _host_files.read_json(str(tmp_path / "app.offer"))["disks"] == {}


DEVICES = {"devices": {"/dev/sdb": ["wwid a"]}}


@pytest.mark.parametrize("there", [True, False])
def test_a_cold_start_gets_no_preserved_memory(offered, memfd, tmp_path, there):
    """Its owner removed the saved state, or does not want it (force-boot): the domain would boot, and be told as restored."""
    image = tmp_path / "app.save"
    if there:
        image.touch()
        assert offered(memfd, image=image).is_symlink()
        return
    says = rf"guest app is not started: its saved state {image} was removed, .* run 'kvm-liveupdate discard app' first"
    with pytest.raises(LiveUpdateError, match=says):
        offered(memfd, image=image)
    assert not (tmp_path / "ram/libvirt/qemu/7-app/pc.ram").is_symlink() and not (tmp_path / "app.placed").exists()


@pytest.mark.parametrize("wrong", [{"hold": "another"}, {"started": 1}, "has run"])
def test_memory_of_another_hold_or_process_or_that_has_run_is_refused(offered, memfd, tmp_path, wrong):
    if wrong == "has run":
        (tmp_path / "app.resumed").touch()
    with pytest.raises(LiveUpdateError, match=r"its preserved memory is not available now.*discard app"):
        offered(memfd, **(wrong if isinstance(wrong, dict) else {}))
    assert not (tmp_path / "ram/libvirt/qemu/7-app/pc.ram").is_symlink()


@pytest.mark.parametrize("swapped", ["ram/libvirt", "ram/libvirt/qemu", "ram/libvirt/qemu/7-app"])
def test_root_follows_no_link_in_the_folders_of_qemus_user(offered, memfd, tmp_path, swapped):
    """Libvirt gives them to that user (qemu_driver.c, qemuStateInitialize), who could lead root anywhere."""
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / swapped).rename(elsewhere)
    (tmp_path / swapped).symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        offered(memfd)
    assert not list(elsewhere.rglob("pc.ram"))


def test_a_stand_in_gets_the_file_and_never_what_a_link_names(offered, memfd, tmp_path):
    there = tmp_path / "ram/libvirt/qemu/3-db"
    there.mkdir()
    (there / "pc.ram").write_text("its memory")
    before = set(os.listdir("/proc/self/fd"))
    assert offered(memfd, memory=str(there / "pc.ram")).read_text() == "its memory"
    assert set(os.listdir("/proc/self/fd")) == before
    (tmp_path / "ram/libvirt/qemu/7-app/pc.ram").unlink()
    (there / "pc.ram").unlink()
    (tmp_path / "secret").touch()
    (there / "pc.ram").symlink_to(tmp_path / "secret")
    with pytest.raises(LiveUpdateError, match="is not a regular file, so it cannot be its RAM"):
        offered(memfd, memory=str(there / "pc.ram"))


def test_a_domain_is_started_from_the_very_image_that_was_saved(tmp_path, monkeypatch):
    for name in ("GUESTS_STATE", "GUESTS_RUN"):
        monkeypatch.setattr(_host_files, name, str(tmp_path))
    image = tmp_path / "app.save"
    monkeypatch.setattr(_virsh, "image_path", lambda _name: str(image))
    monkeypatch.setattr(_virsh, "domain_xml", lambda _record: "<domain/>")
    monkeypatch.setattr(_save, "ignore_shared", lambda *_words: None)
    monkeypatch.setattr(_virsh, "virsh", lambda *_words, **_limit: "")
    monkeypatch.setattr(_save, "write_image", lambda *_words: image.write_text("image"))
    monkeypatch.setattr(_save, "ram_places", lambda _record: {})
    _host_files.write_json(_host_files.run_path("app", "held"), {"hold": "h"})
    record = {"name": "app", "provider": "libvirt", "uuid": "0-1-2", "uid": 1, "gid": 1, "backends": [{"path": "/ram/7-app/pc.ram"}]}
    saved = {**SAVED, **_save.save(record, str(tmp_path / "app.state"), True)}
    _return.verify(saved, saved["image"])
    image.write_text("imagE")
    with pytest.raises(LiveUpdateError, match=r"app\.save is not the state that was saved"):
        _return.verify(saved, saved["image"])
