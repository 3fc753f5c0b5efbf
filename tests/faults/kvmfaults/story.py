# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One case: a prepared host, an update of it, a fault in one of its steps, and what must hold afterwards."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kvmlab import limits
from kvmlab.errors import LabError
from kvmlab.lab import Lab
from kvmlab.machines.host import Host
from kvmlab.story.controller import Controller, Play, Run
from kvmlab.story.domains import records, shut_down, start_domains
from kvmlab.story.night import boot_of, other_kernel, wait_until
from kvmlab.story.prepared import DOMAINS, GUESTS, JOURNALLED, UNITS
from kvmlab.watch import ledger
from kvmlab.watch.heartbeat import read_ticks

from . import agent, judge
from .judge import KEPT, RESTARTED, STILL, Allowed, Facts, Guest

NAMES = tuple(guest.name for guest in GUESTS)
ALL = frozenset(NAMES)
AGENT = Path(str(agent.__file__))
POLL_S = 2.0
POWER_CUT = "power cut: starting again"
UPDATE = "kvm.liveupdate.update"
# Ansible shows a task when it begins, and not only when it has a result.
SHOWN = {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"}

# Prints what the host says about itself and its guests. Arguments: NAME=UNIT of each guest.
COLLECT = """
import glob, json, os, re, subprocess, sys

def said(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    return done.stdout

qemus = {}
for link in glob.glob("/proc/[0-9]*/exe"):
    try:
        program = os.readlink(link)
        words = open(link[:-3] + "cmdline", "rb").read().decode("utf-8", "replace").split("\\0")
    except OSError:
        continue
    if "qemu-system" in program and "-name" in words:
        name = re.sub("^guest=", "", words[words.index("-name") + 1]).partition(",")[0]
        qemus[name] = qemus.get(name, 0) + 1
told = {}
for name, unit in (word.split("=", 1) for word in sys.argv[1:]):
    lines = said("journalctl", "--boot", "--no-pager", "--output=cat", "--lines=50", "--unit", unit).splitlines()
    told[name] = " / ".join([line for line in lines if line.startswith("kvm-liveupdate: ")][-3:])
sessions = set()
for link in glob.glob("/proc/[0-9]*/fd/*"):
    try:
        session = re.search(r"luo_session\\]? ?(kvm-[0-9a-f]{32})", os.readlink(link))
    except OSError:
        continue
    sessions |= {session[1]} if session else set()
status = subprocess.run(["kvm-liveupdate", "status"], capture_output=True, text=True, timeout=600)
if status.returncode:
    sys.exit(f"kvm-liveupdate status: {status.stderr}")
found = json.loads(status.stdout)
state, boot = "/var/lib/kvm-liveupdate/guests", open("/proc/sys/kernel/random/boot_id").read().strip()

def is_left(file):
    guest, _dot, kind = file.rpartition(".")
    if kind != "hold":
        return kind in ("state", "image", "part")
    # The start of a guest that an update saved releases what was preserved for it. The next boot removes the record.
    lost = found["guests"].get(guest, {}).get("journal", {}).get("state") == "lost"
    return not lost or json.load(open(f"{state}/{file}"))["boot_id"] == boot

left = [file for file in (os.listdir(state) if os.path.isdir(state) else []) if is_left(file)]
print(json.dumps({
    "status": found,
    "qemus": qemus,
    "told": told,
    "loaded": open("/sys/kernel/kexec_loaded").read().strip() == "1",
    # Documentation/arch/x86/boot.rst, type_of_loader: 0xD is a kexec.
    "by_kexec": int(open("/proc/sys/kernel/bootloader_type").read()) >> 4 == 0xD,
    "sessions": sorted(sessions),
    "left": sorted(left),
}))
"""


def unit_of(name: str) -> str:
    """The unit that restores a guest."""
    return next((guest.unit for guest in UNITS if guest.name == name), f"kvm-liveupdate-hold@{name}.service")


class Story:
    """A host whose guests run, from before the fault until the host works again."""

    def __init__(self, lab: Lab, host: Host, fault: str) -> None:
        self.host, self.fault, self.seen, self.plan = host, fault, "", ""
        self.lab, self.controller = lab, Controller(lab, environment=SHOWN)
        self.play: Play | None = None
        self.before, self.target = boot_of(host), other_kernel(host)
        self._units: list[str] = []
        self._injected = 0
        self._console = host.folder / "console.log"
        self._offset = self._console.stat().st_size
        self._last_update = self._collect()["status"]["update"].get("id")
        self._pool = ThreadPoolExecutor(1)
        self._pages = tempfile.TemporaryDirectory()
        self._running: Run | None = None
        self._end: Future[Play] | None = None
        self._begun: ledger.Update | None = None
        self.since = time.monotonic()

    def there(self, command: str, stdin: str = "", limit_s: float = limits.HOST_COMMAND) -> str:
        """Run a command on the host that must succeed. Returns its output."""
        done = self.host.ssh(command, limit_s, stdin)
        if done.returncode:
            raise LabError(f"{self.host.name}: {command.splitlines()[0]}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    # The fault

    def inject(self, step: str, command: str, freeze: float | None = None) -> str:
        """Have the host run a command when the next update reaches this step. Returns the mark of this injection, for :meth:`acts`.

        freeze: the step lasts until the command has ended, and so many seconds more.
        """
        self._injected += 1
        mark = f"{self.fault}.{self._injected}"
        unit, script = f"lab-fault-{mark}.service", f"/root/lab-fault-{mark}.sh"
        frozen = "" if freeze is None else f"--freeze {freeze:g}"
        self.there("cat > /root/agent.py", AGENT.read_text())
        self.there(f"cat > {script}", command)
        properties = "-p RemainAfterExit=yes -p Nice=-20"
        self.there(f"systemd-run --quiet --unit {unit} {properties} python3 /root/agent.py {mark} {step} {frozen} -- sh {script}")
        self._units.append(unit)
        self.console(f"lab-fault {mark} waits")
        return mark

    def inject_boot(self, command: str, before: Iterable[str]) -> None:
        """Have the next boot run a command before it starts these units. The command says "systemd-notify --ready" when they may start.

        The isolation before the jump starts what sysinit.target wants and does not run. So the unit checks that the host has booted since.
        This reloads no units: with a unit of this boot before them, the guests would not be restored before the rest of the boot.
        """
        unit = f"""[Unit]
DefaultDependencies=no
ConditionPathExists=/root/lab-fault-boot
After=systemd-remount-fs.service
Before={" ".join(before)}

[Service]
Type=notify
NotifyAccess=all
TimeoutStartSec=900
ExecCondition=/bin/sh -c "! grep -qxFf /root/lab-fault-boot /proc/sys/kernel/random/boot_id"
ExecStartPre=/bin/rm /root/lab-fault-boot
ExecStart=/bin/sh /root/lab-fault-boot.sh
"""
        wants = " ".join(f"/etc/systemd/system/{target}.target.wants" for target in ("sysinit", "kvm-liveupdate-guests"))
        self.there("cat > /etc/systemd/system/lab-fault-boot.service", unit)
        self.there("cat > /root/lab-fault-boot.sh", command)
        self.there(f"for wants in {wants}; do mkdir -p $wants; ln -sf ../lab-fault-boot.service $wants/; done")
        self.there("cat /proc/sys/kernel/random/boot_id > /root/lab-fault-boot; sync")

    def began_at_boot(self) -> bool:
        """Whether this boot has run the command of :meth:`inject_boot`."""
        return self.there("systemctl show -P ExecMainStartTimestampMonotonic lab-fault-boot.service").strip() not in ("", "0")

    def acts(self, mark: str, limit_s: float = limits.HAPPENS) -> bool:
        """Wait until an injection acts. False if the update or its run has ended, so that it does not act any more."""
        until, last = time.monotonic() + limit_s, None
        while f"lab-fault {mark} acts" not in (said := self._said()):
            ended = self._end is not None and self._end.done()
            last = (last or time.monotonic()) if ended else None
            # After the end of its run an update may still go on for a while.
            over = last is not None and time.monotonic() - last > limits.STANDS_STILL
            if over or f"lab-fault {mark} never" in said or time.monotonic() > until:
                return False
            time.sleep(0.2)
        return True

    def failed_injections(self) -> list[str]:
        """What an injection said of a command that failed. Then what the case is about may not have happened."""
        found = re.findall(rf"lab-fault ({re.escape(self.fault)}\.\d+ failed: [^\r\n]*)", self._said())
        return [f"the injection {text}" for text in dict.fromkeys(found)]

    def console(self, text: str) -> None:
        """Wait until the console has shown a text since the story began."""

        def look() -> tuple[bool, str]:
            said = self._said()
            return text in said, said[-200:]

        wait_until(f"{self.host.name}: {text!r} on the console", look)

    def _said(self) -> str:
        with self._console.open("rb") as stream:
            stream.seek(self._offset)
            return stream.read().decode("utf-8", "replace")

    def cut_power(self) -> None:
        """Cut the power of the host, and wait until it is off."""
        log = self.host.folder / "supervisor.log"
        before = log.read_text().count(POWER_CUT)
        self.host.cut_power()
        wait_until("the power cut", lambda: (log.read_text().count(POWER_CUT) > before, "its emulator runs"))

    def boots(self) -> None:
        """Wait until the new kernel boots: it shows its version on the console."""
        self.console(f"Linux version {self.target} ")

    def resumed(self, at_least: int) -> None:
        """Wait until so many guests tick, now that all of them are silent."""
        at = time.monotonic()

        def look() -> tuple[bool, str]:
            ticking = [guest.name for guest in GUESTS if self._last(guest.port) > at]
            return len(ticking) >= at_least, f"{', '.join(ticking) or 'none'}"

        wait_until(f"{at_least} guests after the jump", look)

    def _last(self, port: int) -> float:
        ticks = self.host.heartbeat(port)
        return ticks[-1].arrived if ticks else 0.0

    # The update

    def begin(self, controller: Controller | None = None, **extra: Any) -> None:
        """Start an update of the host, and do not wait for its end. It is in the ledger, with its fault."""
        self._begun = ledger.begin(ledger.path(), self.host.kind, NAMES, self.fault)
        self._running = self._update(controller, extra)
        self._end = self._pool.submit(self._running.end)

    def _update(self, controller: Controller | None, extra: dict[str, Any]) -> Run:
        given = {"hypervisor_update_kernel": f"/boot/vmlinuz-{self.target}", "hypervisor_update_keep_units": self._units, **extra}
        page = Path(self._pages.name) / f"{time.monotonic_ns()}.html"
        return (controller or self.controller).start(UPDATE, page, "--limit", self.host.name, **given)

    def end(self) -> Play:
        """Wait for the end of the run."""
        assert self._end
        self.play = self._end.result(limits.PLAYBOOK)
        return self.play

    def update(self, **extra: Any) -> Play:
        """Update the host, and wait for the end."""
        self.begin(**extra)
        return self.end()

    def task(self, name: str) -> None:
        """Wait until the run begins a task."""
        assert self._running
        running, text = self._running, f": {name}]"

        def look() -> tuple[bool, str]:
            ended, output = running.ended(), running.output()
            if ended and text not in output:
                raise LabError(f"the run ended before its task {name!r}:\n{output[-4000:]}")
            return text in output, output[-200:]

        wait_until(f"task {name!r}", look)

    def kill_controller(self) -> bool:
        """Kill the run, as a crash of the controller does. False if it had ended before."""
        assert self._running
        self._running.kill()
        return self.end().code < 0

    def close(self, interrupted: bool = False) -> None:
        """End what still runs of the story. interrupted: so the end of its update says nothing."""
        if self._running and self._end and not self._end.done():
            self._running.kill()
        if interrupted and self._begun:
            ledger.end(ledger.path(), self._begun, ledger.INTERRUPTED)
        self._pool.shutdown()
        self._pages.cleanup()

    # What must hold

    def must_hold(
        self,
        *,
        ended: Iterable[str] = (),
        held: Iterable[str] = (),
        outcomes: Iterable[str] = (),
        mend: Callable[[], object] | None = None,
        action: Callable[[], object] | None = None,
        surely: bool = True,
    ) -> Facts:
        """All that must hold after a fault, and after the one documented action.

        ended: guests whose memory the fault itself destroys. held: guests that may stay off until the action. outcomes: how the run may
        report the host. mend removes the cause of the fault, action is the documented one. surely: the commands of the injections must have
        succeeded.
        """
        self.settle()
        facts = self.facts()
        self._record(facts)
        self.seen = judge.told(facts)
        problems = judge.judge(facts, Allowed(frozenset(ended), frozenset(held), frozenset(outcomes)))
        self._fail_on([*problems, *(self.failed_injections() if surely else ())], facts)
        self._disarm()
        if mend:
            mend()
        if action:
            action()
        self.works()
        self.seen += "; at the end all guests run and the host can be updated"
        return facts

    def _disarm(self) -> None:
        """End the injections whose step never came: they would act in the next update."""
        for unit in self._units:
            self.host.ssh(f"systemctl stop {unit}")
        self._units = []

    def works(self) -> None:
        """All guests run on their own memory, the host is ready for an update, nothing is left of the fault, the disk is whole."""
        self.settle()
        facts = replace(self.facts(), reported={})
        problems = judge.judge(facts, Allowed(ended=ALL))
        ready = self.controller.ask(self.host.name, "hypervisor_info", kernel=f"/boot/vmlinuz-{other_kernel(self.host)}")
        problems += ready["refusals"] if "refusals" in ready else [f"the host cannot be examined: {ready.get('msg')}"]
        there = self._collect()
        problems += [f"left on the host: {name}" for name in (*there["left"], *there["sessions"])]
        problems += self._disk_problems()
        self._fail_on(problems, facts)

    def _disk_problems(self) -> list[str]:
        """Shut the guest with the journalled disk down, look at its disk, and start it again."""
        ticks = self.host.heartbeat(JOURNALLED.port)
        synced = max((tick.synced or 0 for tick in ticks), default=0)
        shut_down(self.host, JOURNALLED)
        found = records(self.host, JOURNALLED)
        start_domains([self.host], [JOURNALLED])
        # The boot in which the host was prepared did not tick here.
        return judge.disk_problems(JOURNALLED.name, found, synced, [*found.boot_ids[:1], *(tick.boot_id for tick in ticks)])

    def _fail_on(self, problems: list[str], facts: Facts) -> None:
        if not problems:
            return
        self.seen += f"; wrong: {'; '.join(problems)}"
        output = self.play.output[-4000:] if self.play else "no run"
        raise AssertionError("\n".join([*problems, str(facts), output, self.host.last_words()]))

    def settle(self) -> None:
        """Wait until nothing happens by itself any more. Whoever is silent then does not come back by itself."""
        self.host.wait_ssh()
        until, still = time.monotonic() + limits.SETTLES, None
        while time.monotonic() < until:
            unproven = [guest for guest in self._guests({}) if not self._is_alive(guest)]
            busy = self._is_busy()
            if not unproven and not busy:
                return
            ticking = [guest for guest in unproven if judge.fate(guest) in (KEPT, RESTARTED)]
            still = None if busy or ticking else still or time.monotonic()
            if still and time.monotonic() - still > limits.STANDS_STILL:
                return
            time.sleep(POLL_S)

    @staticmethod
    def _is_alive(guest: Guest) -> bool:
        """Whether it ticks and has read all its memory since its pause; also one whose memory is wrong, as nothing more will come of it."""
        return judge.fate(guest) in (KEPT, RESTARTED) and (guest.lives[-1].proven or bool(guest.lives[-1].wrong))

    def _is_busy(self) -> bool:
        """Whether the host boots, or an update is under way there."""
        look = "systemctl is-active multi-user.target kvm-liveupdate-jump.service"
        with suppress(LabError):
            self.host.wait_ssh()
        said = self.host.ssh(look).stdout.split()
        return len(said) < 2 or said[0] != "active" or said[1] not in ("inactive", "failed")

    def facts(self) -> Facts:
        """What is seen of the host and its guests now."""
        there = self._collect()
        update = there["status"]["update"]
        return Facts(
            before=self.before,
            after=boot_of(self.host),
            guests=tuple(self._guests(there)),
            update={} if update.get("id") == self._last_update else update,
            target=self.target,
            by_kexec=there["by_kexec"],
            reported=self.play.report.get(self.host.name, {}) if self.play else {},
            kexec_loaded=there["loaded"],
        )

    def _guests(self, there: dict[str, Any]) -> list[Guest]:
        status, now = there.get("status", {}), time.monotonic()
        error = str(status.get("update", {}).get("error", ""))
        found = []
        for guest in GUESTS:
            said = status.get("guests", {}).get(guest.name, {})
            ticks = self.host.heartbeat(guest.port)
            told = there.get("told", {}).get(guest.name, "")
            found.append(
                Guest(
                    guest.name,
                    judge.lives(ticks, self.since),
                    now - ticks[-1].arrived if ticks else None,
                    there.get("qemus", {}).get(guest.name, 0),
                    said.get("journal", {}),
                    bool(said.get("running")),
                    f"{told} {error if f'guest {guest.name}' in error else ''}".strip(),
                    self._cries(guest.port),
                )
            )
        return found

    def _cries(self, port: int) -> str:
        """What a guest has said of its own errors since the story began."""
        lines = self.host.heartbeat_log(port).read_text(encoding="ascii", errors="replace").splitlines()
        said = [line.split(" ", 2) for line in lines if " FAILED " in line]
        return "; ".join(text for stamp, _wall, text in said if float(stamp) >= self.since)

    def _collect(self) -> dict[str, Any]:
        units = " ".join(f"{name}={unit_of(name)}" for name in NAMES)
        found: dict[str, Any] = json.loads(self.there(f"python3 - {units}", COLLECT))
        return found

    def sessions(self) -> list[str]:
        """The sessions of guests that a process has open."""
        return list(self._collect()["sessions"])

    def _record(self, facts: Facts) -> None:
        """Write the end of the update into the ledger."""
        if self._begun:
            fates = {guest.name: "" if judge.fate(guest) == KEPT else judge.fate(guest) for guest in facts.guests}
            end = ledger.JUMPED if facts.after != facts.before else ledger.STAYED
            ledger.end(ledger.path(), self._begun, end, fates)
            self._begun = None

    # The documented actions

    def rerun(self) -> None:
        """Repeat the update command. It must end well."""
        begun = ledger.begin(ledger.path(), self.host.kind, NAMES, f"{self.fault}, repeated")
        before = boot_of(self.host)
        play = self._update(None, {}).end()
        self.settle()
        facts = self.facts()
        fates = {guest.name: "" if judge.fate(guest) == KEPT else judge.fate(guest) for guest in facts.guests}
        ledger.end(ledger.path(), begun, ledger.JUMPED if facts.after != before else ledger.STAYED, fates)
        if play.code:
            self._fail_on([f"the repeated update ended with exit code {play.code}: {play.output[-4000:]}"], facts)

    def recover(self) -> None:
        """Undo an update whose process has ended."""
        self.there("kvm-liveupdate recover", limit_s=limits.MODULE)

    def resume(self, *names: str) -> None:
        """Resume guests that an update left paused."""
        for name in names:
            self.there(f"kvm-liveupdate resume {name}")

    def start(self, *names: str) -> None:
        """Try the restore of guests again."""
        self.there(f"systemctl start {' '.join(map(unit_of, names))}", limit_s=limits.MODULE)

    def discard(self, *names: str) -> None:
        """Discard the memory of guests, and start them from their disks."""
        for name in names:
            domain = any(each.name == name for each in DOMAINS)
            self.there(f"kvm-liveupdate discard {name} && {f'virsh start {name}' if domain else f'systemctl start {unit_of(name)}'}")

    def follow_runbook(self) -> None:
        """What the runbooks say for the state in which the host is; at the end the update is repeated."""
        facts = self.facts()
        if facts.update.get("state") in agent.IN_ORDER and facts.update.get("boot_id") == facts.after.boot_id:
            self.recover()
        for guest in facts.guests:
            if judge.fate(guest) == STILL:
                self.host.ssh(f"kvm-liveupdate resume {guest.name}")
            elif judge.fate(guest) not in (KEPT, RESTARTED):
                self._bring_back(guest)
        self.rerun()

    def _bring_back(self, guest: Guest) -> None:
        """Try the restore again. If that fails too, give the memory up."""
        if guest.journal.get("state") == "saved":
            self.host.ssh(f"systemctl start {unit_of(guest.name)}", limits.MODULE)
            self.settle()
            if any(each.name == guest.name and judge.fate(each) in (KEPT, RESTARTED) for each in self._guests({})):
                return
            self.discard(guest.name)
        elif any(each.name == guest.name for each in DOMAINS):
            self.there(f"virsh start {guest.name}")
        else:
            self.there(f"systemctl start {unit_of(guest.name)}")


def wait_ready(host: Host) -> None:
    """Start the guests of a prepared host that did not start with it, and wait until all have read their memory."""
    host.ssh(f"systemctl start {' '.join(guest.unit for guest in UNITS)}")
    start_domains([host], DOMAINS)
    for guest in GUESTS:
        wait_until(f"{host.name}: {guest.name} has read its memory", partial(_has_read, host, guest.port))
    wait_until("the boot", lambda: ((state := host.ssh("systemctl is-system-running").stdout.strip()) in ("running", "degraded"), state))


def _has_read(host: Host, port: int) -> tuple[bool, str]:
    ticks = read_ticks(host.heartbeat_log(port))
    if not ticks:
        return False, "no tick"
    return ticks[-1].turn >= 2 and time.monotonic() - ticks[-1].arrived < limits.SILENCE, f"tick {ticks[-1].number}"
