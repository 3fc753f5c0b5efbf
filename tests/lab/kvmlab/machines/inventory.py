# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How to reach the hosts: the Ansible inventory and the SSH configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

# All hosts have the same host key, so one line in known_hosts fits all ports.
KEY_ALIAS = "kvm-liveupdate-lab"


def ssh_options(folder: Path, key: Path) -> dict[str, str]:
    """The options for every SSH connection to a host."""
    return {
        "BatchMode": "yes",
        "IdentityFile": str(key),
        "IdentitiesOnly": "yes",
        "HostKeyAlias": KEY_ALIAS,
        "UserKnownHostsFile": str(folder / "known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": "15",
        # A host that jumps does not close its connections.
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "6",
        "LogLevel": "ERROR",
    }


def ssh_config(folder: Path, key: Path, ports: Mapping[str, int]) -> str:
    """An ssh_config with one entry for each host."""
    lines = []
    for name, port in ports.items():
        lines += [f"Host {name}", "  HostName 127.0.0.1", f"  Port {port}", "  User root"]
    lines.append("Host *")
    lines += [f"  {name} {_quoted(value)}" for name, value in ssh_options(folder, key).items()]
    return "\n".join(lines) + "\n"


def known_hosts(public_key: str) -> str:
    """The known_hosts file with this host key."""
    kind, body = public_key.split()[:2]
    return f"{KEY_ALIAS} {kind} {body}\n"


def inventory(folder: Path, key: Path, ports: Mapping[str, int], kinds: Mapping[str, str]) -> str:
    """The Ansible inventory, with a group for each kind of host. Values are JSON strings, which are also valid YAML.

    The name of a group has no hyphen: Ansible warns of one.
    """
    shared = {
        "ansible_host": "127.0.0.1",
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": " ".join(
            f"-o '{name}={_quoted(value)}'" for name, value in ssh_options(folder, key).items() if name != "IdentityFile"
        ),
    }
    lines = ["---", "hypervisors:", "  vars:"]
    lines += [f"    {name}: {json.dumps(value)}" for name, value in shared.items()]
    lines.append("  hosts:")
    for name, port in ports.items():
        lines += [f"    {name}:", f"      ansible_port: {port}"]
    for kind in sorted(set(kinds.values())):
        lines += [f"{kind.replace('-', '_')}:", "  hosts:", *(f"    {name}:" for name in ports if kinds[name] == kind)]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """A value in quotes if it contains a space, as the path of the cache may do."""
    return f'"{value}"' if " " in value else value
