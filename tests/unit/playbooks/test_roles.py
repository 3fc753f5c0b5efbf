# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Steps of the roles for the host and its kernel, run by ansible on this machine in check mode."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROLES = Path(__file__).parents[3] / "roles"


def play(tmp_path, tasks, hosts, *words):
    """Run tasks on hosts with these variables; returns how it ended and what it printed."""
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    common = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    inventory = {"all": {"hosts": {name: {**common, **variables} for name, variables in hosts.items()}}}
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        ["ansible-playbook", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml"), *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(os.path.exists("/usr/sbin/update-grub"), reason="this machine has GRUB")
def test_no_host_is_rebooted_whose_menu_does_not_have_the_words(tmp_path):
    seen = {"reasons": [{"code": "cmdline"}], "kernel": {"cmdline": ""}}
    role = {"name": "kvm.liveupdate.hypervisor_setup", "tasks_from": "finish"}
    host = {"__hypervisor_setup_host": seen, "hypervisor_setup_reboot_ok": True}
    code, output = play(tmp_path, [{"ansible.builtin.include_role": role}], {"here": host}, "--check")
    assert code != 0 and "Options | Write them for the boot loader and see that its menu has them" in output, output
    assert "hypervisor_setup : Reboot]" not in output


def test_the_scratch_area_is_asked_for_by_both_of_its_names(tmp_path):
    """Linux 7.4 has another name for it than those before, and a host is to start with either."""
    seen = {"reasons": [], "kernel": {"cmdline": "kho=on liveupdate=on kho_scratch=64M"}}
    tasks = [
        {"ansible.builtin.include_vars": str(ROLES / "hypervisor_setup/vars/main.yml")},
        {"ansible.builtin.debug": {"msg": "{{ __hypervisor_setup_words | join(' ') }} lacks={{ __hypervisor_setup_lacks_words }}"}},
    ]
    hosts = {
        "given": {"__hypervisor_setup_host": seen, "hypervisor_setup_scratch": "64M"},
        "usual": {"__hypervisor_setup_host": seen, "hypervisor_setup_scratch": ""},
    }
    code, output = play(tmp_path, tasks, hosts)
    assert code == 0 and '"kho=on liveupdate=on kho_scratch=64M kho_bootmem=64M lacks=True"' in output, output
    assert '"kho=on liveupdate=on lacks=False"' in output, output


def told(verdict, *codes):
    reasons = [{"code": code, "message": f"says {code}", "remedy": "mend it", "verdict": verdict} for code in codes]
    return {"pair": "a-b", "there": {"verdict": verdict, "reasons": reasons}}


PROOFS = {
    "proven": (told("proven"), {}, ""),
    "runs": (None, {}, ""),
    "refused": (told("refused", "modules", "kvm-off"), {}, "says modules - mend it; says kvm-off - mend it"),
    "unknown": (told("unknown", "config-unread"), {}, "says config-unread - mend it"),
    "accepted": (told("unknown", "config-unread"), {"hypervisor_kernel_accept_unknown": ["a-b"]}, ""),
    "known_to_fail": (told("refused", "kvm-off"), {"hypervisor_kernel_accept_unknown": ["a-b"]}, "says kvm-off - mend it"),
    "no_initrd": (told("refused", "initrd-missing"), {}, "says initrd-missing - mend it"),
    "none_built_yet": (told("refused", "initrd-missing"), {"hypervisor_kernel_initrd": "/boot/i"}, ""),
    "nor_modules": (told("refused", "initrd-missing", "modules"), {"hypervisor_kernel_initrd": "/boot/i"}, "says modules - mend it"),
}


def test_which_kernels_are_refused_when_they_are_staged(tmp_path):
    """In check mode the initial RAM disk that is named was not built; everything else counts."""
    tasks = yaml.safe_load((ROLES / "hypervisor_kernel/tasks/prove.yml").read_text())
    (refuse,) = (task for task in tasks if task["name"] == "Prove | Refuse a kernel that cannot take over")
    hosts = {}
    for name, (proof, variables, _says) in PROOFS.items():
        examined = {"target": {"release": "7.3.4", "current": proof is None}, "kernel": {"release": "7.2.13"}}
        examined.update({"proof": proof} if proof else {})
        hosts[name] = {
            "hypervisor_kernel_initrd": "",
            "hypervisor_kernel_accept_unknown": [],
            **variables,
            "__hypervisor_kernel_host": examined,
        }
    _code, output = play(tmp_path, [refuse], hosts, "--check")
    for name, (_proof, _variables, says) in PROOFS.items():
        assert (f"{name}: kernel 7.3.4 is there, but cannot take over: " in output) is bool(says), (name, output)
        assert not says or f"cannot take over: {says}. A cold boot" in output, (name, output)
