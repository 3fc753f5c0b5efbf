# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import (
    _guests,
    _incoming,
    _libvirt,
    _libvirt_agent,
    _libvirt_run,
    _paths,
    _processes,
    _systemd,
)
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError


@pytest.fixture(name="domain")
def scripted_domain(tmp_path, monkeypatch):
    """A domain whose states come in the given order; a start either works or raises the next error. With a * it has run."""

    class Domain:
        def __init__(self):
            self.states, self.errors, self.starts = [], [], 0
            self.image = str(tmp_path / "app.save")
            self.marker = tmp_path / "app.resumed"

        def virsh(self, verb, _name, **_limit):
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
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_libvirt, "virsh", made.virsh)
    monkeypatch.setattr(_libvirt_run, "RETRY_S", 0)
    return made


def test_a_domain_is_started_again_until_what_it_needs_is_there(domain):
    domain.states, domain.errors = ["shut off"], ["no bridge br0"]
    _libvirt_run._start("app", domain.image)
    assert domain.starts == 2
    assert os.path.exists(_guests.run_path("app", "late"))  # the rest of the boot, which may bring that, does not wait for it


def test_a_start_that_works_asks_for_nothing_else(domain):
    domain.states = ["not to be asked for"]
    _libvirt_run._start("app", domain.image)
    assert domain.starts == 1 and domain.states == ["not to be asked for"]


def test_a_domain_that_libvirt_does_not_know_yet_is_started_when_it_does(domain):
    domain.states, domain.errors = [LiveUpdateError("no connection")], ["no connection", "no connection"]
    _libvirt_run._start("app", domain.image)
    assert domain.starts == 3


def test_an_autostart_under_way_is_waited_for(domain):
    domain.states, domain.errors = ["paused", "paused*", "running"], ["it is being started", "it is being started"]
    _libvirt_run._start("app", domain.image)
    assert domain.states == ["running"] and domain.starts == 2
    assert not os.path.exists(_guests.run_path("app", "late"))


def test_an_autostart_that_was_quicker_is_no_failure(domain):
    domain.states, domain.errors = ["running*"], ["domain is already running"]
    _libvirt_run._start("app", domain.image)
    domain.errors = ["domain is already running*"]
    _libvirt_run._start("app", domain.image)
    assert domain.starts == 1


def test_a_guest_that_was_paused_comes_back_paused(domain):
    domain.states = ["paused*"]
    domain.marker.touch()
    _libvirt_run._start("app", domain.image)
    assert domain.starts == 0


def test_a_domain_that_is_being_started_is_not_back_yet(domain):
    """Libvirt says paused, and takes the image away when the start is over."""
    image = Path(domain.image)
    image.touch()
    domain.states, domain.errors = ["paused*", "paused*", "running"], ["it is being started"]
    _libvirt_run._start("app", domain.image)
    assert domain.states == ["running"] and not image.exists()


def test_a_start_that_libvirt_took_back_after_the_memory_was_given_is_the_operators(domain, monkeypatch, tmp_path):
    """Whether the domain ran for a moment nobody knows: neither its state nor a clean start is right by itself."""
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_systemd, "notify", lambda state: None)
    monkeypatch.setattr(_libvirt_run, "_listens", lambda path: True)
    monkeypatch.setattr(_incoming, "session_of", lambda journal: None)
    dropped = []
    monkeypatch.setattr(_incoming, "drop", lambda *session: dropped.append(session))
    domain.states = ["shut off*"]
    domain.marker.touch()
    Path(domain.image).touch()
    saved = {"guest": "app", "state": "saved", "hold": "h", "on_loss": "start", "image": domain.image, "unit": "u"}
    with pytest.raises(LiveUpdateError, match=r"guest app: its memory came over .*'kvm-liveupdate discard app'"):
        _libvirt_run.restore("app", saved)
    assert not dropped and not domain.starts and Path(domain.image).exists()


def test_a_domain_that_ran_and_went_off_is_not_started_from_its_old_state(domain):
    domain.states, domain.errors = ["shut off"], ["QEMU crashed*"]
    with pytest.raises(LiveUpdateError, match="app: it is shut off; QEMU crashed"):
        _libvirt_run._start("app", domain.image)
    assert domain.starts == 1


@pytest.mark.parametrize(("state", "said"), [("paused", "it is paused; no"), (LiveUpdateError("gone"), "it is not known to libvirt; no")])
def test_the_wait_has_a_limit(domain, monkeypatch, state, said):
    domain.states, domain.errors = [state], ["no"] * 2
    monkeypatch.setattr(_libvirt, "START_LIMIT_S", -1)
    with pytest.raises(LiveUpdateError, match=said):
        _libvirt_run._start("app", domain.image)


def test_nothing_runs_before_libvirt_listens(tmp_path, monkeypatch):
    """Three of them that ran virsh all the time kept a host with one processor from starting the daemon for more than a minute."""
    path = str(tmp_path / "libvirt-sock")
    monkeypatch.setattr(_libvirt_run, "SOCKETS", (str(tmp_path / "virtqemud-sock"), path))
    monkeypatch.setattr(_libvirt_run, "LIBVIRT_LIMIT_S", -1)
    with pytest.raises(LiveUpdateError, match=r"nothing listens at .*virtqemud-sock or .*libvirt-sock"):
        _libvirt_run._wait_for_socket("app")
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(path)
        with pytest.raises(LiveUpdateError, match="nothing listens"):
            _libvirt_run._wait_for_socket("app")
        daemon.listen()
        _libvirt_run._wait_for_socket("app")


def test_an_answer_of_libvirt_is_waited_for(domain, monkeypatch):
    """Without its state the image of a domain whose memory is lost would not be removed."""
    monkeypatch.setattr(_libvirt_run, "_listens", lambda path: True)
    domain.states = [LiveUpdateError("no connection"), "shut off"]
    assert _libvirt_run._wait_for_answer("app") == "shut off"
    monkeypatch.setattr(_libvirt_run, "LIBVIRT_LIMIT_S", -1)
    domain.states = [LiveUpdateError("no connection")]
    with pytest.raises(LiveUpdateError, match="does not say its state within -1 s"):
        _libvirt_run._wait_for_answer("app")


def test_the_boot_does_not_wait_for_a_domain_that_fails_or_is_not_to_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_systemd, "notify", lambda state: None)
    monkeypatch.setattr(_incoming, "session_of", lambda journal: None)
    saved = {"guest": "app", "state": "saved", "hold": "h", "on_loss": "stop"}
    with pytest.raises(LiveUpdateError, match="its memory did not come over"):
        _libvirt_run.restore("app", saved)
    assert os.path.exists(_guests.run_path("app", "late"))
    monkeypatch.setattr(_incoming, "session_of", lambda journal: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        _libvirt_run.restore("db", saved)
    assert os.path.exists(_guests.run_path("db", "late"))


@pytest.mark.parametrize("outcome", [{"clock": "synchronised", "thawed": True}, {"clock": "failed: it hangs", "thawed": False}])
def test_the_journal_tells_what_became_of_the_clock(tmp_path, monkeypatch, outcome):
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_libvirt_agent, "correct_clock", lambda name: outcome)
    _libvirt_run._correct_clock("app", {"state": "restored", "guest": "app"})
    assert _paths.read_json(str(tmp_path / "app.json")) == {"state": "restored", "guest": "app", **outcome}


@pytest.fixture(name="offered")
def saved_domain_whose_memory_is_offered(tmp_path, monkeypatch):
    """A hook's call for a domain that is saved; its memory is in this process."""
    directory = tmp_path / "ram" / "7-app"
    directory.mkdir(parents=True)
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO("<domain id='7'/>"))

    def call(fd, hold="h"):
        os.pwrite(fd, b"memory", 0)
        _paths.write_json(str(tmp_path / "app.state"), {"directory": str(tmp_path / "ram"), "files": ["pc.ram"], "hold": "h"})
        pid = os.getpid()
        _paths.write_json(str(tmp_path / "app.offer"), {"pid": pid, "started": _processes.start_time(pid), "hold": hold, "fds": [fd]})
        _libvirt_run.hook("app")
        return directory / "pc.ram"

    return call


@pytest.fixture(name="memfd")
def memory_that_came_over():
    fd = os.memfd_create("ram")
    yield fd
    os.close(fd)


def test_qemu_finds_a_link_to_its_memory(offered, memfd):
    path = offered(memfd)
    assert path.is_symlink() and path.read_bytes() == b"memory"


def test_the_memory_of_another_hold_is_refused(offered, memfd):
    with pytest.raises(LiveUpdateError, match="memory that is not here"):
        offered(memfd, hold="another")
