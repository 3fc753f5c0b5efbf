# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _virsh

ONE, OTHER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


@pytest.mark.parametrize(
    ("xml", "uuid"),
    [
        (f"<domain>\n  <name>app</name>\n  <uuid>{ONE}</uuid>\n</domain>", ONE),
        (f"<domain><name>app</name><uuid>{ONE}</uuid><metadata><uuid>{OTHER}</uuid></metadata></domain>", ONE),
        (f"<domstatus><uuid>{OTHER}</uuid><domain><name>app</name><uuid>{ONE}</uuid></domain></domstatus>", ONE),
        (f"<domain><name>app</name><uuid>{ONE[:-1]}</uuid></domain>", ""),
        (f"<domain><name>app</name><uuid>{ONE}0</uuid></domain>", ""),
        (f"<domain><name>app</name><uuid>{ONE}", ONE),
        ("<domain><name>app</name></domain>", ""),
        (f"<domain><uuid>{ONE}</uuid></domain>", ""),
        ("", ""),
    ],
)
def test_a_domain_has_the_uuid_that_libvirt_wrote(xml, uuid):
    assert _virsh.uuid_in(xml) == uuid


@pytest.mark.parametrize(
    ("runs", "defined", "called"),
    [(ONE, None, ONE), (None, ONE, ONE), (ONE, OTHER, ONE), (None, None, "app"), ("broken", ONE, ONE), ("broken", "broken", "app")],
)
def test_a_domain_is_called_by_its_uuid_wherever_libvirt_has_it(libvirt, runs, defined, called):
    """It may run without a definition, or be shut off."""
    for folder, uuid in (("run", runs), ("etc", defined)):
        if uuid:
            (libvirt.folder / folder / "app.xml").write_text(f"<name>app</name><uuid>{uuid}</uuid>")
    assert _virsh.uuid_of("app") == called
    assert _virsh.is_defined("app") is bool(defined)


@pytest.mark.parametrize("name", ["1", "+1", " 1", " +01", "x" * 36])
def test_a_name_that_virsh_would_take_for_another_domain_is_never_used(libvirt, name):
    with pytest.raises(LiveUpdateError, match=r"does not exist; 'virsh list --all'"):
        _virsh.uuid_of(name)


@pytest.mark.parametrize("name", ["a1", "-1", "x" * 35, "x" * 37])
def test_any_other_name_can_be_used(libvirt, name):
    assert _virsh.uuid_of(name) == name


@pytest.mark.parametrize(
    ("job", "is_busy"),
    [
        ("<job type='none' async='save' phase='none'/>", True),
        ("<job type='none' async='none'/>", False),
        ("<job async='migration out'>", True),
        ("<job type='modify'/>", False),
        ("", False),
        ("<other async='save'/>", False),
    ],
)
def test_libvirt_is_busy_with_a_domain_while_its_job_lasts(libvirt, job, is_busy):
    """What the owner of the domain wrote into its XML does not count."""
    owners = "<job type='none' async='{}'/>".format("none" if is_busy else "save")
    status = f"<domstatus>\n  {job}\n  <domain type='kvm'>\n    <metadata>{owners}</metadata>\n  </domain>\n</domstatus>\n"
    (libvirt.folder / "run/app.xml").write_text(status)
    assert _virsh.is_busy("app") is is_busy
    assert not _virsh.is_busy("other")


def test_what_virsh_says_of_a_domain_is_about_that_one(libvirt):
    libvirt.add("other", 1)
    app = libvirt.add("app", 2, domstate="paused\n\n", dumpxml="<domain>app</domain>")
    assert _virsh.status(app) == "paused" and _virsh.domain_xml(app) == "<domain>app</domain>"


def test_a_virsh_that_hangs_is_waited_for_no_longer_than_its_caller_can(monkeypatch):
    limits = []
    monkeypatch.setattr(_commands, "run", lambda *_words, timeout: limits.append(timeout) or "")
    _virsh.virsh("list", limit=7)
    _virsh.virsh("list")
    assert limits[0] == 7 and 60 <= limits[1] <= 600


@pytest.fixture(name="hooks")
def folder_of_hooks(tmp_path, monkeypatch):
    monkeypatch.setattr(_virsh, "HOOKS", str(tmp_path / "hooks"))
    monkeypatch.setattr(_virsh, "HOOK", str(tmp_path / "hooks/qemu.d/kvm-liveupdate"))
    return tmp_path / "hooks"


@pytest.mark.parametrize(
    ("files", "owners"),
    [
        ([], []),
        (["qemu.d/kvm-liveupdate"], []),
        (["network", "qemu.d/kvm-liveupdate"], []),
        (["qemu"], ["qemu"]),
        (["qemu", "qemu.d/kvm-liveupdate"], ["qemu"]),
        (["qemu.d/20-b", "qemu.d/10-a", "qemu.d/kvm-liveupdate"], ["qemu.d/10-a", "qemu.d/20-b"]),
    ],
)
def test_the_owners_hooks_are_told_from_ours(hooks, files, owners):
    """In the order in which libvirt runs them."""
    for file in files:
        (hooks / file).parent.mkdir(parents=True, exist_ok=True)
        (hooks / file).touch(mode=0o755)
    assert _virsh.has_hooks() is bool(owners)
    assert _virsh.other_hooks() == [str(hooks / file) for file in owners]


def test_what_libvirt_cannot_run_is_no_hook(hooks):
    (hooks / "qemu.d/folder").mkdir(parents=True)
    (hooks / "qemu.d/README").touch(mode=0o644)
    assert _virsh.other_hooks() == []
    assert _virsh.has_hooks()  # it may become one until the start


def test_a_file_in_the_place_of_the_folder_of_hooks_is_none(hooks):
    """A restore asks for them, and must not end for it."""
    hooks.mkdir(parents=True, exist_ok=True)
    (hooks / "qemu.d").write_text("not a folder")
    assert _virsh.has_hooks() is False and _virsh.other_hooks() == []
