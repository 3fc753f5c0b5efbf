# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import threading

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _agent, _away, _room, _virsh

GIB = 1 << 30
THERE = "qemu+ssh://hv2/system"
COMPLETE, PARTIAL = (name.ljust(92, b"\0") for name in (b"LibvirtQemudSave", b"LibvirtQemudPart"))
AWAY = {
    "guest": "app",
    "uuid": "u",
    "way": "save",
    "bytes": GIB,
    "was_running": True,
    "autostart": False,
    "destination": THERE,
    "migrate_uri": "tcp://10.0.0.2",
    "back_uri": "tcp://10.0.0.1",
}


class Hosts:
    """A domain on one of two hosts: its state at each, and what was asked of each."""

    def __init__(self, folder):
        self.image = folder / "app.save"
        self.state = {_away.HERE: "running"}
        self.autostart, self.calls, self.faults = set(), [], {}
        self.heeds_the_button, self.job = True, "None"
        self.capabilities = '{"return": [{"capability": "x-ignore-shared", "state": false}]}'
        self.released = threading.Event()

    def virsh(self, uri, *words, **limit):
        self.calls.append((words[0], uri))
        verb = "disable" if "--disable" in words else words[0]
        if verb in self.faults:
            self.faults.pop(verb)(uri, words)
        elif words[0] == "managedsave":
            self.state[uri] = "shut off"
            self.image.write_bytes(COMPLETE)
        elif words[0] == "shutdown" and self.heeds_the_button:
            self.state[uri] = "shut off"
        elif words[0] == "start":
            self.image.unlink(missing_ok=True)
            self.state[uri] = "running"
        elif words[0] == "migrate":
            assert words[:4] == ("migrate", "--live", "--persistent", "--undefinesource")
            assert words[4] == "--xml"
            with open(words[5], encoding="utf-8") as definition:
                assert definition.read() == "<domain/>"
            self.calls.append(("migrateuri", words[7] if words[6] == "--migrateuri" else ""))
            self.state[words[-1]] = self.state.pop(uri)
            self.autostart.discard(uri)
        elif verb == "disable":
            self.autostart.discard(uri)
        elif words[0] == "autostart":
            self.autostart.add(uri)
        elif words[0] == "domjobabort":
            self.released.set()
        elif words[0] == "dumpxml":
            return "<domain/>"
        elif words[0] == "qemu-monitor-command":
            assert words[1:] == ("u", '{"execute": "query-migrate-capabilities"}')
            return self.capabilities
        elif words[0] == "list":
            assert words[1:] == ("--all", "--uuid")
            return "other\n" + ("u\n" if uri in self.state else "")
        elif words[0] == "domjobinfo":
            return "Job type: " + self.job
        elif words[0] == "domstate":
            if uri not in self.state:
                raise LiveUpdateError("failed to get domain 'app'")
            return self.state[uri] + "\n\n"
        return ""

    def run(self, *words, **_limit):
        assert words[:3] == ("virsh", "--quiet", "--connect")
        return self.virsh(words[3], *words[4:])

    def asked(self):
        return [words for words in self.calls if words[0] not in ("domstate", "domjobinfo", "list")]


@pytest.fixture(name="hosts")
def two_hosts(tmp_path, monkeypatch):
    hosts = Hosts(tmp_path)
    monkeypatch.setattr(_virsh, "SAVED", str(tmp_path))
    monkeypatch.setattr(_virsh, "virsh", lambda *words, **limit: hosts.virsh(_away.HERE, *words, **limit))
    monkeypatch.setattr(_commands, "run", hosts.run)
    monkeypatch.setattr(_virsh, "is_defined", lambda name: _away.HERE in hosts.state)
    monkeypatch.setattr(_away, "_POLL_S", 0.001)
    monkeypatch.setattr(_away, "_starts_with_host", lambda name: _away.HERE in hosts.autostart)
    monkeypatch.setattr(_agent, "correct_clock", lambda name: hosts.calls.append(("clock", name)) or {})
    return hosts


def fail(text):
    def fault(_uri, _words):
        raise LiveUpdateError(text)

    return fault


@pytest.mark.parametrize("way", ["save", "migrate", "shutdown"])
def test_no_domain_leaves_without_its_ram(hosts, monkeypatch, way):
    """An undo could not switch QEMU's option off."""
    monkeypatch.setattr(_room, "free", lambda _path: 2 * GIB)
    asked = {**AWAY, "way": way}
    assert _away.obstacles(asked) == []
    hosts.capabilities = hosts.capabilities.replace("false", "true")
    assert [said.partition(",")[0] for said in _away.obstacles(asked)] == (
        [] if way == "shutdown" else ["QEMU's migration option x-ignore-shared is still on"]
    )
    for answer in ("no JSON", "{}", "null"):
        hosts.capabilities = answer
        assert [said.partition(" (")[0] for said in _away.obstacles(asked)] == (
            [] if way == "shutdown" else ["its QEMU does not tell whether a save or migration contains its RAM"]
        )
    hosts.faults["qemu-monitor-command"] = fail("no answer within 60 s")
    assert ["no answer within 60 s" in said for said in _away.obstacles(asked)] == ([] if way == "shutdown" else [True])


def test_what_is_kept_of_a_domain(monkeypatch, tmp_path):
    monkeypatch.setattr(_away, "AUTOSTART", str(tmp_path))
    monkeypatch.setattr(_virsh, "status", lambda record: "paused")
    (tmp_path / "app.xml").symlink_to("nowhere")
    record = {"name": "app", "backends": [{"size": GIB}, {"size": GIB}]}
    assert _away.about(record) == {"bytes": 2 * GIB, "was_running": False, "autostart": True}


@pytest.mark.parametrize(
    ("way", "was_running", "free", "defined", "says"),
    [
        ("save", True, 2 * GIB, True, []),
        ("save", False, 2 * GIB, True, []),
        ("save", True, GIB, True, ["saving it needs 1280 MiB below .*, where 1024 MiB are free"]),
        ("shutdown", True, 0, True, []),
        ("shutdown", False, 0, True, ["paused and cannot shut down"]),
        ("migrate", False, 0, True, []),
        ("shutdown", False, 0, False, ["has no persistent definition of it, .*virsh define", "paused"]),
    ],
)
def test_what_keeps_a_domain_from_leaving(hosts, monkeypatch, way, was_running, free, defined, says):
    monkeypatch.setattr(_room, "free", lambda path: free)
    monkeypatch.setattr(_virsh, "is_defined", lambda name: defined)
    found = _away.obstacles({**AWAY, "way": way, "was_running": was_running})
    assert len(found) == len(says)
    for sentence, text in zip(found, says, strict=True):
        assert re.search(text, sentence)


def test_a_saved_domain_goes_on_with_its_clock_corrected(hosts):
    _away.leave(AWAY, 5)
    assert not _away.is_back(AWAY)
    assert _away.come_back(AWAY, 5) == ""
    assert _away.is_back(AWAY)
    assert [words[0] for words in hosts.asked()] == ["managedsave", "start", "clock"]


def test_a_save_that_takes_too_long_is_cancelled_and_the_domain_runs_on(hosts):
    hosts.faults["managedsave"] = fail("virsh managedsave: no answer within 5 s")
    with pytest.raises(LiveUpdateError, match="guest app: virsh managedsave: no answer within 5 s; its state is now running"):
        _away.leave(AWAY, 5)
    assert hosts.released.is_set() and hosts.state == {_away.HERE: "running"}


@pytest.mark.parametrize("left", [None, PARTIAL, COMPLETE[:20]], ids=["gone", "half written", "cut off"])
def test_a_lost_saved_state_is_told(hosts, left):
    """Libvirt ignores a state that it had not completed when the host went down, and starts the domain from its disks."""
    _away.leave(AWAY, 5)
    _away.settle(AWAY)
    hosts.image.unlink()
    if left:
        hosts.image.write_bytes(left)
    with pytest.raises(
        LiveUpdateError, match=r"guest app does not run, and its saved state below .* is missing or incomplete\. To start it"
    ):
        _away.settle(AWAY)
    assert "was missing or incomplete, so it started from its disks" in _away.come_back(AWAY, 5)


def test_a_domain_whose_autostart_was_quicker_is_not_started_again(hosts):
    """Its autostart had the saved state: that is none to be missed."""
    hosts.state[_away.HERE] = "shut off"

    def already(uri, _words):
        hosts.state[uri] = "running"
        raise LiveUpdateError("Domain is already active")

    hosts.faults["start"] = already
    assert _away.come_back(AWAY, 5) == ""


def test_a_domain_that_cannot_be_started_says_why_at_once(hosts):
    hosts.state[_away.HERE] = "shut off"
    hosts.faults["start"] = fail("no such bridge")
    with pytest.raises(LiveUpdateError, match="guest app: no such bridge"):
        _away.come_back({**AWAY, "way": "shutdown"}, 60)


def test_libvirt_may_still_be_starting_and_is_waited_for_in_bounds(hosts):
    hosts.state[_away.HERE] = "shut off"
    hosts.faults["domstate"] = fail("cannot connect")
    _away.come_back({**AWAY, "way": "shutdown"}, 5)
    assert hosts.state[_away.HERE] == "running"
    hosts.state.clear()
    with pytest.raises(LiveUpdateError, match=r"not running within 0.01 s; last seen: unknown \(failed to get.*larger timeouts\.shutdown"):
        _away.come_back({**AWAY, "way": "shutdown"}, 0.01)


def test_a_paused_domain_is_back_when_it_is_paused(hosts):
    hosts.state[_away.HERE] = "paused"
    assert _away.is_back({**AWAY, "was_running": False})
    assert not _away.is_back(AWAY)


def test_a_domain_that_shuts_down_is_started_again(hosts):
    away = {**AWAY, "way": "shutdown"}
    _away.leave(away, 5)
    assert hosts.state == {_away.HERE: "shut off"}
    assert _away.come_back(away, 5) == ""
    assert [words[0] for words in hosts.asked()] == ["shutdown", "start"]


def test_a_domain_that_does_not_shut_down_is_never_killed(hosts):
    hosts.heeds_the_button = False
    with pytest.raises(
        LiveUpdateError, match=r"still running 0.01 s after the request to shut down.*raise the limit \(timeouts\.shutdown;"
    ) as caught:
        _away.leave({**AWAY, "way": "shutdown"}, 0.01)
    assert caught.value.details == {"settled": False}  # it may yet go off: its record is still needed
    assert hosts.asked() == [("shutdown", _away.HERE)]


def test_a_migrated_domain_is_defined_on_one_host_and_starts_with_that_one(hosts):
    away = {**AWAY, "way": "migrate", "autostart": True}
    _away.leave(away, 5)
    assert hosts.state == {THERE: "running"} and hosts.autostart == {THERE}
    assert _away.come_back(away, 5) == ""
    assert hosts.state == {_away.HERE: "running"} and hosts.autostart == {_away.HERE}
    assert [uri for words, uri in hosts.calls if words == "migrateuri"] == ["tcp://10.0.0.2", "tcp://10.0.0.1"]


@pytest.mark.parametrize("killed", [True, False])
def test_a_migration_back_that_was_cut_off_before_the_autostart_is_finished_by_the_next_call(hosts, killed):
    away = {**AWAY, "way": "migrate", "autostart": True}
    hosts.state, hosts.autostart = {THERE: "running"}, {THERE}

    def cut_off(_uri, _words):
        raise KeyboardInterrupt if killed else LiveUpdateError("no answer within 60 s")

    hosts.faults["autostart"] = cut_off
    with pytest.raises(KeyboardInterrupt if killed else LiveUpdateError) as caught:
        _away.come_back(away, 5)
    assert killed or "runs on qemu:///system, but its autostart setting is still off there (no answer" in str(caught.value)
    assert hosts.state == {_away.HERE: "running"} and not hosts.autostart and _away.is_back(away)
    _away.stay(away)
    assert hosts.autostart == {_away.HERE} and [words for words, _uri in hosts.calls].count("migrate") == 1


def test_a_domain_that_may_still_migrate_is_not_taken_for_one_that_stays(hosts):
    """Its migration could not be cancelled. Without its record, nobody would bring it back."""
    hosts.job, away = "Unbounded", {**AWAY, "way": "migrate", "autostart": True}
    with pytest.raises(LiveUpdateError, match=r"libvirt still works on it .* cancel it with 'virsh domjobabort u'"):
        _away.stay(away)
    assert not hosts.asked() and not hosts.autostart
    _away.stay({**away, "autostart": False})
    assert not hosts.asked()


def test_a_migration_there_that_was_cut_off_before_the_autostart_is_finished(hosts):
    away = {**AWAY, "way": "migrate", "autostart": True}
    hosts.faults["autostart"] = fail("no answer within 60 s")
    with pytest.raises(LiveUpdateError, match="its autostart setting is still off there"):
        _away.leave(away, 5)
    _away.settle(away)
    assert hosts.state == {THERE: "running"} and hosts.autostart == {THERE}


@pytest.mark.parametrize("operation", ["leave", "come_back"])
def test_a_host_that_crashes_when_its_domain_has_just_migrated_does_not_start_it_too(hosts, operation):
    """The definition leaves after the domain runs at its target."""
    source, target = (_away.HERE, THERE) if operation == "leave" else (THERE, _away.HERE)
    hosts.state, hosts.autostart = {source: "running"}, {source}

    def crash(_uri, _words):
        hosts.state = {source: "shut off", target: "running"}
        raise KeyboardInterrupt

    hosts.faults["migrate"] = crash
    with pytest.raises(KeyboardInterrupt):
        getattr(_away, operation)({**AWAY, "way": "migrate", "autostart": True}, 5)
    assert not hosts.autostart


@pytest.mark.parametrize(
    ("faults", "autostart", "details"),
    [
        ({"migrate": fail("no answer")}, {_away.HERE}, {}),
        ({"disable": fail("no answer")}, {_away.HERE}, {}),
        ({"migrate": fail("no answer"), "autostart": fail("no answer")}, set(), {"settled": False}),
    ],
)
def test_a_domain_that_did_not_migrate_starts_with_its_host(hosts, faults, autostart, details):
    """If that cannot be set, the domain stays on record, and the next call sets it."""
    hosts.autostart, hosts.faults, away = {_away.HERE}, dict(faults), {**AWAY, "way": "migrate", "autostart": True}
    with pytest.raises(LiveUpdateError, match="no answer") as caught:
        _away.leave(away, 5)
    assert hosts.autostart == autostart and caught.value.details == details
    assert _away.is_back(away)
    _away.stay(away)
    assert hosts.autostart == {_away.HERE}


@pytest.mark.parametrize("state", ["in shutdown", "pmsuspended", "shut off"])
def test_a_domain_that_did_not_migrate_and_does_not_run_stays_on_record_with_its_autostart(hosts, state):
    def fault(uri, _words):
        hosts.state[uri] = state
        raise LiveUpdateError("no answer")

    hosts.faults["migrate"] = fault
    with pytest.raises(LiveUpdateError, match="no answer") as caught:
        _away.leave({**AWAY, "way": "migrate", "autostart": True}, 5)
    assert caught.value.details == {"settled": False}


def test_libvirt_chooses_the_way_where_none_is_given(hosts):
    _away.leave({**AWAY, "way": "migrate", "migrate_uri": None}, 5)
    assert ("migrateuri", "") in hosts.calls and not hosts.autostart


def test_a_migration_that_takes_too_long_is_cancelled_before_virsh_is(hosts):
    def long(_uri, _words):
        assert hosts.released.wait(10)
        raise LiveUpdateError("operation aborted: migration out job: canceled by client")

    hosts.faults["migrate"] = long
    with pytest.raises(
        LiveUpdateError,
        match=r"canceled by client. The limit was 0.01 s. Its state on qemu:///system is now running, and on"
        r" qemu\+ssh.*unknown.*If it needs more time, raise timeouts\.migrate ",
    ):
        _away.leave({**AWAY, "way": "migrate"}, 0.01)
    assert hosts.state == {_away.HERE: "running"}


def test_an_order_to_shut_down_that_may_have_been_given_stands(hosts):
    hosts.faults["shutdown"] = fail("virsh shutdown: no answer within 60 s")
    with pytest.raises(LiveUpdateError, match="no answer within 60 s; the guest may have got the request") as caught:
        _away.leave({**AWAY, "way": "shutdown"}, 5)
    assert caught.value.details == {"settled": False}


@pytest.mark.parametrize(
    ("job", "faults", "details"),
    [
        ("None", {}, {}),
        ("Unbounded", {}, {"settled": False}),
        ("None", {"domjobinfo": "no answer"}, {"settled": False}),
    ],
)
@pytest.mark.parametrize(("way", "verb"), [("save", "managedsave"), ("migrate", "migrate")])
def test_a_domain_that_libvirt_is_still_at_work_on_may_yet_leave(hosts, way, verb, job, faults, details):
    hosts.job = job
    hosts.faults = {verb: fail("no answer"), **{verb: fail(text) for verb, text in faults.items()}}
    with pytest.raises(LiveUpdateError) as caught:
        _away.leave({**AWAY, "way": way}, 5)
    assert caught.value.details == details


def test_a_job_that_ended_by_itself_needs_no_cancelling(hosts):
    hosts.faults |= {"managedsave": fail("no room"), "domjobabort": fail("no job is active")}
    with pytest.raises(LiveUpdateError, match="guest app: no room; its state is now running"):
        _away.leave(AWAY, 5)


@pytest.mark.parametrize(
    ("state", "answers", "remedy"),
    [
        ({THERE: "shut off"}, True, r"Start or resume it on qemu\+ssh"),
        ({_away.HERE: "shut off"}, False, r"answers \('virsh --connect qemu\+ssh://hv2/system list --all'\), then run this again$"),
        (
            {_away.HERE: "shut off"},
            True,
            r"cut off, for example by a reboot .* Make sure .* Then start it here with 'virsh start u', and run",
        ),
        ({}, True, r"Find the host .* remove its record on this host: /var/lib/kvm-liveupdate/away/app\.json$"),
        ({_away.HERE: "paused"}, True, r"It is on this host\. Run 'virsh resume u' here, then run this again"),
        ({_away.HERE: "pmsuspended"}, True, r"It is on this host\. Run 'virsh dompmwakeup u' here"),
    ],
)
@pytest.mark.parametrize("operation", ["come_back", "settle"])
def test_a_domain_that_does_not_run_on_its_destination_is_not_started_here(hosts, state, answers, remedy, operation):
    """It may be there after all, and its disks are in use. The operator starts it on the host that has it."""
    hosts.state, away = state, {**AWAY, "way": "migrate", "autostart": True}
    if not answers:
        hosts.faults["list"] = fail("cannot connect")
    with pytest.raises(LiveUpdateError, match=rf"on qemu\+ssh://hv2/system it is (shut off|unknown).*{remedy}"):
        _away.come_back(away, 5) if operation == "come_back" else _away.settle(away)
    assert not hosts.asked() and hosts.state == state


@pytest.mark.parametrize(
    ("was_running", "remedy"),
    [
        (True, r"It is on this host, as before\. Run this again"),
        (False, r"It is on this host\. Run 'virsh suspend u' here, then run this again"),
    ],
)
def test_a_domain_that_runs_here_is_paused_only_if_it_was_paused_before(hosts, was_running, remedy):
    """Somebody has resumed it meanwhile. It would be on record for ever."""
    with pytest.raises(LiveUpdateError, match=remedy):
        _away.settle({**AWAY, "way": "migrate", "was_running": was_running})


def test_limits():
    assert _away.limit_s({**AWAY, "way": "shutdown"}) == 300
    assert _away.limit_s({**AWAY, "way": "migrate"}) == 300 + 1024 / 20


ASKED_FOR = "  <seclabel type='dynamic' model='apparmor'>\n    <baselabel>libvirt-1</baselabel>\n  </seclabel>\n"
MADE_UP = "  <seclabel type='dynamic' model='apparmor' relabel='yes'>\n    <label>libvirt-1</label>\n  </seclabel>\n"


@pytest.mark.parametrize(
    ("labels", "left"),
    [
        (MADE_UP, ""),
        ("  <seclabel type='dynamic' model='dac' relabel='yes'/>\n" + MADE_UP, ""),
        ("  <seclabel type='none' model='apparmor'/>\n" + MADE_UP, "  <seclabel type='none' model='apparmor'/>\n"),
        (ASKED_FOR, ASKED_FOR),
        (MADE_UP.replace("dynamic", "static"), MADE_UP.replace("dynamic", "static")),
    ],
)
def test_what_a_security_module_made_up_stays_behind(labels, left):
    assert _away.portable(f"<domain>\n  <name>app</name>\n{labels}</domain>\n") == f"<domain>\n  <name>app</name>\n{left}</domain>\n"


def test_only_the_labels_of_the_domain_itself_stay_behind():
    """The same text may stand in the owner's metadata, and a disk has labels too."""
    owners = f"  <metadata><![CDATA[\n{MADE_UP}]]></metadata>\n  <devices>\n    <disk>\n{MADE_UP}    </disk>\n  </devices>\n"
    assert _away.portable(f"<domain>\n{owners}{MADE_UP}</domain>\n") == f"<domain>\n{owners}</domain>\n"
