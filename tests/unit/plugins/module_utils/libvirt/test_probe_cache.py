# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Libvirt's cache of what QEMU can do is carried over a jump only if KVM answers as before."""

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _kvm
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _probe_cache

OLD, NEW, OTHER = (
    {"release": release, "version": "#1 SMP PREEMPT_DYNAMIC Debian"} for release in ("7.2.13-amd64", "7.3.4-amd64", "6.12.9-amd64")
)
TEXT = "<qemuCaps>\n  <kernelVersion>{release} {version}</kernelVersion>\n  <flag name='kvm'/>\n</qemuCaps>\n"


@pytest.fixture(name="cache")
def a_cache(tmp_path, monkeypatch):
    folder = tmp_path / "capabilities"
    folder.mkdir(mode=0o755)
    (folder / "x86.xml").write_text(TEXT.format(**OLD))
    (folder / "x86.xml").chmod(0o640)
    (folder / "arm.xml").write_text(TEXT.format(**OTHER))
    monkeypatch.setattr(_probe_cache, "CACHE", str(folder))
    monkeypatch.setattr(_probe_cache, "CARRIED", str(tmp_path / "run/probe-cache.json"))
    monkeypatch.setattr(_files, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_this_boot, "kernel", lambda: NEW)
    monkeypatch.setattr(_kvm, "answers", lambda: "same")
    _files.write_json(_files.UPDATE, {"kernel": OLD, "kvm": "same"})
    # The tests may run without root.
    stat_of = os.fstat
    monkeypatch.setattr(os, "fstat", lambda handle: os.stat_result((*stat_of(handle)[:4], 0, *stat_of(handle)[5:])))
    return folder


def texts(cache):
    return {path.name: path.read_text() for path in cache.iterdir()}


def test_it_is_valid_for_the_new_kernel_if_kvm_answers_as_before(cache, capfd):
    _probe_cache.carry_over()
    assert texts(cache) == {"x86.xml": TEXT.format(**NEW), "arm.xml": TEXT.format(**OTHER)}
    assert (cache / "x86.xml").stat().st_mode & 0o777 == 0o640
    assert "libvirt does not probe QEMU again: KVM answers as before the jump" in capfd.readouterr().err


@pytest.mark.parametrize(("now", "said"), [("other", "answers differently than before the jump"), ("", "gives no full answer")])
def test_libvirt_probes_again_if_kvm_answers_differently(cache, monkeypatch, capfd, now, said):
    monkeypatch.setattr(_kvm, "answers", lambda: now)
    before = texts(cache)
    _probe_cache.carry_over()
    assert texts(cache) == before and f"libvirt probes QEMU again: KVM {said}" in capfd.readouterr().err


@pytest.mark.parametrize("update", [{}, {"kernel": OLD}, {"kernel": OLD, "kvm": ""}])
def test_nothing_is_carried_over_without_a_proof(cache, monkeypatch, update):
    monkeypatch.setattr(_kvm, "answers", lambda: update.get("kvm", ""))
    _files.write_json(_files.UPDATE, update)
    before = texts(cache)
    _probe_cache.carry_over()
    assert texts(cache) == before and not os.path.exists(_probe_cache.CARRIED)


def test_the_first_of_several_domains_does_it(cache, monkeypatch):
    asked = []
    monkeypatch.setattr(_kvm, "answers", lambda: asked.append(1) or "same")
    _probe_cache.carry_over()
    _probe_cache.carry_over()
    assert asked == [1]


def test_once_a_guest_is_back_the_next_start_of_libvirt_probes_again(cache):
    _probe_cache.forget()
    _probe_cache.carry_over()
    _probe_cache.forget()
    assert list(texts(cache)) == ["arm.xml"]
    (cache / "x86.xml").write_text("libvirt's own, after a restart of its daemon")
    _probe_cache.forget()
    assert len(texts(cache)) == 2


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_folder_that_others_can_write_is_not_trusted(cache, capfd, mode):
    cache.chmod(mode)
    before = texts(cache)
    _probe_cache.carry_over()
    assert texts(cache) == before and "can be written by others than root" in capfd.readouterr().err


def test_a_folder_of_somebody_else_is_not_trusted(cache, monkeypatch, capfd):
    monkeypatch.setattr(os, "fstat", lambda handle, seen=os.fstat: os.stat_result((*seen(handle)[:4], 64055, *seen(handle)[5:])))
    before = texts(cache)
    _probe_cache.carry_over()
    assert texts(cache) == before and "can be written by others than root" in capfd.readouterr().err


def test_a_link_in_its_place_is_not_followed(cache, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(cache)
    monkeypatch.setattr(_probe_cache, "CACHE", str(tmp_path / "link"))
    before = texts(cache)
    _probe_cache.carry_over()
    assert texts(cache) == before


@pytest.mark.parametrize("damage", ["update", "cache", "text"])
def test_a_fault_costs_time_but_never_a_guest(cache, capfd, damage):
    if damage == "update":
        with open(_files.UPDATE, "w", encoding="utf-8") as file:
            file.write("{")
    elif damage == "cache":
        cache.rename(cache.with_name("elsewhere"))
    else:
        (cache / "x86.xml").write_bytes(b"\xff\xfe")
    _probe_cache.carry_over()
    _probe_cache.forget()
    assert "libvirt probes QEMU again: " in capfd.readouterr().err


def test_a_file_that_names_the_kernel_twice_is_left_alone(cache):
    (cache / "x86.xml").write_text(2 * TEXT.format(**OLD))
    _probe_cache.carry_over()
    assert texts(cache)["x86.xml"] == 2 * TEXT.format(**OLD)
