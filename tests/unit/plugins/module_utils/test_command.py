# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import json
import os
import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _command
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _discard, _hold, _paused, _providers, _rehearsal, _unclaimed
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early, _journal, _lock, _return, _session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _systemd, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _hook, _start, _virsh
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _save as _qemu_save
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _start as _qemu_start
from ansible_collections.kvm.liveupdate.plugins.module_utils.trial import _watch
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _jump, _rest_of_boot


@pytest.fixture(name="virsh")
def virsh_calls(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(_virsh, "SAVED", str(tmp_path / "saved"))
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_virsh, "virsh", lambda *words, **_limit: calls.append(words) or "")
    return calls


@pytest.fixture(name="stored", autouse=True)
def what_units_store(monkeypatch, tmp_path_factory):
    """The units that hold a session; what is forgotten leaves them."""
    stored = set()
    run = tmp_path_factory.mktemp("run")
    for name, path in {"RUN": "", "GUESTS_RUN": "guests", "LOCK": "lock", "UPDATE": "update.json"}.items():
        monkeypatch.setattr(_files, name, str(run / path))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    monkeypatch.setattr(_systemd, "fdstore", lambda unit: [_session.FDNAME] if unit in stored else [])
    ended = set()

    def forget(unit, pid, _name):
        assert not pid and {("stop", unit), ("reset-failed", unit)} <= ended, "systemd cleans what has ended only"
        stored.discard(unit)

    monkeypatch.setattr(_commands, "run", lambda *command: ended.add((command[1], command[-1])) or "")
    monkeypatch.setattr(_systemd, "forget_fd", forget)
    monkeypatch.setattr(_providers, "known", dict)
    return stored


@pytest.fixture(name="late", autouse=True)
def no_longer_started_early(monkeypatch):
    units = []
    monkeypatch.setattr(_early, "start_early", lambda unit, wanted: wanted or units.append(unit))
    return units


# The words of the command, and what they call with what.
WORDS = {
    "run web -- qemu -m 1": (_qemu_start, "run", ("web", ["qemu", "-m", "1"])),
    "run web -- qemu": (_qemu_start, "run", ("web", ["qemu"])),
    "hold web": (_hold, "serve", ("web",)),
    "hook web": (_hook, "hook", ("web",)),
    "rehearse web": (_rehearsal, "run", ("web",)),
    "end-rehearsal web": (_rehearsal, "end_cut_off", ("web",)),
    "jump": (_jump, "jump", ()),
    "recover": (_jump, "recover", ()),
    "boot": (_rest_of_boot, "start_rest", ()),
    "give-up-unclaimed": (_unclaimed, "give_up", ()),
    "watch-devices": (_watch, "watch", ()),
    "status": (_command, "_status", ()),
    "resume web": (_command, "_resume", ("web",)),
    "discard web": (_discard, "discard", ("web",)),
}


@pytest.fixture(name="called")
def what_is_called(monkeypatch):
    calls = []
    for module, name, _arguments in WORDS.values():
        monkeypatch.setattr(module, name, lambda *arguments, to=(module, name): calls.append((*to, arguments)) or 0)
    return calls


@pytest.mark.parametrize("words", WORDS)
def test_each_word_does_what_it_says_and_is_in_the_usage(monkeypatch, called, words):
    monkeypatch.setattr("sys.argv", ["kvm-liveupdate", *words.split()])
    assert _command.main() == 0
    assert called == [WORDS[words]]
    assert any(line.startswith(f"  {words.split()[0]} ") for line in _command.USAGE.splitlines())


@pytest.mark.parametrize(
    "words",
    [
        "",
        "run web --",
        "run web qemu -m",
        "run web qemu -- -m",
        "web run -- qemu",
        "start web -- qemu",
        *(
            f"{word}{more}"
            for word in ("hold", "hook", "rehearse", "end-rehearsal", "resume", "discard")
            for more in ("", " a b", " a -- b")
        ),
        *(f"web {word}" for word in ("hold", "hook", "rehearse", "end-rehearsal", "resume", "discard")),
        *(f"{word} web" for word in ("jump", "recover", "boot", "give-up-unclaimed", "watch-devices", "status")),
    ],
)
def test_what_is_no_command_calls_nothing_and_prints_the_usage(capsys, called, words):
    assert _command.main(words.split()) == 2
    assert not called
    said = capsys.readouterr().err
    assert (
        said.startswith("usage: kvm-liveupdate COMMAND\n\nFor the operator:\n  status ")
        and "\nIn systemd units and libvirt's hook:\n" in said
    )


def test_the_exit_code_of_the_jump_is_passed_on(monkeypatch):
    monkeypatch.setattr(_jump, "jump", lambda: 1)
    assert _command.main(["jump"]) == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), LiveUpdateError("no room")])
def test_an_error_is_told_and_is_no_success(monkeypatch, capsys, error):
    def serve(_name):
        raise error

    monkeypatch.setattr(_hold, "serve", serve)
    assert _command.main(["hold", "app"]) == 1
    assert capsys.readouterr().err == f"kvm-liveupdate: {error}\n"


@pytest.mark.parametrize(
    ("journal", "restored"),
    [
        ({"provider": "libvirt", "state": "saved", "boot_id": "before"}, True),
        ({"provider": "libvirt", "state": "saved", "boot_id": "now"}, False),
        ({"provider": "libvirt", "state": "restored", "boot_id": "before"}, False),
        ({"provider": "qemu", "state": "saved", "boot_id": "before"}, False),
        ({}, False),
    ],
)
def test_only_a_domain_that_was_saved_before_this_boot_is_restored_by_its_unit(monkeypatch, virsh, journal, restored):
    done = []
    if journal:
        _files.write_json(_files.journal_path("app"), {"guest": "app", **journal})
    monkeypatch.setattr(_start, "awaited", lambda name: {})
    monkeypatch.setattr(_start, "restore", lambda name, told: done.append(("restore", name, told)))
    monkeypatch.setattr(_hold, "serve", lambda name: done.append(("hold", name)))
    assert _command.main(["hold", "app"]) == 0
    assert done == [("restore", "app", {"guest": "app", **journal}) if restored else ("hold", "app")]


def test_a_domain_that_a_power_cut_left_with_a_state_alone_can_be_given_up(tmp_path, monkeypatch, virsh, late):
    (tmp_path / "app.state").write_text("{}")
    monkeypatch.setattr(_virsh, "is_defined", lambda name: name == "app")
    assert _command.main(["discard", "app"]) == 0
    assert virsh == [("managedsave-remove", "app"), ("domstate", "app")]
    assert not (tmp_path / "app.state").exists()
    assert late == ["kvm-liveupdate-hold@app.service"]


@pytest.fixture(name="image")
def saved_image_of_app(virsh, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    monkeypatch.setattr(_virsh, "SAVED", str(folder))
    monkeypatch.setattr(_virsh, "is_defined", lambda name: True)
    (folder / "app.save").touch()
    return folder / "app.save"


@pytest.mark.parametrize("running", [True, False])
def test_no_start_finds_an_image_that_libvirt_does_not_know(tmp_path, monkeypatch, image, virsh, running):
    """It was written behind libvirt's back, so managedsave-remove does nothing; or an undo could not remove it, and the domain runs."""
    if running:
        app = {"name": "app", "provider": "libvirt", "unit": "kvm-liveupdate-hold@app.service", "uuid": "u", "pid": 7, "started": 70}
        monkeypatch.setattr(_providers, "known", lambda: {"app": app})
        monkeypatch.setattr(_hold, "release", lambda record: True)
        monkeypatch.setattr(_virsh, "status", lambda record: "running")
    (tmp_path / "app.state").write_text("{}")
    assert _command.main(["discard", "app"]) == 0
    assert virsh == [("managedsave-remove", "app"), ("domstate", "app")] and not image.exists() and not (tmp_path / "app.state").exists()


@pytest.mark.parametrize("removed", [True, False])
def test_an_image_that_somebody_removed_by_hand_is_discarded_too(tmp_path, image, monkeypatch, removed):
    """Libvirt still knows of it, so managedsave-remove fails."""

    def virsh(verb, *_words, **_limit):
        if verb == "managedsave-remove":
            raise LiveUpdateError("virsh managedsave-remove app: cannot remove the file")
        return "shut off\n"

    monkeypatch.setattr(_virsh, "virsh", virsh)
    if removed:
        image.unlink()
    (tmp_path / "app.state").write_text("{}")
    assert _command.main(["discard", "app"]) == 0
    assert not image.exists() and not (tmp_path / "app.state").exists()


@pytest.mark.parametrize("state", ["paused", "in shutdown"])
def test_a_domain_that_another_program_starts_keeps_its_guard(tmp_path, image, monkeypatch, capsys, state):
    monkeypatch.setattr(_virsh, "virsh", lambda verb, *_words, **_limit: f"{state}\n" if verb == "domstate" else "")
    (tmp_path / "app.state").write_text("{}")
    assert _command.main(["discard", "app"]) == 1
    said = capsys.readouterr().err
    assert f"guest app is {state}, so another program may be starting it" in said and "'kvm-liveupdate discard app' again" in said
    assert (tmp_path / "app.state").exists()


def test_a_domain_is_guarded_as_long_as_its_image_cannot_be_removed(tmp_path, image, capsys):
    image.unlink()
    image.mkdir()
    _files.write_json(_files.journal_path("app"), {"provider": "libvirt", "state": "saved", "unit": "u.service"})
    (tmp_path / "app.state").write_text("{}")
    assert _command.main(["discard", "app"]) == 1
    said = capsys.readouterr().err
    assert f"the saved image {image}, which lacks the guest's RAM, cannot be removed: " in said
    assert "Correct this, then run 'kvm-liveupdate discard app'. The guest can start only after that" in said
    assert (tmp_path / "app.state").exists() and _journal.recorded("app")["state"] == "saved"
    image.rmdir()
    assert _command.main(["discard", "app"]) == 0
    assert not (tmp_path / "app.state").exists() and not _journal.recorded("app")


@pytest.mark.parametrize("left", ["nothing", "a state of a unit", "memory"])
def test_a_save_of_the_owners_is_never_discarded(tmp_path, image, virsh, monkeypatch, left, capsys):
    """Memory alone is left of a domain that an undo could not resume, and whose QEMU was ended then, as the undo advises."""
    released = []
    monkeypatch.setattr(_hold, "release", lambda record: released.append(record["unit"]) or True)
    if left == "a state of a unit":
        (tmp_path / "app.state").write_text("QEVM")
    elif left == "memory":
        _files.write_json(_files.run_path("app", "held"), {"session": "kvm-1", "unit": "kvm-liveupdate-hold@app.service"})
    assert _command.main(["discard", "app"]) == (1 if left == "nothing" else 0)
    assert ("has no saved state to discard" in capsys.readouterr().err) is (left == "nothing")
    assert released == (["kvm-liveupdate-hold@app.service"] if left == "memory" else [])
    assert not virsh and image.exists() and not (tmp_path / "app.state").exists()


def test_what_is_left_of_an_earlier_qemu_of_a_running_guest_is_released(runs, virsh, capsys):
    """An undo could not resume it, and its owner ended that QEMU and started the guest again: the host has its memory twice."""
    released = runs("running")
    _files.write_json(_files.run_path("web", "held"), {"session": "kvm-1", "unit": "web.service", "pid": 1, "started": 1})
    assert _command.main(["discard", "web"]) == 0
    assert released and not capsys.readouterr().err


def test_what_a_running_guest_holds_is_not_discarded(runs, virsh, capsys):
    released = runs("running")
    _files.write_json(_files.run_path("web", "held"), {"session": "kvm-1", "unit": "web.service", "pid": 7, "started": 70})
    assert _command.main(["discard", "web"]) == 1
    assert "has no saved state to discard" in capsys.readouterr().err and not released


def test_the_status_tells_of_guests_that_are_not_back(tmp_path, monkeypatch, capsys, virsh):
    (tmp_path / "web.json").write_text('{"state": "saved", "unit": "web.service"}')
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "no-update"))
    monkeypatch.setattr(_files, "AWAY", str(tmp_path / "nobody"))
    monkeypatch.setattr(_providers, "known", lambda: {"db": {"name": "db"}, "app": {"name": "app"}})
    monkeypatch.setattr(_hold, "held", lambda record: {"hold": "h"} if record["name"] == "db" else {})
    assert _command.main(["status"]) == 0
    assert not virsh
    printed = capsys.readouterr().out
    told = json.loads(printed)
    assert printed == json.dumps(told, indent=2, sort_keys=True) + "\n"
    assert told["guests"] == {
        "app": {"running": True, "held": False, "journal": {}},
        "db": {"running": True, "held": True, "journal": {}},
        "web": {"running": False, "held": False, "journal": {"state": "saved", "unit": "web.service"}},
    }
    assert told["update"] == {}


@pytest.mark.parametrize(
    ("boot", "kexec", "outcome"), [("now", True, "pending"), ("before", True, "jumped"), ("before", False, "rebooted")]
)
def test_the_status_says_how_the_last_update_ended(tmp_path, monkeypatch, capsys, virsh, boot, kexec, outcome):
    """The state is that of the old kernel, which never says more than that it jumps."""
    monkeypatch.setattr(_files, "AWAY", str(tmp_path / "nobody"))
    monkeypatch.setattr(_this_boot, "kernel", lambda: {"release": "7.3.4", "version": "#1"})
    monkeypatch.setattr(_this_boot, "by_kexec", lambda: kexec)
    update = {"id": "u", "state": "jumping", "boot_id": boot, "image": {"release": "7.3.4"}, "guests": ["db", "web"]}
    _files.write_json(_files.UPDATE, update)
    _files.write_json(_files.journal_path("db"), {"state": "restored", "unit": "db.service"})
    assert _command.main(["status"]) == 0
    told = json.loads(capsys.readouterr().out)["update"]
    assert (told["state"], told["outcome"]) == ("jumping", outcome)
    assert told["discarded"] == (["web"] if outcome == "jumped" else [])  # before the jump and after an undo, guests have no journal


@pytest.mark.parametrize("state", ["restored", "lost"])
def test_the_record_of_a_guest_that_is_gone_for_good_is_discarded_and_nothing_else(monkeypatch, capsys, virsh, state):
    """Nothing of it is saved. What runs in its unit now is no guest of that update, so the unit is not stopped."""
    monkeypatch.setattr(_commands, "run", lambda *command: 1 // 0)
    monkeypatch.setattr(_systemd, "show", lambda unit, *_names: {"ActiveState": "inactive"})
    _files.write_json(_files.journal_path("web"), {"state": state, "unit": "web.service"})
    assert _command.main(["discard", "web"]) == 0
    assert _journal.of_guest("web") == {} and not virsh and not capsys.readouterr().err
    assert _command.main(["discard", "web"]) == 1
    assert "has no saved state to discard" in capsys.readouterr().err


@pytest.mark.parametrize("amiss", ["", "the unit has ended", "its memory is not lost", "the guest runs"])
def test_the_repeated_start_of_a_domain_whose_memory_is_lost_can_be_stopped(runs, virsh, monkeypatch, capsys, amiss):
    """Somebody wants to start it on another host."""
    done = []
    runs("running")
    if amiss != "the guest runs":
        monkeypatch.setattr(_providers, "known", dict)
    _files.write_json(_files.journal_path("web"), {"state": "restored" if amiss == "its memory is not lost" else "lost", "guest": "web"})
    monkeypatch.setattr(_systemd, "show", lambda unit, *_names: {"ActiveState": "failed" if amiss == "the unit has ended" else "active"})
    monkeypatch.setattr(_commands, "run", lambda *command: done.append(command) or "")
    assert _command.main(["discard", "web"]) == int(amiss == "the guest runs")
    assert done == ([] if amiss else [("systemctl", "stop", "--", "kvm-liveupdate-hold@web.service")])
    assert ("has no saved state to discard" in capsys.readouterr().err) is (amiss == "the guest runs")
    assert bool(_journal.recorded("web")) is (amiss == "the guest runs") and not virsh


def test_a_start_that_libvirt_goes_on_with_is_told_before_somebody_starts_the_guest_elsewhere(runs, virsh, monkeypatch, capsys):
    runs("running")
    here, known = [], _providers.known
    monkeypatch.setattr(_providers, "known", lambda: known() if here else {})
    _files.write_json(_files.journal_path("web"), {"state": "lost", "guest": "web"})
    monkeypatch.setattr(_systemd, "show", lambda unit, *_names: {"ActiveState": "active"})
    monkeypatch.setattr(_commands, "run", lambda *command: here.append("web") or "")
    assert _command.main(["discard", "web"]) == 1
    assert "from its disks. To run it on another host, first stop it here, then run 'kvm-liveupdate discard web'" in capsys.readouterr().err
    assert _journal.recorded("web")


def test_where_nothing_is_saved_nothing_is_given_up(capsys, virsh):
    assert _command.main(["discard", "app"]) == 1
    assert "has no saved state to discard" in capsys.readouterr().err
    assert not virsh


def test_a_domain_that_is_gone_can_be_given_up_with_its_memory(tmp_path, monkeypatch, virsh, stored):
    """It was undefined, or migrated: libvirt would answer with an error for ever, and its host would be refused for ever."""
    (tmp_path / "app.json").write_text('{"provider": "libvirt", "state": "saved", "unit": "kvm-liveupdate-hold@app.service"}')
    stored.update(("kvm-liveupdate-hold@app.service", "web.service"))
    monkeypatch.setattr(_virsh, "is_defined", lambda name: False)
    assert _command.main(["discard", "app"]) == 0
    assert not virsh and not list(tmp_path.iterdir()) and stored == {"web.service"}


def test_a_guest_of_another_provider_is_not_libvirts(tmp_path, monkeypatch, virsh, late, stored):
    (tmp_path / "web.json").write_text('{"state": "saved", "unit": "web.service"}')
    (tmp_path / "web.state").write_text("QEVM")
    monkeypatch.setattr(_virsh, "is_defined", lambda name: True)  # one of libvirt's has its name
    stored.add("web.service")
    assert _command.main(["discard", "web"]) == 0
    assert not virsh and not list(tmp_path.iterdir()) and not stored
    assert late == ["web.service"]


@pytest.mark.parametrize("boot", ["before", "now"])
def test_a_domain_whose_save_was_cut_off_is_brought_back_by_the_next_boot_only(tmp_path, monkeypatch, virsh, boot):
    done = []
    cut_off = {"provider": "libvirt", "state": "saved", "guest": "app", "boot_id": boot}
    monkeypatch.setattr(_start, "awaited", lambda name: cut_off)
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    monkeypatch.setattr(_start, "restore", lambda name, journal: done.append(journal))
    monkeypatch.setattr(_hold, "serve", done.append)
    assert _command.main(["hold", "app"]) == 0 and not virsh
    assert done == ([cut_off] if boot == "before" else ["app"])
    assert _journal.of_guests() == ({"app": cut_off} if boot == "before" else {})


def test_nothing_is_given_up_during_another_operation_or_an_update(tmp_path, monkeypatch, capsys, virsh, stored):
    """The jump saves a guest, and its unit holds its memory, at that moment."""
    monkeypatch.setattr(_lock, "busy", lambda: False)
    _files.write_json(_files.journal_path("web"), {"state": "saved", "unit": "web.service"})
    with _lock.Lock():
        assert _command.main(["discard", "web"]) == 1
    assert "another live update operation runs" in capsys.readouterr().err
    for state in ("committed", "stopping", "saving", "jumping"):
        _files.write_json(_files.UPDATE, {"state": state, "boot_id": "now"})
        assert _command.main(["discard", "web"]) == 1
        assert f"an update of this host is in the step '{state}'" in capsys.readouterr().err
    assert (tmp_path / "web.json").exists()
    _files.write_json(_files.UPDATE, {"state": "aborted", "boot_id": "now"})
    assert _command.main(["discard", "web"]) == 0


def test_an_end_that_only_run_knows_keeps_nobody_from_giving_up(tmp_path, monkeypatch, virsh, stored):
    def full(_update):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "OUTCOME", str(tmp_path / "outcome"))
    monkeypatch.setattr(_journal, "record", full)
    _files.write_json(_files.journal_path("web"), {"state": "saved", "unit": "web.service"})
    _files.write_json(_files.UPDATE, {"id": "u", "state": "saving", "boot_id": "now"})
    _files.write_json(_files.OUTCOME, {"id": "u", "state": "aborted", "error": "no room"})
    assert _command.main(["discard", "web"]) == 0


def test_memory_without_a_record_of_a_save_is_released_with_the_state(tmp_path, virsh, stored, monkeypatch):
    """An undone update kept a state, and the guest has ended since."""
    released = []
    (tmp_path / "web.state").touch()
    _files.write_json(_files.run_path("web", "trying"), {})
    monkeypatch.setattr(_hold, "release_ended", released.append)
    monkeypatch.setattr(_virsh, "is_defined", lambda name: False)
    assert _command.main(["discard", "web"]) == 0
    assert released == ["web"] and not list(tmp_path.iterdir()) and not os.path.exists(_files.run_path("web", "trying"))


@pytest.mark.parametrize("with_qemu", [True, False])
def test_whether_a_guest_is_back_is_settled_before_anything_is_discarded(tmp_path, virsh, runs, monkeypatch, with_qemu):
    runs("running")
    did = []
    if not with_qemu:
        monkeypatch.setattr(_providers, "known", dict)
    monkeypatch.setattr(_paused, "settle_running", lambda record: did.append(("running", record["name"])))
    monkeypatch.setattr(_return, "settle_seen", lambda name: did.append(("seen", name)))
    assert _command.main(["discard", "web"]) == 1
    assert did == ([("running", "web")] if with_qemu else []) + [("seen", "web")]


def test_a_guest_that_we_left_paused_is_not_discarded_and_the_way_on_is_told(tmp_path, capsys, virsh, runs, monkeypatch):
    released = runs("paused")
    (tmp_path / "web.state").touch()
    monkeypatch.setattr(_paused, "by", lambda record: "update")
    assert _command.main(["discard", "web"]) == 1
    said = capsys.readouterr().err
    assert "guest web was paused by an update that was undone" in said and "kvm-liveupdate resume web" in said
    assert not released and (tmp_path / "web.state").exists()


class Machine:
    def __init__(self, state):
        self.status = lambda _record: state
        self.discard = _qemu_save.discard


@pytest.fixture(name="runs")
def guest_whose_qemu_is_there(monkeypatch):
    released = []
    record = {"name": "web", "provider": "qemu", "unit": "web.service", "pid": 7, "started": 70}
    monkeypatch.setattr(_providers, "known", lambda: {"web": record})
    monkeypatch.setattr(_hold, "release", lambda record: released.append(record["name"]))

    def runs(state):
        monkeypatch.setattr(_providers, "of", lambda _record: Machine(state))
        return released

    return runs


@pytest.mark.parametrize("journal", [{}, {"state": "restored", "unit": "web.service"}, {"state": "lost", "unit": "web.service"}])
def test_a_guest_that_runs_and_is_held_keeps_its_hold(monkeypatch, capsys, virsh, runs, journal):
    released = runs("running")
    if journal:
        _files.write_json(_files.journal_path("web"), journal)
    monkeypatch.setattr(_commands, "run", lambda *command: 1 // 0)
    assert _command.main(["discard", "web"]) == 1
    assert "has no saved state to discard" in capsys.readouterr().err
    assert not released and _journal.of_guest("web") == journal


def test_a_guest_that_is_on_its_way_back_is_not_given_up(tmp_path, monkeypatch, capsys, virsh, runs):
    released = runs("inmigrate")
    _files.write_json(_files.journal_path("web"), {"state": "saved", "unit": "web.service", "boot_id": "before"})
    monkeypatch.setattr(_commands, "run", lambda *command: 1 // 0)
    assert _command.main(["discard", "web"]) == 1
    assert "stop it first ('systemctl stop web.service'" in capsys.readouterr().err
    assert not released and (tmp_path / "web.json").exists()


@pytest.mark.parametrize(("state", "code"), [("running", 0), ("paused", 1)])
def test_what_an_undone_update_kept_of_a_guest_is_given_up_when_it_runs(tmp_path, monkeypatch, capsys, virsh, runs, state, code):
    """Its unit is not stopped for that, and what holds its memory is let go."""
    released = runs(state)
    (tmp_path / "web.state").touch()
    monkeypatch.setattr(_commands, "run", lambda *command: 1 // 0)
    assert _command.main(["discard", "web"]) == code
    assert (released, (tmp_path / "web.state").exists()) == ((["web"], False) if state == "running" else ([], True))


@pytest.mark.parametrize(
    ("provider", "ends"),
    [("qemu", "('systemctl stop u.service')"), ("libvirt", "('systemctl stop u.service', 'virsh destroy 1-2')")],
)
def test_a_guest_that_may_be_loading_its_state_is_stopped_by_the_commands_that_are_named(monkeypatch, provider, ends):
    monkeypatch.setattr(_paused, "reasons", lambda _record: [])
    monkeypatch.setattr(_providers, "of", lambda _record: types.SimpleNamespace(status=lambda _guest: "paused"))
    with pytest.raises(LiveUpdateError) as told:
        _discard._refuse({"name": "web", "provider": provider, "unit": "u.service", "uuid": "1-2"}, {"state": "saved"})
    assert told.value.message.endswith(f"stop it first {ends}, then run 'kvm-liveupdate discard web' again")


def test_a_guest_that_is_back_has_nothing_to_give_up(tmp_path, capsys, virsh, runs):
    runs("running")
    saved = {"state": "saved", "guest": "web", "hold": "h", "unit": "web.service", "boot_id": "before", "times": {"paused": 1.0}}
    _files.write_json(_files.journal_path("web"), saved)
    _files.write_json(_files.run_path("web", "resumed"), {})
    assert _command.main(["discard", "web"]) == 1
    assert _journal.recorded("web")["state"] == "restored"


def test_a_guest_that_nothing_of_ours_keeps_paused_is_its_owners(capsys, virsh, runs, monkeypatch):
    runs("paused")
    monkeypatch.setattr(_providers, "find", lambda name: _providers.known()[name])
    whole = [False, True]  # it runs, and an undo could not have QEMU put the RAM into its saves again
    monkeypatch.setattr(_paused, "whole_saves", lambda record: whole.pop(0))
    assert _command.main(["resume", "web"]) == 1
    assert "was not paused by an update or a rehearsal. To resume it anyway, use 'cont' in its QEMU monitor" in capsys.readouterr().err
    assert _command.main(["resume", "web"]) == 0
    with _lock.Lock():
        assert _command.main(["resume", "web"]) == 1
    assert "another live update operation runs" in capsys.readouterr().err


def test_a_guest_that_we_left_paused_is_resumed_whatever_is_recorded(capsys, virsh, runs, monkeypatch):
    """What its owner did since then is settled first: it may run already."""
    runs("paused")
    did = []
    monkeypatch.setattr(_providers, "find", lambda name: _providers.known()[name])
    monkeypatch.setattr(_paused, "settle_running", lambda record: did.append("settle"))
    monkeypatch.setattr(_paused, "let_go_on", lambda record: did.append("resume") or ["it was paused by an update"])
    monkeypatch.setattr(_paused, "whole_saves", lambda record: False)
    _files.write_json(_files.journal_path("web"), {"state": "saved", "guest": "web", "unit": "web.service", "boot_id": "now"})
    assert _command.main(["resume", "web"]) == 0
    assert did == ["settle", "resume"] and not capsys.readouterr().err


def test_a_guest_that_is_still_loaded_is_left_alone(capsys, virsh, runs, monkeypatch):
    """To switch the RAM into its saves now would make the load fail."""
    runs("inmigrate")
    monkeypatch.setattr(_providers, "find", lambda name: _providers.known()[name])
    monkeypatch.setattr(_paused, "whole_saves", lambda record: 1 // 0)
    saved = {"state": "saved", "guest": "web", "hold": "h", "unit": "web.service", "boot_id": "before", "was_running": True}
    _files.write_json(_files.journal_path("web"), saved)
    assert _command.main(["resume", "web"]) == 1
    said = capsys.readouterr().err
    assert "guest web is not paused" in said and "systemctl restart web.service" in said


@pytest.mark.parametrize("name", ["", ".", "..", "../web", "a/b", "a\nb", "a\0b", "a\x1fb", "a\x7fb"])
@pytest.mark.parametrize("verb", ["discard", "hold", "hook", "rehearse", "resume"])
def test_what_is_no_name_of_a_guest_is_refused(capsys, virsh, verb, name):
    assert _command.main([verb, name]) == 1
    assert "is not a valid guest name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["-web", "$HOME", "${x}", "%n", "gäst 1", "1", "a~b"])
def test_a_name_is_taken_as_it_is(capsys, virsh, name):
    assert _command.main(["discard", name]) == 1
    assert f"guest {name!r} has no saved state to discard" in capsys.readouterr().err


@pytest.mark.parametrize(("again", "code"), [(True, _return.AGAIN), (False, 1)])
def test_a_start_that_may_work_later_has_an_exit_code_of_its_own(monkeypatch, virsh, again, code):
    def serve(_name):
        raise LiveUpdateError("busy", again=again)

    monkeypatch.setattr(_hold, "serve", serve)
    assert _command.main(["hold", "app"]) == code
