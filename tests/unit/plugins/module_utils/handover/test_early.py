# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which units the next boot starts early, and for which guests the rest of a boot does not wait."""

from __future__ import annotations

from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _units


def links(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink())


def test_a_unit_starts_early_until_it_need_not(tmp_path, monkeypatch):
    monkeypatch.setattr(_units, "FOLDER", str(tmp_path))
    ordinary, ahead = "sysinit.target.wants/web.service", f"{_units.TARGET}.wants/web.service"
    _early.start_early("web.service", True, ahead=True)
    assert links(tmp_path) == sorted([ordinary, ahead])
    _early.start_early("web.service", True)
    assert links(tmp_path) == [ordinary]
    _early.start_early("web.service", False)
    assert links(tmp_path) == []


def test_an_early_start_is_durable_and_taken_back(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(_units, "FOLDER", str(tmp_path))
    monkeypatch.setattr(_files, "sync_directory", synced.append)
    link, ahead = tmp_path / "sysinit.target.wants/web.service", tmp_path / f"{_units.TARGET}.wants/web.service"
    _early.start_early("web.service", True)
    assert link.is_symlink() and not ahead.is_symlink() and synced == [str(link)]
    _early.start_early("web.service", True, ahead=True)
    assert ahead.is_symlink() and synced == [str(link), str(ahead)]
    _early.not_early("web.service")
    assert not link.is_symlink() and not ahead.is_symlink()
    _early.start_early("web.service", False, ahead=True)
    assert not ahead.is_symlink()


def test_a_unit_that_may_not_write_to_etc_takes_its_early_start_back_on_the_way_through_pid_1(tmp_path, monkeypatch, capsys):
    """ProtectSystem=full, of which PID 1 sees nothing."""
    monkeypatch.setattr(_units, "FOLDER", "/etc")
    monkeypatch.setattr(_early, "_ROOT_OF_PID_1", str(tmp_path))
    linked = [tmp_path / f"etc/{target}.wants/web.service" for target in ("sysinit.target", _units.TARGET)]
    for link in linked:
        link.parent.mkdir(parents=True)
        link.symlink_to("../web.service")
    remove = _files.remove

    def refuses(path):
        if path.startswith("/etc/"):
            raise OSError(30, "Read-only file system")
        return remove(path)

    monkeypatch.setattr(_files, "remove", refuses)
    _early.not_early("web.service")
    assert links(tmp_path) == [] and capsys.readouterr().err == ""


def test_a_root_file_system_that_is_read_only_keeps_no_guest_from_its_start(monkeypatch, capsys):
    def refuses(_path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(_files, "remove", refuses)
    _early.not_early("web.service")
    assert "the early start of web.service cannot be undone, so the next boot starts it early too: [Errno 30]" in capsys.readouterr().err


def test_who_cannot_note_that_a_guest_is_late_goes_on(tmp_path, monkeypatch, capsys):
    """Behind it a QEMU whose state did not load is ended."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "file"))
    _early.late("web")
    assert "web: the rest of the boot waits up to" in capsys.readouterr().err
