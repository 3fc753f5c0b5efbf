# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's commands, and what is left after one that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kvmlab import lab as lab_module
from kvmlab.cli import main
from kvmlab.errors import LabError
from kvmlab.lab import Lab, Parts
from kvmlab.machines.host import Host
from kvmlab.parts.keys import Keys
from kvmlab.parts.kinds import KINDS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache and a lab of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KVM_LIVEUPDATE_LAB", raising=False)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose hosts start without an emulator, and whose hv2 never answers."""
    for name in ("client", "host"):
        (tmp_path / f"{name}.pub").write_text("ssh-ed25519 AAAA lab\n")
    parts = Parts(("qemu",), {"forky": tmp_path / "forky.raw", "trixie": tmp_path / "trixie.raw"}, Keys(tmp_path), ())  # type: ignore[arg-type]
    monkeypatch.setattr(lab_module, "build", lambda kinds, twins: parts)

    def start(host: Host, kind: str, emulator: tuple[str, ...], image: Path, _memory_mib: int) -> None:
        host.folder.mkdir(parents=True, exist_ok=True)
        (host.folder / "disk.raw").touch()
        machine = {"ssh_port": 40000 + int(host.name[2:]), "kind": kind, "image": str(image)}
        (host.folder / "machine.json").write_text(json.dumps(machine))

    def wait_ssh(host: Host) -> str:
        if host.name == "hv2":
            raise LabError("hv2 did not answer")
        return "boot-id"

    monkeypatch.setattr(Host, "start", start)
    monkeypatch.setattr(Host, "wait_ssh", wait_ssh)
    return Lab()


def test_hosts_that_were_made_for_nothing_are_forgotten(lab: Lab) -> None:
    with pytest.raises(LabError, match="hv2 did not answer"):
        lab.up(["forky", "trixie"])
    assert lab.hosts() == []
    assert not lab.inventory.exists()


def test_a_host_from_before_keeps_its_disk_when_up_fails(lab: Lab) -> None:
    lab.up(["forky"])
    with pytest.raises(LabError, match="hv2 did not answer"):
        lab.up(["forky", "trixie"])
    assert [host.name for host in lab.hosts()] == ["hv1"]
    assert lab.host("hv1").has_disk


def test_down_forgets_the_disks_and_can_be_said_again(lab: Lab) -> None:
    lab.up(["forky"])
    assert [host.name for host in lab.down()] == ["hv1"]
    assert lab.down() == []
    assert not (lab.folder / "hv1" / "disk.raw").exists()


def test_a_second_lab_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Lab().folder == tmp_path / "kvm-liveupdate" / "lab"
    monkeypatch.setenv("KVM_LIVEUPDATE_LAB", str(tmp_path / "other"))
    assert Lab().folder == tmp_path / "other"
    assert Lab(tmp_path / "third").folder == tmp_path / "third"


def test_an_empty_lab_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert main(["down"]) == 0
    assert capsys.readouterr().out == "no hosts\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ssh", "hv9"], "lab: no host hv9; known hosts: none, start some with tests/lab/lab up\n"),
        (
            ["up", "--kinds", "forky,woody"],
            f"lab: --kinds: unknown kind 'woody'; use {', '.join(KINDS)}\n",
        ),
    ],
)
def test_an_error_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert capsys.readouterr().err == message
