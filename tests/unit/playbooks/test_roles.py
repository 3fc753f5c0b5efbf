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


def play(tmp_path, tasks, hosts, *words, **environ):
    """Run tasks on hosts with these variables; returns how it ended and what it printed."""
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    common = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    inventory = {"all": {"hosts": {name: {**common, **variables} for name, variables in hosts.items()}}}
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1", **environ}
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


SYSTEMCTL = """#!/bin/sh
case "$1" in
list-units) printf '%s\\n' 'web@1.service loaded active running a guest' 'ssh.service loaded active running' ;;
list-unit-files) printf '%s\\n' 'web@.service disabled enabled' 'web2.service enabled enabled' 'ssh.service enabled enabled' ;;
esac
"""
VIRSH = "#!/bin/sh\nprintf '%s\\n' app db1 db2 ''\n"


def test_patterns_become_the_names_of_guests_of_this_host(tmp_path):
    for name, text in (("systemctl", SYSTEMCTL), ("virsh", VIRSH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    role = ROLES / "hypervisor_setup"
    told = "{{ __hypervisor_setup_units.names }} {{ __hypervisor_setup_domains.names }}"
    tasks = [
        {"ansible.builtin.include_vars": str(role / "vars/main.yml")},
        {"ansible.builtin.include_tasks": str(role / "tasks/find_guests.yml")},
        {"ansible.builtin.debug": {"msg": told}},
    ]
    common = {"__hypervisor_setup_libvirt": {"stat": {"exists": True}}}
    hosts = {
        "globs": {"hypervisor_setup_guest_units": ["web*.service", "new.service", "mail*"], "hypervisor_setup_domains": ["x?", "db*"]},
        "names": {"hypervisor_setup_guest_units": ["new.service"], "hypervisor_setup_domains": ["nobody"]},
        "every": {"hypervisor_setup_guest_units": [], "hypervisor_setup_domains": ["all"]},
        "none": {
            "hypervisor_setup_guest_units": [],
            "hypervisor_setup_domains": ["all"],
            "__hypervisor_setup_libvirt": {"stat": {"exists": False}},
        },
    }
    hosts = {name: {**common, **variables} for name, variables in hosts.items()}
    code, output = play(tmp_path, tasks, hosts, "--check", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert code == 0, output
    assert "['web@1.service', 'web2.service', 'new.service'] ['db1', 'db2']" in output, output
    assert "hypervisor_setup_guest_units: no systemd service on globs matches mail*" in output
    assert "hypervisor_setup_domains: no libvirt domain on globs matches x?" in output
    assert "['new.service'] ['nobody']" in output and "on names matches" not in output
    assert "[] ['app', 'db1', 'db2']" in output
    assert "hypervisor_setup_domains: no libvirt domain on none matches all" in output and "[] []" in output


# A host's systemctl. Each daemon that runs has a file with the time of its start, and one with the restarts.
DAEMONS = """#!/bin/sh
for last; do :; done
cd DIR/daemons
case "$*" in
is-active*) [ -e "$last" ] ;;
show*ExecMainStartTimestamp*) cat "$last" ;;
show*) printf '%s\\n' LoadState=loaded ActiveState=active ;;
restart*) echo "$last" >> restarts; date -u '+%a %F %T.%6N UTC' > "$last" ;;
esac
"""
LONG_AGO = "Thu 2020-01-02 03:04:05.678901 UTC\n"


def test_libvirts_daemon_is_restarted_if_it_runs_since_before_its_configuration(tmp_path):
    """A run that ended after it wrote qemu.conf left a daemon that puts the RAM of domains elsewhere, and no later run restarted it."""
    (tmp_path / "systemctl").write_text(DAEMONS.replace("DIR", str(tmp_path)))
    (tmp_path / "systemctl").chmod(0o755)
    daemons, hook = tmp_path / "daemons", tmp_path / "libvirt/hooks/qemu.d/kvm-liveupdate"
    daemons.mkdir()
    hook.parent.mkdir(parents=True)
    (tmp_path / "libvirt/qemu.conf").write_text("#memory_backing_dir = x\n")
    tasks = json.loads(
        json.dumps(yaml.safe_load((ROLES / "hypervisor_setup/tasks/libvirt.yml").read_text())).replace("/etc/", f"{tmp_path}/")
    )

    def restarted(*words):
        (daemons / "restarts").write_text("")
        code, output = play(tmp_path, tasks, {"here": {}}, *words, PATH=f"{tmp_path}:{os.environ['PATH']}")
        assert code == 0, output
        return (daemons / "restarts").read_text().split(), "changed=0" not in output

    (daemons / "virtqemud.service").write_text(LONG_AGO)
    assert restarted("--check") == ([], True) and "#" in (tmp_path / "libvirt/qemu.conf").read_text()
    assert restarted() == (["virtqemud.service"], True)  # the other does not run
    (tmp_path / "libvirt/libvirtd.conf").touch()
    assert restarted() == ([], False)
    (daemons / "libvirtd.service").write_text(LONG_AGO)  # as after a run that ended before the restart
    assert restarted() == (["libvirtd.service"], True)
    hook.touch()  # libvirt looks for hooks when it starts
    assert restarted() == (["virtqemud.service", "libvirtd.service"], True)


@pytest.mark.skipif(os.path.exists("/usr/sbin/update-grub"), reason="this machine has GRUB")
def test_no_host_is_rebooted_whose_menu_does_not_have_the_words(tmp_path):
    seen = {"reasons": [{"code": "cmdline"}], "kernel": {"cmdline": ""}}
    role = {"name": "kvm.liveupdate.hypervisor_setup", "tasks_from": "finish"}
    host = {"__hypervisor_setup_host": seen, "hypervisor_setup_reboot_ok": True}
    code, output = play(tmp_path, [{"ansible.builtin.include_role": role}], {"here": host}, "--check")
    assert code != 0 and "Write kernel parameters to the boot menu" in output, output
    assert "Reboot the host" not in output


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


def test_a_kernel_whose_package_did_not_remove_it_may_not_become_the_default(tmp_path):
    """A meta package, or a mistyped version: "absent" is true of it, and the next boot would start the newest kernel."""
    tasks = yaml.safe_load((ROLES / "hypervisor_kernel/tasks/absent.yml").read_text())
    names = [task["name"] for task in tasks]
    order = ["Remove the package", "Look for the kernel", "Refuse if the boot loader could still start this kernel"]
    assert names[-4:] == [*order, "Let the boot loader choose its default again"]
    kernel = {"hypervisor_kernel_image": "/boot/vmlinuz-7.3.4", "__hypervisor_kernel_host": {"kernel": {"release": "7.2.13"}}}
    hosts = {
        f"{'named' if package else 'nameless'}_{'there' if there else 'gone'}": {
            **kernel,
            "hypervisor_kernel_package": package,
            "__hypervisor_kernel_image": {"stat": {"exists": there}},
        }
        for package in ("linux-image-amd64", "")
        for there in (True, False)
    }
    refuse = tasks[names.index(order[-1])]
    for options, refused in (((), {"named_there", "nameless_there"}), (("--check",), {"nameless_there"})):
        _code, output = play(tmp_path, [refuse], hosts, *options)
        assert {name for name in hosts if f"{name}: /boot/vmlinuz-7.3.4 exists" in output} == refused, output
        assert ("exists although linux-image-amd64 is removed, so a boot" in output) is ("named_there" in refused)


NASTY = "<script>alert('1')</script>"
UPDATED = {
    "outcome": "updated",
    "why": "",
    "step": "",
    "kernel_before": "7.2.13",
    "kernel_after": 'a"b\\c',
    "update_id": "u1",
    "blackout_max": 0.0,
    "times": {},
    "guests": {NASTY: {"state": "restored", "why": "", "times": {"paused": 1.0, "resumed": 2.5}}, "db": {"state": "", "why": NASTY}},
}


def test_ansible_escapes_what_the_page_and_the_metrics_say(tmp_path):
    """Its template module does not escape HTML, whatever a template says."""
    role = {"name": "kvm.liveupdate.hypervisor_update", "tasks_from": "files"}
    report = {"hypervisor_update_report": f"{tmp_path}/page.html", "hypervisor_update_metrics": str(tmp_path)}
    code, output = play(tmp_path, [{"ansible.builtin.include_role": role}], {"hv1": {**report, "hypervisor_update_result": UPDATED}})
    assert code == 0, output
    page, metrics = (tmp_path / "page.html").read_text(), (tmp_path / "kvm_liveupdate.prom").read_text()
    assert page.startswith("<!doctype html>") and "<script" not in page and page.count("&lt;script&gt;") >= 3
    assert json.loads((tmp_path / "page.html.json").read_text()) == {"hv1": UPDATED}
    assert f'kvm_liveupdate_guest_blackout_seconds{{guest="{NASTY}"}} 1.500\n' in metrics
    assert 'kernel_after="a\\"b\\\\c",update_id="u1"} 1.000\n' in metrics


def told(verdict, *codes):
    reasons = [{"code": code, "message": f"says {code}", "remedy": "mend it", "verdict": verdict} for code in codes]
    return {"pair": "a-b", "there": {"verdict": verdict, "reasons": reasons}}


PROOFS = {
    "proven": (told("proven"), {}, ""),
    "runs": (None, {}, ""),
    "refused": (told("refused", "modules", "kvm-off"), {}, "says modules - mend it; says kvm-off - mend it"),
    "unknown": (
        told("unknown", "config-unread"),
        {},
        "says config-unread - mend it; the jump is not proven for this pair of kernels, a-b - fix the problems above; or test the jump on a"
        " host without guests, and then accept the pair with hypervisor_update_accept_unknown: [a-b]",
    ),
    "accepted": (told("unknown", "config-unread"), {"hypervisor_kernel_accept_unknown": ["a-b"]}, ""),
    "known_to_fail": (told("refused", "kvm-off"), {"hypervisor_kernel_accept_unknown": ["a-b"]}, "says kvm-off - mend it"),
    "no_initrd": (told("refused", "initrd-missing"), {}, "says initrd-missing - mend it"),
    "none_built_yet": (told("refused", "initrd-missing"), {"hypervisor_kernel_initrd": "/boot/i"}, ""),
    "nor_modules": (told("refused", "initrd-missing", "modules"), {"hypervisor_kernel_initrd": "/boot/i"}, "says modules - mend it"),
}


def test_which_kernels_are_refused_after_they_are_installed(tmp_path):
    """In check mode the initial RAM disk that is named was not built; everything else counts."""
    tasks = yaml.safe_load((ROLES / "hypervisor_kernel/tasks/prove.yml").read_text())
    (refuse,) = (task for task in tasks if task["name"] == "Refuse a kernel that cannot take over")
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
        assert (f"{name}: Linux 7.3.4 is installed, but it cannot take over: " in output) is bool(says), (name, output)
        assert not says or f"cannot take over: {says}. A cold boot" in output, (name, output)
