# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernels' configurations, and what a changed one builds again."""

from __future__ import annotations

from kvmlab.parts import kernel
from kvmlab.parts.packages import Source

SOURCE = Source("linux-source-7.2", "7.2.13-1")


def test_an_option_of_the_upper_fragment_takes_the_place_of_the_other() -> None:
    assert kernel.overlaid("# why\nCONFIG_A=y\nCONFIG_B=y\n", "CONFIG_B=m\nCONFIG_C=5\n") == "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=5\n"


def test_the_modular_kernel_loads_what_a_distributions_kernel_loads() -> None:
    options = kernel.modular_fragment().splitlines()
    modules = ("BLK_DEV_DM", "BRIDGE", "EXT4_FS", "KVM", "KVM_AMD", "TUN", "VHOST_NET", "VIRTIO_BLK", "VIRTIO_NET", "VIRTIO_PCI")
    assert {f"CONFIG_{name}=m" for name in modules} <= set(options)
    assert {"CONFIG_KEXEC_HANDOVER=y", "CONFIG_LIVEUPDATE_MEMFD=y", "CONFIG_MODULES=y"} <= set(options)
    assert len({option.partition("=")[0] for option in options}) == len(options)


def test_the_modular_kernel_is_an_artefact_of_its_own() -> None:
    """And the others keep their names, so that they are not built again."""
    usual = kernel.inputs_of(SOURCE, twin=False)
    assert set(usual) == {"twin", "package", "version", "fragment", "recipe"}
    assert kernel.MODULAR not in usual["recipe"] and "CONFIG_MODULES" not in usual["fragment"]
    modular = kernel.modular_inputs_of(SOURCE, twin=False)
    assert kernel.MODULAR in modular["recipe"] and modular["fragment"] != usual["fragment"]
