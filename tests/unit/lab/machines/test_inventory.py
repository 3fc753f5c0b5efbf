# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Ansible and SSH are told about the hosts."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import yaml
from kvmlab.machines.inventory import inventory, known_hosts, ssh_config

FOLDER = Path("/home/a user/.cache/kvm-liveupdate/lab")
KEY = Path("/home/a user/.cache/kvm-liveupdate/ssh-0123/client")
PORTS = {"hv1": 40001, "hv2": 40002}
KINDS = {"hv1": "forky", "hv2": "trixie"}


def test_the_inventory_has_a_group_with_all_hosts_and_one_a_kind() -> None:
    groups = yaml.safe_load(inventory(FOLDER, KEY, PORTS, KINDS))
    content = groups.pop("hypervisors")
    assert groups == {"forky": {"hosts": {"hv1": None}}, "trixie": {"hosts": {"hv2": None}}}
    assert content["hosts"] == {"hv1": {"ansible_port": 40001}, "hv2": {"ansible_port": 40002}}
    assert content["vars"]["ansible_host"] == "127.0.0.1"
    assert content["vars"]["ansible_user"] == "root"
    assert content["vars"]["ansible_python_interpreter"] == "/usr/bin/python3"
    assert content["vars"]["ansible_ssh_private_key_file"] == str(KEY)


def test_the_group_of_a_kind_has_a_name_that_ansible_takes() -> None:
    groups = yaml.safe_load(inventory(FOLDER, KEY, PORTS, {"hv1": "forky-dracut", "hv2": "forky"}))
    assert set(groups) == {"hypervisors", "forky", "forky_dracut"}


def test_the_users_own_known_hosts_are_left_alone() -> None:
    shared = yaml.safe_load(inventory(FOLDER, KEY, PORTS, KINDS))["hypervisors"]["vars"]
    words = shlex.split(shared["ansible_ssh_common_args"])
    assert words[::2] == ["-o"] * (len(words) // 2)
    options = dict(word.split("=", 1) for word in words[1::2])
    assert options["UserKnownHostsFile"] == f'"{FOLDER}/known_hosts"'
    assert options["GlobalKnownHostsFile"] == "/dev/null"
    assert options["StrictHostKeyChecking"] == "yes"
    assert options["HostKeyAlias"] == "kvm-liveupdate-lab"


def test_ssh_reads_the_configuration_as_it_is_meant(tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(ssh_config(FOLDER, KEY, PORTS))
    done = subprocess.run(["ssh", "-G", "-F", str(config), "hv2"], capture_output=True, text=True, timeout=20, check=True)
    seen = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert (seen["hostname"], seen["port"], seen["user"]) == ("127.0.0.1", "40002", "root")
    assert seen["identityfile"] == str(KEY)
    assert seen["userknownhostsfile"] == str(FOLDER / "known_hosts")
    assert seen["hostkeyalias"] == "kvm-liveupdate-lab"
    assert seen["stricthostkeychecking"] in ("true", "yes")


def test_known_hosts_name_the_hosts_key_and_not_its_comment() -> None:
    assert known_hosts("ssh-ed25519 AAAAC3 kvm-liveupdate-lab-host") == "kvm-liveupdate-lab ssh-ed25519 AAAAC3\n"
