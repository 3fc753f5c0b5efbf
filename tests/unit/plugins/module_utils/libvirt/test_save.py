# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The save of a domain and its undo when libvirt or QEMU do not answer as they should. The rest is in test_guests.py."""

from __future__ import annotations

import json
import os
import zlib

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _batch, _ram, _save, _save_directory, _save_image, _virsh


@pytest.fixture(name="record")
def held_domain(libvirt, tmp_path, monkeypatch):
    """A held domain with RAM on two nodes."""
    for place, folder in ((_virsh, "SAVED"), (_files, "GUESTS_RUN"), (_files, "GUESTS_STATE")):
        monkeypatch.setattr(place, folder, str(tmp_path / folder.lower()))
        if folder != "GUESTS_STATE":
            (tmp_path / folder.lower()).mkdir()
    monkeypatch.setattr(_save_image, "loadable", lambda image, running: image + bytes([running]))
    _files.write_json(_files.run_path("app", "held"), {"hold": "h"})
    backends = [{"path": f"{_ram.DIRECTORY}/libvirt/qemu/1-app/ram-node{number}"} for number in range(2)]
    return {**libvirt.add("app", 1), "provider": "libvirt", "uid": 64055, "gid": 108, "backends": backends}


def says(libvirt, **answers):
    libvirt.domains[0]["says"].update({key.replace("_", "-"): said for key, said in answers.items()})
    libvirt.keep()


def writes(monkeypatch, content):
    """Libvirt writes this as the domain's snapshot. The words of all commands are returned."""
    asked, real = [], _batch.ask

    def ask(commands, limit):
        asked.extend(commands)
        if commands[-1][0] == "snapshot-create-as" and content is not None:
            place = next(word for word in commands[-1] if word.endswith(",snapshot=external"))
            with open(place.removesuffix(",snapshot=external").replace(",,", ","), "wb") as file:
                file.write(content)
        return real(commands, limit)

    monkeypatch.setattr(_batch, "ask", ask)
    return asked


@pytest.mark.parametrize("name", ["app", "app,file=x"])
def test_libvirt_writes_into_a_folder_that_is_made_for_it(libvirt, record, monkeypatch, name):
    """Also for a name with a comma, which would begin another word of virsh's."""
    asked = writes(monkeypatch, b"image")
    _save.write_image({**record, "name": name}, _virsh.image_path(name), running=False)
    assert f"{_files.GUESTS_STATE}/{name.replace(',', ',,')}.image,snapshot=external" in asked[-1]
    with open(_virsh.image_path(name), "rb") as file:
        assert file.read() == b"image\0"
    assert os.listdir(_files.GUESTS_STATE) == []


def test_a_restore_can_tell_the_saved_image_from_any_other(record, monkeypatch, tmp_path):
    writes(monkeypatch, b"image")
    journal = _save.save(record, str(tmp_path / "state"), running=True)
    assert journal["digest"] == {"size": 6, "crc32": zlib.crc32(b"image\1")}
    assert {key: journal[key] for key in ("provider", "uid", "gid", "backends")} == {
        "provider": "libvirt",
        "uid": 64055,
        "gid": 108,
        "backends": record["backends"],
    }
    state = _files.read_json(str(tmp_path / "state"))
    assert state["files"] == ["ram-node0", "ram-node1"] and state["image"] == journal["image"] == _virsh.image_path("app")


def test_a_save_without_an_image_says_which_domain_it_is_of(record, monkeypatch, tmp_path):
    writes(monkeypatch, None)
    with pytest.raises(LiveUpdateError, match=r"^guest app cannot be saved: .*app\.image"):
        _save.save(record, str(tmp_path / "state"), running=True)


@pytest.mark.parametrize("content", [b"half an image", None])
def test_a_snapshot_that_fails_is_told_and_leaves_nothing(libvirt, record, monkeypatch, tmp_path, content):
    """Whatever else fails afterwards."""
    says(libvirt, snapshot_create_as="error: no room", domjobabort="error: no job is active")
    writes(monkeypatch, content)
    with pytest.raises(LiveUpdateError, match=r"^guest app cannot be saved: no room$"):
        _save.save(record, str(tmp_path / "state"), running=True)
    assert os.listdir(_files.GUESTS_STATE) == [] == os.listdir(_virsh.SAVED)


@pytest.mark.parametrize("error", [{"desc": "busy"}, {"class": "busy"}])
def test_why_qemu_refuses_a_setting_is_told(error):
    with pytest.raises(LiveUpdateError, match=r"^QEMU: migrate-set-capabilities: .*busy"):
        _save.taken(json.dumps({"error": error}))


@pytest.mark.parametrize("said", ["{}", "no JSON", '{"return": null}', '{"return": {}}', '{"error": {}}', ""])
def test_a_qemu_whose_answer_is_not_understood_is_not_taken_for_saved(libvirt, record, said):
    libvirt.says["list --state-paused --uuid"] = record["uuid"]
    says(libvirt, query_status=said)
    (problem,) = _save.still_saved([record])
    assert problem.startswith("guest app was saved, but") and "QEMU: no answer" in problem


def told(libvirt, monkeypatch, answers):
    """What virsh is told from now on, when and with which limit. ``answers`` has answers by verb, in order; the last one stays."""
    log, real = [], _virsh.virsh

    def virsh(*words, limit=60.0):
        request = json.loads(words[2]) if words[0] == "qemu-monitor-command" else {"execute": words[0]}
        log.append((request, libvirt.clock.now, limit))
        left = answers.get(request["execute"], [])
        if left:
            says(libvirt, **{request["execute"]: left.pop(0) if len(left) > 1 else left[0]})
        return real(*words, limit=limit)

    monkeypatch.setattr(_virsh, "virsh", virsh)
    return log


def verbs(log):
    return [request["execute"] for request, *_when in log]


def test_an_undo_lets_qemu_save_the_ram_again(libvirt, record, monkeypatch):
    log = told(libvirt, monkeypatch, {"domstate": ["paused", "running"]})
    _save.resume(record, running=True)
    settings = [request["arguments"]["capabilities"] for request, *_when in log if request["execute"] == "migrate-set-capabilities"]
    assert settings == [[{"capability": "x-ignore-shared", "state": False}]]


@pytest.mark.parametrize("first", ['{"error": {"desc": "busy"}}', "no JSON", "error: no answer"])
def test_a_setting_that_qemu_refuses_is_repeated(libvirt, record, monkeypatch, first):
    log = told(libvirt, monkeypatch, {"domstate": ["running"], "migrate-set-capabilities": [first, '{"return": {}}']})
    _save.resume(record, running=True)
    assert verbs(log).count("migrate-set-capabilities") == 2 and len(libvirt.clock.slept) == 1


def test_a_guest_that_its_owner_had_paused_stays_paused(libvirt, record, monkeypatch):
    log = told(libvirt, monkeypatch, {"domstate": ["paused"]})
    _save.resume(record, running=False)
    assert "resume" not in verbs(log) and not libvirt.clock.slept


@pytest.mark.parametrize("seen", ["paused", "error: no connection"])
def test_a_guest_counts_as_running_only_when_libvirt_says_so_in_the_end(libvirt, record, monkeypatch, seen):
    """After the resume it seemed to run."""
    log = told(libvirt, monkeypatch, {"domstate": ["paused", "running", seen, "paused", "running"]})
    _save.resume(record, running=True)
    assert verbs(log).count("resume") == 2 and len(libvirt.clock.slept) == 1


def test_a_daemon_that_never_answers_is_given_up_at_the_limit(libvirt, record, monkeypatch):
    """The worst comes first: a guest that stands still."""
    silent = ["error: no connection"]
    answers = dict.fromkeys(("domstate", "migrate-set-capabilities", "resume"), silent)
    log = told(libvirt, monkeypatch, answers)
    with pytest.raises(LiveUpdateError, match=r"^the domain is still in an unknown state after 300 s; QEMU's migration option"):
        _save.resume(record, running=True)
    assert 300 < libvirt.clock.now < 400 and set(libvirt.clock.slept) == {0.5}  # the guest stays paused that long
    # A call that hangs ends soon after the limit, and each call has the time that a busy daemon needs.
    assert all(10 <= limit <= 60 and when + limit <= max(310, when + 10) for _request, when, limit in log)


def test_a_qemu_that_has_ended_is_not_waited_for_whatever_libvirt_says(libvirt, record, monkeypatch):
    """Nothing can be resumed, and the host's other guests wait for their undo."""
    silent = ["error: no connection"]
    told(libvirt, monkeypatch, dict.fromkeys(("domstate", "migrate-set-capabilities", "resume"), silent))
    with pytest.raises(LiveUpdateError, match=r"process .* has ended$"):
        _save.resume({**record, "started": record["started"] + 1}, running=True)
    assert not libvirt.clock.slept


def test_a_qemu_that_refuses_and_does_not_change_its_mind_is_told(libvirt, record, monkeypatch):
    refused = ['{"error": {"desc": "a migration is in progress"}}']
    on = ['{"return": [{"capability": "x-ignore-shared", "state": true}]}']
    told(libvirt, monkeypatch, {"migrate-set-capabilities": refused, "query-migrate-capabilities": on})
    with pytest.raises(
        LiveUpdateError, match=r"x-ignore-shared is still on.*: QEMU: migrate-set-capabilities: a migration is in progress$"
    ):
        _save.resume(record, running=True)


def test_a_qemu_that_does_not_say_whether_it_leaves_out_its_ram_is_told(libvirt, record, monkeypatch):
    told(libvirt, monkeypatch, {"query-migrate-capabilities": ["error: no connection"]})
    with pytest.raises(
        LiveUpdateError, match=r"x-ignore-shared is still on.*: no connection; QEMU: query-migrate-capabilities: no answer$"
    ):
        _save.resume(record, running=True)


def test_what_qemu_says_of_its_settings_is_told(libvirt, record, monkeypatch):
    told(libvirt, monkeypatch, {"query-migrate-capabilities": ['{"error": {"desc": "busy"}}']})
    with pytest.raises(LiveUpdateError, match=r"query-migrate-capabilities: .*busy"):
        _save.resume(record, running=True)


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("image", ["ours", "none", "a folder"])
def test_the_state_is_there_as_long_as_the_image(libvirt, record, monkeypatch, runs, image):
    """Longer, the hook would refuse to start the domain from a later save of its owner's, and a discard would remove that."""
    _files.make_directory(_files.GUESTS_STATE)
    _files.write_json(_files.state_path("app"), {})
    if image == "a folder":
        os.mkdir(_virsh.image_path("app"))
    elif image == "ours":
        with open(_virsh.image_path("app"), "wb"):
            pass
    real = _save_directory.remove
    monkeypatch.setattr(_save_directory, "remove", lambda path: real(path) if os.path.exists(_files.state_path("app")) else 1 // 0)
    if runs:
        _save.resume(record, running=True)
    else:
        says(libvirt, domstate="paused")
        with pytest.raises(LiveUpdateError, match="the domain is still paused") as raised:
            _save.resume(record, running=True)
        assert "image_stays" not in raised.value.details
    assert not os.path.isfile(_virsh.image_path("app")) and not os.path.exists(_files.state_path("app"))


@pytest.mark.parametrize("kept", [True, False])
def test_only_a_save_of_ours_is_removed_by_its_undo(libvirt, record, kept):
    _files.make_directory(_files.GUESTS_STATE)
    if not kept:
        _files.write_json(_files.state_path("app"), {})
    with open(_virsh.image_path("app"), "wb"):
        pass
    _save.resume(record, running=True)
    assert os.path.exists(_virsh.image_path("app")) is kept


def test_an_image_that_cannot_be_removed_is_told_and_the_guest_runs(libvirt, record, monkeypatch):
    """It lacks the RAM. As long as its state is there, libvirt's hook refuses to start the domain from it."""

    def fails(_path):
        raise NotADirectoryError(20, "Not a directory")

    monkeypatch.setattr(_save_directory, "remove", fails)
    _files.make_directory(_files.GUESTS_STATE)
    for path in (_virsh.image_path("app"), _files.state_path("app")):
        with open(path, "wb"):
            pass
    says = r"^guest app: the saved image .*app\.save, which lacks the RAM, cannot be removed \(.*\); .* 'kvm-liveupdate discard app'$"
    with pytest.raises(LiveUpdateError, match=says) as raised:
        _save.resume(record, running=True)
    assert raised.value.details == {"image_stays": True} and os.path.exists(_files.state_path("app"))
    with pytest.raises(LiveUpdateError, match=r"has ended; guest app: the saved image .* 'kvm-liveupdate discard app'$") as raised:
        _save.resume({**record, "started": 1}, running=True)
    assert raised.value.details == {"ended": True, "image_stays": True}
    told(libvirt, monkeypatch, {"query-migrate-capabilities": ['{"error": {"desc": "busy"}}']})
    with pytest.raises(LiveUpdateError, match=r"capabilities: .*busy.*; guest app: the saved image"):
        _save.resume(record, running=True)


def test_a_state_that_cannot_be_removed_is_not_told_as_an_image(libvirt, record):
    _files.make_directory(_files.state_path("app"))
    with open(_virsh.image_path("app"), "wb"):
        pass
    says = rf"^guest app: the saved state {_files.state_path('app')} cannot be removed, .* 'kvm-liveupdate discard app'$"
    with pytest.raises(LiveUpdateError, match=says) as raised:
        _save.resume(record, running=True)
    assert raised.value.details == {"image_stays": True} and not os.path.exists(_virsh.image_path("app"))


def test_a_folder_in_the_place_of_the_image_does_not_break_an_undo(libvirt, record):
    """QEMU's user may make one."""
    _files.make_directory(_files.GUESTS_STATE)
    _files.write_json(_files.state_path("app"), {})
    os.mkdir(_virsh.image_path("app"))
    _save.resume(record, running=True)
    assert not libvirt.clock.slept


def test_domains_are_saved_before_guests_whose_save_is_quick():
    """Else these would only wait, paused."""
    assert _providers.of({"provider": "libvirt"}).saves_slowly and not _providers.of({"provider": "qemu"}).saves_slowly


def test_the_managed_save_of_a_domain_that_is_not_defined_any_more_needs_no_removal(libvirt, record):
    _save.discard("gone")
    assert libvirt.asked() == []
    _save.discard("app")
    assert libvirt.asked() == ["managedsave-remove app", "domstate app"]
