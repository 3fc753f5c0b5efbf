# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _image
from ansible_collections.kvm.liveupdate.plugins.modules import kernel_image_info

CONFIG = {"KEXEC_FILE": "y", "KEXEC_HANDOVER": "y", "LIVEUPDATE": "y", "LIVEUPDATE_MEMFD": "y", "KVM": "m"}
IMAGE = {
    "path": "/boot/vmlinuz-7.3.4",
    "kind": "bzImage",
    "arch": "x86_64",
    "release": "7.3.4",
    "version": "#1 SMP",
    "size": 1,
    "sha256": "s1",
    "above_4g": True,
    "page_size": 4096,
    "signed": False,
    "abi": {"kho": "kho-v4", "luo": "luo-v5", "memfd": "memfd-v2"},
    "config": CONFIG,
    "unread": {},
}
OFF = {**CONFIG, "KEXEC_HANDOVER": "n", "LIVEUPDATE": "n"}


@pytest.mark.parametrize(
    ("image", "codes"),
    [
        ({}, []),
        ({"config": OFF, "abi": dict.fromkeys(IMAGE["abi"])}, ["kexec-handover-off"]),
        ({"config": {**CONFIG, "KEXEC_FILE": "n"}}, ["kexec-file-off"]),
        ({"config": {**CONFIG, "KVM": "n"}}, ["kvm-off"]),
        ({"config": None, "unread": {"config": "none"}}, ["config-unread"]),
        ({"config": {**CONFIG, "CMDLINE": "quiet", "CMDLINE_BOOL": "y", "CMDLINE_OVERRIDE": "y"}}, ["cmdline-kho", "cmdline-liveupdate"]),
        ({"abi": {**IMAGE["abi"], "luo": None}, "unread": {"luo": "several"}}, ["abi-luo-unread"]),
        ({"kind": "zboot", "arch": "aarch64"}, ["image-kind"]),
        ({"arch": "i386"}, ["arch"]),
        ({"config": {**CONFIG, "KEXEC_SIG": "y", "KEXEC_SIG_FORCE": "y"}}, ["not-signed"]),
        ({"config": {**CONFIG, "KEXEC_SIG": "y", "KEXEC_SIG_FORCE": "y"}, "signed": True}, []),
    ],
)
def test_what_speaks_against_a_kernel_whatever_the_other_one_is(image, codes, monkeypatch):
    asked = []
    monkeypatch.setattr(_image, "read", lambda *words: asked.append(words) or {**IMAGE, **image})
    module = types.SimpleNamespace(params={"path": IMAGE["path"], "config": "/c"})
    found = kernel_image_info.examine(module)
    assert asked == [(IMAGE["path"], "/c")] and not found["changed"]
    assert [why["code"] for why in found["reasons"]] == codes
    assert found["ready"] is not bool(codes) and len(found["refusals"]) == len(codes)
    assert all(IMAGE["path"] in why["message"] for why in found["reasons"])
    assert found["kernel"]["release"] == "7.3.4" and "config" not in found["kernel"]
