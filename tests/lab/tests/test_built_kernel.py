# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A kernel that the playbook build_kernel builds on this machine: a host installs it from the repository, and is updated to it and back."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kvmlab import limits
from kvmlab.machines.host import Host
from kvmlab.parts import kernel, packages
from kvmlab.story.controller import GUESTS, Controller, Play
from kvmlab.story.night import boot_of, start_guests, update, wait_alive
from kvmlab.watch.report import all_survived

pytestmark = pytest.mark.beyond

SUFFIX = "-built"
# What the lab's small kernel lacks for a signature. Another option has to select SYSTEM_DATA_VERIFICATION; in Debian's it is MODULE_SIG.
SIGNED = (
    "ASYMMETRIC_KEY_TYPE",
    "ASYMMETRIC_PUBLIC_KEY_SUBTYPE",
    "CRYPTO",
    "CRYPTO_RSA",
    "CRYPTO_SHA256",
    "EFI",
    "FS_VERITY",
    "FS_VERITY_BUILTIN_SIGNATURES",
    "PKCS7_MESSAGE_PARSER",
    "SIGNED_PE_FILE_VERIFICATION",
    "SYSTEM_TRUSTED_KEYRING",
    "X509_CERTIFICATE_PARSER",
)
# This machine, beside the lab's hosts.
BUILDER = {
    "ansible_become": False,
    "ansible_connection": "local",
    "ansible_python_interpreter": "/usr/bin/python3",
    "build_kernel_hosts": "builder",
}

BuildPlay = Callable[..., Play]


@dataclass(frozen=True)
class Debian:
    """Debian's source and configuration of one kernel."""

    source: Path
    config: Path


def unpacked(package: Path, folder: Path, pattern: str) -> Path:
    """The one file of a package that matches the pattern, unpacked to the folder."""
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=limits.TOOL)
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module", name="debian")
def debians_kernel(tmp_path_factory: pytest.TempPathFactory) -> Debian:
    folder = tmp_path_factory.mktemp("debian")
    source = packages.newest(packages.resolve().sources)
    config = packages.Source(f"linux-config-{source.series}", source.version)
    return Debian(
        unpacked(kernel.package(source), folder / "source", "usr/src/linux-source-*.tar.xz"),
        unpacked(packages.download(config, folder, folder / "log"), folder / "config", "usr/src/*/config.amd64_none_amd64.xz"),
    )


@pytest.fixture(scope="module", name="key")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("key")
    words = "openssl req -new -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=lab -keyout key -out certificate"
    subprocess.run(words.split(), cwd=folder, check=True, capture_output=True, timeout=limits.TOOL)
    both = folder / "kernel.pem"
    both.touch(mode=0o600)
    both.write_text((folder / "key").read_text() + (folder / "certificate").read_text())
    return both


@pytest.fixture(scope="module", name="build")
def build_play(controller: Controller, debian: Debian, key: Path) -> BuildPlay:
    """Runs the playbook for the small kernel of the lab, signed, in this folder."""
    small = kernel.build(packages.newest(packages.resolve().sources), twin=True).config

    def run(folder: Path, *options: str, **extra: Any) -> Play:
        given = {
            **BUILDER,
            "build_kernel_source": str(debian.source),
            "build_kernel_config": str(small),
            "build_kernel_options": dict.fromkeys(SIGNED, "y"),
            "build_kernel_suffix": SUFFIX,
            "build_kernel_signing_key": str(key),
            "build_kernel_directory": str(folder),
        }
        return controller.play("kvm.liveupdate.build_kernel", "-i", "builder,", "--limit", "builder", *options, **{**given, **extra})

    return run


@pytest.fixture(scope="module", name="built")
def a_built_kernel(build: BuildPlay, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which it was built."""
    folder = tmp_path_factory.mktemp("kernels")
    play = build(folder)
    assert play.code == 0, play.output
    assert "by the speed of this machine" in play.output and "objects are compiled, about" in play.output
    return folder


def record(folder: Path) -> dict[str, Any]:
    """What the role says about the one kernel that was built there."""
    (path,) = folder.glob("packages/*/build.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_debians_own_configuration_resolves(controller: Controller, debian: Debian, tmp_path: Path) -> None:
    """It is not compiled. Without the programs for Rust and BTF, Debian's kernel loses some options; those of live update are there."""
    role = {"name": "kvm.liveupdate.build_kernel", "public": True}
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.include_role": {**role, "tasks_from": "packages"}},
        {"ansible.builtin.include_role": {**role, "tasks_from": "inputs"}},
        {"ansible.builtin.file": {"path": "{{ __build_kernel_work }}", "state": "directory", "mode": "0755"}},
        {"ansible.builtin.set_fact": {"__build_kernel_state": {}}},
        {"ansible.builtin.include_role": {**role, "tasks_from": "prepare"}},
    ]
    play = {"hosts": "builder", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    given = {
        "build_kernel_source": str(debian.source),
        "build_kernel_config": str(debian.config),
        "build_kernel_directory": str(tmp_path / "kernels"),
    }
    done = controller.play(str(tmp_path / "play.yml"), "-i", "builder,", "--limit", "builder", **{**BUILDER, **given})
    assert done.code == 0, done.output
    (state,) = (tmp_path / "kernels").glob("work/*/state.json")
    found = json.loads(state.read_text())
    assert found["release"].endswith("-liveupdate") and found["objects"] > 15000
    config = (state.parent / "linux/.config").read_text().splitlines()
    assert {f"CONFIG_{name}=y" for name in ("KEXEC_HANDOVER", "LIVEUPDATE", "LIVEUPDATE_MEMFD")} <= set(config)


def test_an_option_that_does_not_resolve_is_named(build: BuildPlay, tmp_path: Path) -> None:
    play = build(tmp_path, build_kernel_options={"SIGNED_PE_FILE_VERIFICATION": "y"})
    assert play.code != 0 and "it depends on" in play.output, play.output
    assert "SIGNED_PE_FILE_VERIFICATION is n in the resulting configuration" in play.output
    assert not list(tmp_path.glob("work/*/state.json"))


def test_nothing_is_built_again_for_the_same_inputs(build: BuildPlay, built: Path) -> None:
    play = build(built)
    assert play.code == 0 and play.recap["builder"]["changed"] == 0, play.output
    assert build(built, "--check").recap["builder"]["changed"] == 0
    other = build(built, build_kernel_options={**dict.fromkeys(SIGNED, "y"), "PANIC_TIMEOUT": 7})
    assert other.code != 0 and "Two kernels must not have one name" in " ".join(other.output.split()), other.output


def test_the_same_inputs_give_the_same_packages(build: BuildPlay, built: Path, tmp_path: Path) -> None:
    """In another folder, with one program at a time."""
    play = build(tmp_path, build_kernel_jobs=1, build_kernel_publish=False)
    assert play.code == 0, play.output
    assert record(tmp_path)["sha256"] == record(built)["sha256"]


@pytest.fixture(scope="module", name="host")
def a_prepared_host(controller: Controller, hv1: Host) -> Host:
    play = controller.play("kvm.liveupdate.setup", "--limit", hv1.name, hypervisor_setup_reboot_ok=True)
    assert play.code == 0, play.output
    start_guests(controller, [hv1])
    return hv1


@pytest.fixture(scope="module", name="installed")
def a_host_with_the_built_kernel(controller: Controller, host: Host, kernels: tuple[str, str], built: Path) -> Iterator[str]:
    """Installed from the repository. Returns its release."""
    assert boot_of(host).kernel in kernels
    archive = subprocess.run(["tar", "-C", built / "repository", "-cf", "-", "."], check=True, capture_output=True, timeout=limits.TOOL)
    host.ssh("mkdir -p /srv/kernels && base64 -d | tar -C /srv/kernels -xf -", stdin=base64.b64encode(archive.stdout).decode())
    source = "deb [signed-by=/etc/apt/keyrings/kvm-liveupdate.asc] file:/srv/kernels ./"
    host.ssh(f"cp /srv/kernels/kvm-liveupdate.asc /etc/apt/keyrings/ && echo '{source}' > /etc/apt/sources.list")
    kernel_built = record(built)
    asked = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernel_built['release']}", "hypervisor_kernel_package": kernel_built["name"]}
    play = controller.play("kvm.liveupdate.kernel", "--limit", host.name, **asked)
    assert play.code == 0, play.output
    yield kernel_built["release"]
    play = controller.play("kvm.liveupdate.kernel", "--limit", host.name, hypervisor_kernel_state="absent", **asked)
    assert play.code == 0, play.output


def test_a_host_is_updated_to_it_boots_it_and_is_updated_back(controller: Controller, host: Host, installed: str) -> None:
    before = boot_of(host).kernel
    play, reports = update(controller, [host], installed)
    assert play.code == 0 and all_survived(reports), play.output
    assert boot_of(host).kernel == installed
    assert host.ssh(f"cat /boot/config-{installed}").stdout.count("CONFIG_LIVEUPDATE=y") == 1
    host.reboot_hard()
    assert boot_of(host).kernel == installed
    start_guests(controller, [host])
    play, reports = update(controller, [host], before)
    assert play.code == 0 and all_survived(reports), play.output
    assert boot_of(host).kernel == before
    for guest in GUESTS:
        wait_alive(host, guest)
