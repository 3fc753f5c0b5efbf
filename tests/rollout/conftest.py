# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts that are reached over SSH: each is a set of namespaces on this machine, with an sshd of Debian. All of it ends with the test."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COLLECTION = HERE.parents[1]
REAL = ("kexec", "update_lease", "update_record")
# Whatever happens to this process, what it starts ends with it.
WITH_US = ("setpriv", "--pdeathsig", "KILL")
OLD, NEW = "7.2.13", "7.3.4"
LIMIT_S = 1200  # this ends what hangs; a machine may be slow
SSHD = """Port 22
HostKey {key}
AuthorizedKeysFile {key}.pub
StrictModes no
UsePAM no
PidFile none
SetEnv HOST={name} STAGE={stage} PATH={folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
# A STUB of systemctl: the unit of the jump works while the mark for it is there.
SYSTEMCTL = """#!/bin/sh
if [ -e {folder}/jump ]; then echo ActiveState=activating; else echo ActiveState=inactive; fi
echo Job=0
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Namespaces need root."""
    if os.geteuid() != 0:
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=f"{getpass.getuser()} may not make network namespaces; run as root"))


def unpacked(name: str, packages: list[str]) -> Path:
    """Packages of Debian, unpacked and not installed: what they have must not run on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvm-liveupdate" / name
    if not (cache / "complete").exists():
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        apt("-q", "download", *packages, cwd=cache)
        for package in cache.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(cache)], check=True, timeout=LIMIT_S)
        (cache / "complete").touch()
    return cache


def apt(*words: str, cwd: Path = HERE) -> str:
    """Run apt-get, with new lists of packages if it fails with the old ones."""
    for known in (False, True):
        done = subprocess.run(["apt-get", *words], cwd=cwd, stdout=subprocess.PIPE, text=True, check=known, timeout=LIMIT_S)
        if done.returncode == 0:
            break
        subprocess.run(["apt-get", "-q", "update"], check=True, timeout=LIMIT_S)
    return done.stdout


@pytest.fixture(name="sshd", scope="session")
def an_sshd() -> Path:
    """Debian's sshd."""
    return unpacked("sshd", ["openssh-server", "libwrap0"])


def until(what: str, condition, limit_s: float = LIMIT_S) -> None:
    """Wait for a condition."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)


def users(text: str) -> str:
    """The users of a host. Its root has a shell without start files: those of this machine may take a lock that a killed host leaves."""
    return re.sub(r"^(root:.*:).*$", r"\1/bin/sh", text, flags=re.MULTILINE) + "sshd:x:499:65534::/run/sshd:/usr/sbin/nologin\n"


class Host:
    """A host and its power supply: what is in its folder survives a boot."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.name, self.fleet, self.address = f"hv{number}", fleet, f"10.99.{number}"
        self.folder = fleet.path / self.name
        (self.folder / "lib").mkdir(parents=True)
        (self.folder / "bin").mkdir()
        (self.folder / "bin/systemctl").write_text(SYSTEMCTL.format(folder=self.folder))
        (self.folder / "bin/systemctl").chmod(0o755)
        (self.folder / "passwd").write_text(users(Path("/etc/passwd").read_text()))
        (self.folder / "version").write_text("#1\n")
        (self.folder / "sshd_config").write_text(
            SSHD.format(key=fleet.path / "key", name=self.name, stage=fleet.path, folder=self.folder),
        )
        self.plan({})
        self.comes_back, self.process = True, None
        self._ends = threading.Event()
        self._watch = threading.Thread(target=self._supervise)
        self._watch.start()

    def plan(self, acts: dict[str, str]) -> None:
        """What its modules do when they are called: see host/module.py."""
        (self.folder / "acts").write_text(json.dumps(acts))

    def waits(self) -> bool:
        """Whether a module waits, as planned."""
        return (self.folder / "wait").exists()

    def go_on(self) -> None:
        """Let the module that waits go on, and all others."""
        self.plan({})
        (self.folder / "wait").unlink()

    def inside(self, *command: str) -> list[str]:
        """A command that runs on this host, and ends with it."""
        spaces = f"/proc/{self.process.pid}/ns"
        words = ["nsenter", f"--mount={spaces}/mnt", f"--net={spaces}/net", f"--pid={spaces}/pid_for_children"]
        return [*WITH_US, *words, *command]

    def end(self) -> None:
        """Switch it off for good."""
        self._ends.set()
        self._watch.join()
        self._off()

    def boot(self, release: str) -> None:
        """Switch it on, with this kernel."""
        (self.folder / "osrelease").write_text(release + "\n")
        (self.folder / "bootloader_type").write_text("208\n")  # a kexec
        (self.folder / "boot_id").write_text(str(uuid.uuid4()) + "\n")
        spaces = [*WITH_US, "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc"]
        command = [HERE / "host/boot.sh", self.name, f"{self.address}.2", self.folder, self.fleet.sshd]
        with (self.folder / "console").open("wb") as console:
            self.process = subprocess.Popen([*spaces, *map(str, command)], stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        own = os.stat("/proc/self/ns/net").st_ino
        until("a network namespace", lambda: os.stat(f"/proc/{self.process.pid}/ns/net").st_ino != own)
        self.fleet.network(f"link add {self.name} type veth peer name eth0 netns {self.process.pid}")
        self.fleet.network(f"address add {self.address}.1/24 dev {self.name}")
        self.fleet.network(f"link set {self.name} up")
        until(f"the sshd of {self.name}", self.is_up)

    def is_up(self) -> bool:
        """Whether it answers, and does not jump."""
        console = self.folder / "console"
        return console.exists() and "listening" in console.read_text() and not (self.folder / "jump").exists()

    def _off(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        (self.folder / "console").unlink(missing_ok=True)
        with contextlib.suppress(subprocess.CalledProcessError):  # it goes with the host's namespace, but not at once
            self.fleet.network(f"link delete {self.name}")

    def _supervise(self) -> None:
        """Jump, or die, when the host asks for it."""
        jump, die = self.folder / "jump", self.folder / "die"
        while not self._ends.wait(0.05):
            if die.exists():
                self._off()
                die.unlink()
            elif jump.exists():
                with jump.open() as mark:
                    fcntl.flock(mark, fcntl.LOCK_EX)
                time.sleep(3)  # the answer to the commit leaves the host (_limits.COMMIT_ANSWER)
                self._off()
                journal = self.folder / "lib/update.json"
                journal.write_text(json.dumps({**json.loads(journal.read_text()), "state": "jumping"}))
                jump.unlink()
                if self.comes_back:
                    time.sleep(1)
                    self.boot(NEW)


class Fleet:
    """Hosts hv1, hv2 and so on, and a controller, each with a network of its own."""

    def __init__(self, path: Path, sshd: Path) -> None:
        self.path, self.sshd, self.hosts = path, sshd, []
        self.controller = subprocess.Popen([*WITH_US, "unshare", "--net", "sleep", "infinity"])

    def begin(self, hosts: int) -> None:
        """Make so many hosts, and the inventory."""
        path = self.path
        self._ready_the_collection()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path / "key")], check=True, timeout=LIMIT_S)
        (path / "log").touch()
        own = os.stat("/proc/self/ns/net").st_ino
        until("a network namespace", lambda: os.stat(f"/proc/{self.controller.pid}/ns/net").st_ino != own)
        for number in range(1, hosts + 1):
            self.hosts.append(Host(self, number))
            self.hosts[-1].boot(OLD)
        settings = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": path / "key",
            "ansible_ssh_common_args": "'-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=3"
            " -o ServerAliveInterval=1 -o ServerAliveCountMax=3 -o LogLevel=ERROR'",
            "ansible_ssh_retries": 0,
            "ansible_pipelining": "true",
            "ansible_python_interpreter": sys.executable,
            "hypervisor_update_kernel": "/boot/vmlinuz-7.3.4",
            "hypervisor_update_timeout": 600,
            "hypervisor_update_restore_timeout": 1,
        }
        lines = ["[hypervisors]", *(f"{host.name} ansible_host={host.address}.2" for host in self.hosts), "[hypervisors:vars]"]
        (path / "hosts").write_text("\n".join([*lines, *(f"{name}={value}" for name, value in settings.items())]) + "\n")
        (path / "host_vars").mkdir()

    def _ready_the_collection(self) -> None:
        root = self.path / "ansible_collections/kvm/liveupdate"
        shutil.copytree(COLLECTION / "plugins", root / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("galaxy.yml", "meta", "playbooks", "roles"):
            (root / part).symlink_to(COLLECTION / part)
        shutil.copy(HERE / "host/jump.py", root / "plugins/module_utils/update/_jump.py")
        for module in (root / "plugins/modules").glob("[a-z]*.py"):
            if module.stem not in REAL:
                module.write_text((HERE / "host/module.py").read_text().replace("@NAME@", module.stem))

    def network(self, words: str) -> None:
        """Change the network of the controller."""
        subprocess.run([*self._inside(), "ip", *words.split()], check=True, capture_output=True, timeout=LIMIT_S)

    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.controller.pid}/ns/net"]

    def start(self, *before: str, **extra: object) -> Run:
        """Start an update of all hosts. The words in ``before`` run ansible-playbook."""
        extra = {"hypervisor_update_report": f"{self.path}/page.html", **extra}
        environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.path), "PYTHONPATH": "", "ANSIBLE_HOME": str(self.path)}
        environment["ANSIBLE_SSH_CONTROL_PATH_DIR"] = f"{self.path}/cp"  # hosts of another test have the same addresses
        environment |= {"LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false"}
        command = ["ansible-playbook", "-i", f"{self.path}/hosts", "-e", json.dumps(extra), "kvm.liveupdate.update"]
        return Run([*WITH_US, *self._inside(), *before, *command], environment, self.path / f"output-{time.monotonic_ns()}")

    def play(self, **extra: object) -> tuple[int, str]:
        """Update all hosts; the exit code and what was printed."""
        return self.start(**extra).end()

    def outcomes(self) -> dict[str, str]:
        """How each host ended."""
        return {name: host["outcome"] for name, host in json.loads((self.path / "page.html.json").read_text()).items()}

    def calls(self, call: str) -> list[str]:
        """The hosts that were called so, in order."""
        return [line.split()[0] for line in (self.path / "log").read_text().splitlines() if line.endswith(f" {call}")]

    def hook(self, name: str, *more: str) -> str:
        """A task file that logs its name, where it runs and how the host ended; ``more`` are lines of more tasks."""
        says = f"${{HOST:-controller}} {{{{ inventory_hostname }}}} {name} {{{{ hypervisor_update_result.outcome }}}}"
        lines = ["- name: Log", f"  ansible.builtin.shell: echo {says} >>{self.path}/log", "  changed_when: true"]
        (self.path / f"{name}.yml").write_text("\n".join([*lines, *more]) + "\n")
        return str(self.path / f"{name}.yml")

    def end(self) -> None:
        for host in self.hosts:
            host.end()
        self.controller.kill()
        self.controller.wait()


class Run:
    """A run of ansible-playbook."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        return self.process.wait(LIMIT_S), self.output.read_text()

    def kill(self) -> None:
        """Kill it and all that it started. A worker has a session of its own, so there is no group to kill."""
        left = [self.process.pid]
        while left:
            pid = left.pop()
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(name="fleet")
def a_fleet(tmp_path: Path, sshd: Path):
    """Make a fleet of so many hosts."""
    with contextlib.ExitStack() as ends:

        def make(hosts: int) -> Fleet:
            fleet = Fleet(tmp_path, sshd)
            ends.callback(fleet.end)
            fleet.begin(hosts)
            return fleet

        yield make


def batches(output: str) -> list[list[str]]:
    """The hosts that began together, from the task that each of them has."""
    staged = [play.partition(" : Stage the kernel]")[2].partition("TASK [")[0] for play in output.split("PLAY [Update hypervisors]")[1:]]
    return [sorted(re.findall(r"^changed: \[(hv\d)\]", lines, re.MULTILINE)) for lines in staged]
