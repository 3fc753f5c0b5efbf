# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _kernel_build
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._kernel_build import NEEDED, objects_of, options, plan, progress, values

KEY = "/etc/keys/kernel.pem"


def test_the_plan_has_what_a_live_update_needs_and_what_the_operator_adds():
    found = plan({"KVM_AMD": "m", "CONFIG_HZ": 250, "RUST": False, "DEFAULT_HOSTNAME": "hv"}, "-liveupdate")
    assert found["faults"] == []
    assert found["wanted"].items() >= {**NEEDED, "KVM_AMD": "m", "HZ": "250", "RUST": "n", "LOCALVERSION": "-liveupdate"}.items()
    lines = found["fragment"].splitlines()
    assert {"CONFIG_LIVEUPDATE=y", "CONFIG_KVM_AMD=m", "CONFIG_HZ=250", "# CONFIG_RUST is not set"} <= set(lines)
    assert {'CONFIG_DEFAULT_HOSTNAME="hv"', 'CONFIG_LOCALVERSION="-liveupdate"', "# CONFIG_LOCALVERSION_AUTO is not set"} <= set(lines)
    assert found["version_suffix"] == "+liveupdate"


def test_without_a_key_the_build_makes_none_of_its_own():
    """It would sign with a new one each time, and no two builds would be equal."""
    lines = plan({}, "-a")["fragment"].splitlines()
    assert 'CONFIG_MODULE_SIG_KEY=""' in lines and "# CONFIG_MODULE_SIG_ALL is not set" in lines
    signed = plan({}, "-a", KEY)["wanted"]
    assert signed["MODULE_SIG_KEY"] == KEY and signed["MODULE_SIG_ALL"] == signed["KEXEC_SIG"] == signed["EFI_STUB"] == "y"


@pytest.mark.parametrize(
    ("given", "suffix", "key", "says"),
    [
        ([], "-a", "", "build_kernel_options is [] - write options with values"),
        ({"kvm-amd": "m"}, "-a", "", "'kvm-amd' is not the name of a kernel option"),
        ({"LOCALVERSION": "-b"}, "-a", "", "remove it, and set build_kernel_suffix"),
        ({"MODULE_SIG_KEY": "k"}, "-a", "", "remove it, and set build_kernel_signing_key"),
        ({"HZ": 2.5}, "-a", "", "HZ is 2.5 - write y, m, n"),
        ({"HZ": None}, "-a", "", "HZ is None - write y, m, n"),
        ({"CMDLINE": 'a "b"'}, "-a", "", "text without quotes"),
        ({"CMDLINE": "a\nCONFIG_X=y"}, "-a", "", "text without quotes"),
        ({"LIVEUPDATE": "n"}, "-a", "", "sets LIVEUPDATE to 'n', but a live update needs y - remove LIVEUPDATE"),
        ({"MODULE_SIG_ALL": False}, "-a", KEY, "but the signature needs y"),
        ({}, "", "", "build_kernel_suffix is ''"),
        ({}, "a", "", "build_kernel_suffix is 'a'"),
        ({}, "-A", "", "build_kernel_suffix is '-A'"),
        ({}, "-a_b", "", "build_kernel_suffix is '-a_b'"),
        ({}, "-a-", "", "build_kernel_suffix is '-a-'"),
        ({}, "-" + "a" * 32, "", "at most 31 small letters"),
    ],
)
def test_what_cannot_be_built_is_said(given, suffix, key, says):
    (fault,) = plan(given, suffix, key)["faults"]
    assert says in fault, fault


def test_files_that_only_the_distribution_has_are_left_out_unless_they_are_given():
    assert 'CONFIG_SYSTEM_TRUSTED_KEYS=""' in plan({}, "-a")["fragment"].splitlines()
    given = plan({"SYSTEM_TRUSTED_KEYS": "/etc/keys/ours.pem"}, "-a", KEY)
    assert given["faults"] == [] and given["wanted"]["SYSTEM_TRUSTED_KEYS"] == "/etc/keys/ours.pem"


def test_options_that_agree_with_those_that_are_needed_are_no_fault():
    assert plan({"LIVEUPDATE": True, "MODULE_SIG_ALL": "y"}, "+a.b-1")["faults"] == []
    assert plan({}, "+a.b-1")["version_suffix"] == "+a.b.1"


def test_the_digest_names_all_inputs():
    inputs = {"source": "s1", "config": "c1"}
    digests = [
        plan({}, "-a", **inputs)["digest"],
        plan({}, "-b", **inputs)["digest"],
        plan({}, "-a", KEY, **inputs)["digest"],
        plan({"RUST": "n"}, "-a", **inputs)["digest"],
        plan({}, "-a", **{**inputs, "source": "s2"})["digest"],
        plan({}, "-a", **{**inputs, "config": "c2"})["digest"],
    ]
    assert len(set(digests)) == len(digests)
    assert plan({"B": "y", "A": "y"}, "-a", **inputs)["digest"] == plan({"A": True, "CONFIG_B": "y"}, "-a", **inputs)["digest"]


CONFIG = """
CONFIG_MODULES=y
CONFIG_KVM=y
CONFIG_TUN=m
CONFIG_HZ=250
CONFIG_LOCALVERSION="-a"
# CONFIG_RUST is not set
"""
# Kconfig files are indented with tabs.
KCONFIG = r"""
config LIVEUPDATE
TABbool "Live Update Orchestrator"
TABdepends on KEXEC_HANDOVER
TABhelp
TABIt depends on nothing.
config OTHER
TABbool
TABdepends on NOTHING
--
menuconfig FAR
TABdepends on HZ && \
TABTAB(KVM || RUST)
TABdepends on TUN
--
config ALONE
TABbool
""".replace("TAB", "\t")


def test_the_values_of_a_configuration():
    assert values(CONFIG) == {"MODULES": "y", "KVM": "y", "TUN": "m", "HZ": "250", "LOCALVERSION": "-a"}


def test_what_is_there_is_not_named():
    wanted = {"KVM": "m", "TUN": "m", "HZ": "250", "LOCALVERSION": "-a", "RUST": "n", "UNKNOWN": "n", "MODULE_SIG_KEY": ""}
    assert options(CONFIG, "", wanted)["names"] == options(CONFIG, "", wanted)["unresolved"] == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LIVEUPDATE", "y", "CONFIG_LIVEUPDATE is n in the resulting configuration, but y is wanted: it depends on KEXEC_HANDOVER"),
        ("LIVEUPDATE", "y", " (KEXEC_HANDOVER is n)"),
        ("FAR", "y", ": it depends on HZ && (KVM || RUST) and TUN (HZ is 250, KVM is y, RUST is n, TUN is m)"),
        ("ALONE", "y", ": its description names no dependency"),
        ("NEW", "y", ": this kernel source has no option of this name"),
        ("TUN", "y", "CONFIG_TUN is m in the resulting configuration, but y is wanted"),
        ("KVM", "n", "CONFIG_KVM is y in the resulting configuration, but n is wanted"),
        ("HZ", "100", "CONFIG_HZ is 250"),
    ],
)
def test_an_option_that_did_not_resolve_is_named_with_what_it_depends_on(name, value, says):
    found = options(CONFIG, "", {name: value, "KVM_OK": "n"}, KCONFIG)
    assert found["names"] == [name]
    (sentence,) = found["unresolved"]
    assert says in sentence, sentence


def test_before_kconfig_is_read_only_the_value_is_said():
    (sentence,) = options(CONFIG, "", {"LIVEUPDATE": "y"})["unresolved"]
    assert sentence == "CONFIG_LIVEUPDATE is n in the resulting configuration, but y is wanted"


def test_a_kernel_without_modules_has_none_to_sign():
    wanted = {"MODULE_SIG": "y", "EFI_STUB": "y"}
    assert options("CONFIG_EFI_STUB=y", "", wanted)["names"] == []
    assert options("CONFIG_EFI_STUB=y\nCONFIG_MODULES=y", "", wanted)["names"] == ["MODULE_SIG"]


def test_what_the_distribution_has_on_and_the_result_has_not():
    """What says only what the tools can do is left out, and what the operator takes away."""
    base = CONFIG + "CONFIG_DEBUG_INFO_BTF=y\nCONFIG_CC_HAS_ASSUME=y\nCONFIG_AMCC_QT2025_PHY=m\nCONFIG_GONE=y\nCONFIG_NUMBER=3\n"
    found = options(CONFIG, base + "CONFIG_PAHOLE_HAS_LANG_EXCLUDE=y\nCONFIG_RUST_IS_AVAILABLE=y\n", {"GONE": "n"})
    assert found["lost"] == ["DEBUG_INFO_BTF", "AMCC_QT2025_PHY"]


def test_how_many_objects_there_are():
    """As counted in builds: see the comment there."""
    built_in = "".join(f"CONFIG_A{number}=y\n" for number in range(2800))
    modules = "".join(f"CONFIG_B{number}=m\n" for number in range(4040))
    assert objects_of("\n".join(built_in.splitlines()[:789])) == pytest.approx(1577, rel=0.02)
    assert objects_of(built_in + modules) == pytest.approx(20000, rel=0.02)
    assert options(CONFIG, "", {})["objects"] == objects_of(CONFIG) == 8


def test_debug_information_needs_disk_space():
    plain, debug = (options(built_in, "", {})["disk_mib"] for built_in in (CONFIG, CONFIG + "CONFIG_DEBUG_INFO=y\n"))
    assert 4096 < plain < debug


@pytest.mark.parametrize(
    ("text", "done", "percent", "minutes", "status"),
    [
        ("", 0, 0, None, None),
        ("begun 0\n", 0, 0, None, None),
        # 2000 objects and a quarter more, half a second each
        ("begun 0\nmeasured 100 50\n", 0, 0, 21, None),
        # A quarter of the objects took 500 s: that counts, not what was measured.
        ("begun 0\nmeasured 100 10\nbuilt 500 500\n", 500, 25, 33, None),
        # This attempt has built 100 of the 1100.
        ("begun 1000\nmeasured 100 10\nbuilt 1100 60\n", 1100, 55, 14, None),
        ("begun 1000\nmeasured 0 0\n", 1000, 50, None, None),
        ("begun 0\nmeasured 100 50\nbuilt 2600 900\n", 2600, 99, 4, None),
        ("begun 0\nmeasured 100 50\nbuilt 1900 900\nended 0\n", 1900, 100, None, 0),
        ("begun 0\nended 2\n", 0, 100, None, 2),
    ],
)
def test_how_far_a_build_is(text, done, percent, minutes, status):
    found = progress(text, 2000)
    assert (found["done"], found["percent"], found["minutes"], found["status"]) == (done, percent, minutes, status)
    assert found["objects"] == max(2000, done)


def test_the_options_that_are_needed_are_those_that_the_proof_asks_for():
    from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _proof

    assert {option for option, *_words in _proof._PARTS.values()} | {"KEXEC_FILE"} <= set(_kernel_build.NEEDED)
