# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One update of this host, from the commit to the jump. PRIVATE to the collection.

Ansible commits an update and goes away; the unit kvm-liveupdate-jump.service does the rest alone: stop what is not needed
while the guests run on, then pause and save all guests, then jump. Until the last step every failure is undone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from . import _boot_order, _clock, _guests, _holding, _host, _kexec, _limits, _paths, _processes, _providers, _systemd
from ._errors import LiveUpdateError, told
from ._lock import JUMP_UNIT, Lock, busy, last, outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import
    from concurrent.futures import Future

__all__ = ("Lock", "commit", "gate", "jump", "last", "outcome", "recover", "services", "to_be_stopped")

JUMP_TARGET = "kvm-liveupdate.target"
_UNITS = "/run/systemd/system"  # drop-ins for this boot only
_MANAGER = "/run/systemd/system.conf.d/99-kvm-liveupdate.conf"  # systemd-system.conf(5), read again by a reload
# What systemd-shutdown would execute instead of the kexec (src/shutdown/shutdown.c, can_exitrd). It lies on a tmpfs.
_EXITRD = "/run/initramfs/shutdown"
_EXITRD_ASIDE = _EXITRD + ".kvm-liveupdate"
GRACE_S = _limits.COMMIT_ANSWER
RECOVER_S = _limits.KEXEC_AFTER_CRASH
DOWN_LIMIT_S = _limits.KEXEC
TIMEOUT_S = _limits.UPDATE
LOCK_LIMIT_S = _limits.LOCK
SESSIONS_LIMIT_S = _limits.SESSIONS
PAUSE_LIMIT_S = _limits.PAUSE
FINAL_KILL_S = _limits.FINAL_KILL
OTHER_VM_S = _limits.OTHER_VM
_MANY_FDS = 4096
# Each look at a guest runs a few programs; the guests run on beside them.
_LOOKS_AT_ONCE = 8
# Real-time signal 16: PID 1 does at once what "systemctl --force kexec" asks it for (systemd(1)), and no program has to be started. It
# stops no units (src/core/manager.c, objective_table): nothing unpacks an exitrd, no service gets 90 s to end.
_KEXEC_SIGNAL = 16
# Between the stop of a service and the start of its socket, something may ask for the service once more.
SOCKET_ATTEMPTS = 3
SOCKET_LIMIT_S = _limits.SOCKETS
# What stops with a unit (systemd.unit(5)).
_NEEDED_BY = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo")
# And what a unit stops with, the other way round; and what it cannot do without, which isolation leaves where the unit stays.
_STOPS_WITH = ("PartOf", "StopPropagatedFrom")
_NEEDS = ("Requires", "Requisite", "BindsTo")
# What the guests reach the world through keeps working until they are paused.
KEPT = ("remote-fs.target", "systemd-networkd.service", "NetworkManager.service", "networking.service", "openvswitch-switch.service")
# Their stop changes what running guests see: rules are flushed, routes withdrawn, addresses and disks go.
NOTICED = (
    # packet filters
    "arno-iptables-firewall.service",
    "arptables.service",
    "csf.service",
    "ebtables.service",
    "ferm.service",
    "firewalld.service",
    "ip6tables.service",
    "ipset.service",
    "iptables.service",
    "netfilter-persistent.service",
    "nftables.service",
    "proxmox-firewall.service",
    "pve-firewall.service",
    "shorewall*.service",
    "ufw.service",
    # cards, bonds, bridges
    "connman.service",
    "dhclient*.service",
    "dhcpcd*.service",
    "ifup@*.service",
    "lldpad.*",
    "lldpd.service",
    "mstpd.service",
    "netctl*.service",
    "network.service",
    "teamd@*.service",
    "wicked*.service",
    "wpa_supplicant*.service",
    # switches, routes
    "babeld.service",
    "bfdd.service",
    "bgpd.service",
    "bird*.service",
    "calico-*.service",
    "conntrackd.service",
    "exabgp*.service",
    "frr.service",
    "gobgpd.service",
    "igmpproxy.service",
    "isisd.service",
    "keepalived.service",
    "ndppd.service",
    "neutron-*.service",
    "openvswitch*.service",
    "ospf*d.service",
    "ovn-*.service",
    "ovs*.service",
    "pimd.service",
    "quagga.service",
    "rip*d.service",
    "smcroute.service",
    "vpp.service",
    "zebra.service",
    # tunnels
    "ipsec.service",
    "nebula*.service",
    "netbird*.service",
    "openvpn*.service",
    "strongswan*.service",
    "tailscaled.service",
    "tinc*.service",
    "wg-quick@*.service",
    "xl2tpd.service",
    "zerotier-one.service",
    # addresses and names
    "dnsmasq*.service",
    "isc-dhcp-server*.service",
    "kea-dhcp*.service",
    "radvd.service",
    # disks
    "autofs.service",
    "beegfs-*.service",
    "blk-availability.service",
    "ceph-*.service",
    "dm-event.*",
    "drbd*.service",
    "fcoe.service",
    "gluster*.service",
    "gssproxy.service",
    "iscsi*.service",
    "linstor-satellite.service",
    "lvmlockd.service",
    "lvmlocks.service",
    "multipathd.*",
    "nbd*.service",
    "nvmefc-*.service",
    "nvmf-*.service",
    "o2cb.service",
    "ocfs2.service",
    "open-iscsi.service",
    "qemu-pr-helper.service",
    "qemu-pr-helper.socket",
    "rbd-target-*.service",
    "rbdmap.service",
    "rpc-gssd.service",
    "rpc-statd.service",
    "sanlock.service",
    "scini.service",
    "stratis*.service",
    "target.service",
    "tcmu-runner.service",
    "tgt*.service",
    "vdo.service",
    "wdmd.service",
    "zfs*.service",
    # libvirt's own daemons of these
    "virt*d.service",
    "virt*d.socket",
)
# They stop their guests when they are stopped, and other nodes end a host that does not answer them.
CLUSTERS = ("corosync.service", "pacemaker.service", "pacemaker_remote.service", "pve-ha-lrm.service", "sbd.service")
_SUFFIXES = ("automount", "mount", "path", "scope", "service", "slice", "socket", "swap", "target", "timer")


def look() -> dict:
    """What the gate judges by. Each running guest is looked at afresh."""
    found = _guests.records()
    guests = {record["name"]: record for record in found}
    return {
        "image": _kexec.record(),
        "guests": guests,
        "holds": _holding.held_each(list(guests.values())),
        "not_back": _guests.not_back(guests),
        "strangers": _guests.strangers(found),
    }


def gate(names: list[str], seen: dict) -> list[str]:
    """What forbids the jump of these guests, in sentences; none when all is in place. ``seen`` is what :func:`look` saw. Pure."""
    problems = []
    if not seen["image"]:
        problems.append("no kernel is staged in this boot; stage one with kvm.liveupdate.kexec_image")
    problems += [f"guest {name} does not run any more; run the update again" for name in names if name not in seen["guests"]]
    problems += [told(reason) for reason in seen["not_back"]]
    for name in seen["guests"]:
        if name not in names:
            problems.append(f"guest {name} runs but is not part of this update and would be lost; run the update again to plan for it")
        elif name not in seen["holds"]:
            problems.append(f"guest {name}: its RAM is not held in a session; preserve it with kvm.liveupdate.guest")
    problems += [
        f"{vm['name']} (process {vm['pid']}) runs a virtual machine that would be lost: {vm['reasons'][0]['message']}"
        for vm in seen["strangers"]
    ]
    return problems


def unit_problems(keep_units: list[str], shown: dict[str, dict[str, str]]) -> list[str]:
    """What of the host's units forbids the jump. ``shown`` has LoadState and ActiveState of these and of :data:`CLUSTERS`. Pure."""
    problems = []
    for unit in keep_units:
        if unit.rpartition(".")[2] not in _SUFFIXES:
            problems.append(f"keep_units: {unit!r} is not the name of a unit; write for example {unit}.service")
        elif shown[unit].get("LoadState") == "not-found":
            problems.append(f"keep_units: there is no unit {unit} on this host; correct the name, or leave it out")
    for unit in CLUSTERS:
        if shown[unit].get("ActiveState") == "active" and unit not in keep_units:
            problems.append(
                f"{unit} runs: its stop would stop the guests that it manages, and other nodes may end this host while it is silent."
                " Put the cluster into maintenance mode and stop its services on this host, or, if it manages no guests and no node fences"
                f" this host, add {unit} to hypervisor_update_keep_units"
            )
    return problems


def commit(guests: list[str], keep_units: list[str], on_loss: str, timeout: float = TIMEOUT_S) -> dict:
    """Write the update's journal and start the jump. From here on the host acts alone. ``timeout``: seconds, of the whole update."""
    seen = look()
    problems = gate(guests, seen)
    problems += unit_problems(keep_units, _systemd.show_each(list(dict.fromkeys((*keep_units, *CLUSTERS))), "LoadState", "ActiveState"))
    if busy():
        problems.append(f"{JUMP_UNIT} has not ended since the last update; 'systemctl status {JUMP_UNIT}' shows what it waits for")
    if problems:
        raise LiveUpdateError("the jump is refused, nothing was stopped: " + "; ".join(problems), problems=problems)
    update = {
        "id": _host.random_uuid(),
        "state": "committed",
        "boot_id": _host.boot_id(),
        "kernel": _host.kernel(),
        "image": seen["image"],
        "guests": sorted(guests),
        "keep_units": keep_units,
        "on_loss": on_loss,
        "timeout": timeout,
        "pause_by": time.monotonic() + timeout / 2,
        "times": {"committed": time.time()},
    }
    _paths.write_json(_paths.UPDATE, update)
    _systemd.run("systemctl", "start", "--no-block", JUMP_UNIT)
    return update


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # the journal's daemon may be gone by now, and an undo goes on without it
        sys.stderr.write(f"kvm-liveupdate: {text}\n")


def _advance(update: dict, state: str) -> None:
    update["state"] = state
    update["times"][state] = time.time()
    _paths.write_json(_paths.UPDATE, update)
    _log(f"update {update['id']}: {state}")


def _record(update: dict) -> None:
    """Write down what is about to be done, so that :func:`recover` can take it back when this process is killed meanwhile."""
    _paths.write_json(_paths.UPDATE, update)


def _end(update: dict, error: str) -> None:
    """Record that the update was undone, for this boot also where the disk is full: the controller waits for it. Never raises."""
    update["error"] = error
    with contextlib.suppress(OSError):
        _paths.write_json(_paths.OUTCOME, {"id": update["id"], "state": "aborted", "error": error})
    try:
        _advance(update, "aborted")
    except OSError as err:
        _log(f"update {update['id']}: aborted, and {_paths.UPDATE} cannot be written: {err}")


def jump() -> int:
    """Carry out the committed update; returns (1) only when it was aborted and undone."""
    update = last()
    if outcome(update, _host.boot_id(), "") != "pending" or update["state"] != "committed":
        raise LiveUpdateError("no committed update waits for a jump; kvm.liveupdate.kexec commits one")
    with contextlib.ExitStack() as locked:
        try:
            locked.enter_context(Lock(LOCK_LIMIT_S, of_update=True))
        except LiveUpdateError as err:
            _end(update, f"{err}. Nothing was stopped and the guests run on; then run the update again")
            return 1
        try:
            time.sleep(GRACE_S)
            _carry_out(update)
        except Exception as err:  # pylint: disable=broad-except  # whatever it is, no guest may stay paused
            why = str(err) or repr(err)
            _abort(update, f"{why}{_what_next(update, why)}")
            return 1


def _carry_out(update: dict) -> t.NoReturn:
    """The update up to the jump. Raises when anything is not as it has to be."""
    update["units"] = _active_units()
    _systemd.end_by(update["pause_by"], "half of the update's time, until which guests have to be paused,")
    records = _check(update)
    update["stages"] = _boot_order.plan(list(records.values()))
    update["loaded"] = _to_load(update["image"], bool(update["stages"]))
    _kexec.try_out(update["loaded"])
    # What the next stage needs brings its guests' units: in the first one they would only share its processors.
    ahead = update["stages"][0]["guests"] if update["stages"] else []
    update["early"] = [record["unit"] for record in records.values()]
    _record(update)  # also when a guest ends meanwhile
    for record in records.values():
        _boot_order.start_early(record["unit"], True, ahead=record["name"] in ahead)
    update["clock_ahead"] = _clock.ahead()
    update["stopping_from"] = time.monotonic()
    _advance(update, "stopping")
    _stop_the_rest(update)
    _end_sessions(update)
    _limit_the_shutdown()
    _write_out(max(update["pause_by"] - time.monotonic(), 0.0))
    _kexec.load(update["loaded"])
    records = _check(update)
    if not _kexec.loaded():
        raise LiveUpdateError("somebody unloaded the kernel; run the update again")
    update["running"] = _meant_to_run(records)
    if _late(update):
        raise LiveUpdateError("the host took too long until it could have paused its guests")
    update["times"]["gate"] = time.time()
    _systemd.end_by(time.monotonic() + PAUSE_LIMIT_S, f"the time that guests may be paused ({PAUSE_LIMIT_S:g} s)")
    for name in records:  # until now somebody else's kexec would bring over memory that no journal tells of
        _paths.remove(_holding.record_path(name))
    for name in update["running"]:
        _paths.write_json(_guests.run_path(name, "paused"), _holding.process(records[name]))
    _advance(update, "saving")
    _save_all(update, records)
    _advance(update, "jumping")
    _put_exitrd_aside()
    problems = _last_look(update, records)
    if problems:
        raise LiveUpdateError("; ".join(problems))
    os.kill(1, signal.SIGRTMIN + _KEXEC_SIGNAL)
    time.sleep(DOWN_LIMIT_S)
    raise LiveUpdateError(f"PID 1 was asked for the kexec and has not ended this process within {DOWN_LIMIT_S:g} s")


def _late(update: dict) -> bool:
    return bool(time.monotonic() > update["pause_by"])


def _what_next(update: dict, why: str) -> str:
    """What the operator of an update that is undone does, as a sentence after ``why``; empty where that says it."""
    if "gate" in update["times"] or not _late(update):
        return "" if "run the update again" in why else ". Mend what this says, then run the update again"
    return (
        f". Half of the {update['timeout']:g} s that the update may take are over and no guest was paused: run the update again, or raise"
        " hypervisor_update_timeout"
    )


def _meant_to_run(records: dict[str, dict]) -> list[str]:
    """Which guests are to run after the jump: those that run, and those that only an undo of ours left paused."""
    states = _at_once(lambda name: _providers.of(records[name]).status(records[name]), list(records))
    return [name for (name, record), state in zip(records.items(), states) if state.result() == "running" or _holding.owes(record)]


def _put_exitrd_aside() -> None:
    """Have the shutdown do the kexec itself. An exitrd would change root and do it, or another reboot, without the sessions."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(_EXITRD, _EXITRD_ASIDE)


def _put_exitrd_back() -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(_EXITRD_ASIDE, _EXITRD)


def _to_load(image: dict, guests_first: bool) -> dict:
    """What was staged, with the command line for this jump."""
    return {**image, "cmdline": _boot_order.cmdline(image["cmdline"], guests_first, _boot_order.consoles())}


def _write_out(limit_s: float) -> None:
    """Have the file systems written out: sync(2), which waits for one that does not answer for as long as it likes."""
    child = os.fork()
    if child == 0:
        os.closerange(3, _MANY_FDS)  # it may outlive this process
        os.sync()
        os._exit(0)
    until = time.monotonic() + limit_s
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            granted = f"within {limit_s:.0f} s" if limit_s >= 1 else "in the time that was left"
            raise LiveUpdateError(f"the file systems are not written out {granted}; does one of them (NFS?) not answer?")
        time.sleep(0.01)


def _check(update: dict) -> dict[str, dict]:
    """The gate once more, and what speaks against each guest by now; returns the guests' records.

    The journal gets them as they were found, without what the providers look up for themselves.
    """
    seen = look()
    problems = gate(update["guests"], seen)
    if seen["image"] != update["image"]:
        problems.append(f"{update['image']['path']} is not what is staged any more; run the update again")
    records = {name: seen["guests"][name] for name in update["guests"] if name in seen["guests"]}
    update["records"] = {name: dict(record) for name, record in records.items()}
    update["holds"] = {name: seen["holds"][name] for name in records if name in seen["holds"]}
    problems = problems or _reasons(list(records.values()))
    if problems:
        raise LiveUpdateError("; ".join(problems))
    return records


def _reasons(records: list[dict]) -> list[str]:
    """Why guests cannot be preserved any more: since they were held a job may have begun, a disk or their QEMU have been replaced."""
    for provider, its_own in _by_provider(records):
        survey = getattr(provider, "survey", None)
        if survey:
            survey(its_own)
    jobs = _at_once(_guests.inspect, records, _LOOKS_AT_ONCE)
    return [f"guest {record['name']}: {told(reason)}" for record, job in zip(records, jobs) for reason in job.result()]


def _by_provider(records: t.Iterable[dict]) -> list[tuple[t.Any, list[dict]]]:
    found: dict[str, tuple[t.Any, list[dict]]] = {}
    for record in records:
        found.setdefault(record["provider"], (_providers.of(record), []))[1].append(record)
    return list(found.values())


def _last_look(update: dict, records: dict[str, dict]) -> list[str]:
    """What forbids the jump after all, right before it; in the pause, so each thing is asked once for all guests, and at the same time.

    It costs one start of virsh where there are domains, a short talk with the QEMU of each guest in a unit, and a look at the
    descriptors of the few processes that are left.
    """
    problems = [
        f"guest {name}: its QEMU or its memory is not the one that was saved any more; run the update again"
        for name, record in records.items()
        if not _holding.is_of(update["holds"][name], record)
    ]
    jobs = _at_once(lambda asked: asked[0].still_saved(asked[1]), _by_provider(records.values()))
    ours = {record["pid"] for record in records.values()}
    links = _others(ours)
    problems += _started_meanwhile(links)
    kept_open = set().union(*links.values())
    problems += [
        f"guest {name}: nothing keeps its session open any more; run the update again"
        for name in records
        if _processes.SESSION_LINK + update["holds"][name]["session"] not in kept_open
    ]
    if not _kexec.loaded() or _kexec.record() != update["image"]:
        problems.append("the kernel that was loaded for the jump is not there any more; run the update again")
    return [problem for job in jobs for problem in job.result()] + problems


def _others(ours: set[int]) -> dict[int, set[str]]:
    """What all processes but these have open, by their ids."""
    return {pid: set(_processes.fd_links(pid).values()) for pid in _processes.pids() if pid not in ours}


def _started_meanwhile(links: dict[int, set[str]]) -> list[str]:
    """Which of these processes run a virtual machine, in sentences."""
    return [
        f"process {pid} ({_processes.unit_of(pid) or 'in no unit'}) runs a virtual machine that was started meanwhile and would be lost;"
        " keep others from starting some, and run the update again"
        for pid, seen in links.items()
        if _processes.VM_LINK in seen
    ]


def _spare_others(update: dict) -> None:
    """Raise when a virtual machine runs that is none of our guests: asked right before each stop of what it may run in.

    Guests run on meanwhile, so one that is about to begin or to end is waited for: libvirt starts a QEMU for a moment to ask what it can.
    """
    ours = {record["pid"] for record in update["records"].values()}
    until = time.monotonic() + OTHER_VM_S
    while True:
        links = _others(ours)
        problems = _started_meanwhile(links)
        if not problems and not any(map(_processes.may_begin_a_vm, links.values())):
            return
        if time.monotonic() >= until:
            break
        time.sleep(0.1)
    if problems:
        raise LiveUpdateError("; ".join(problems))


def _active_units(types: str = "service,socket,timer,path,target") -> list[str]:
    """What runs of these types; by default what isolation may stop: it leaves mounts and swap alone."""
    text = _systemd.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", f"--type={types}")
    return _names(text)


def _names(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def noticed(active: list[str]) -> list[str]:
    """Which of these units running guests would notice the stop of (:data:`NOTICED`). Pure."""
    from fnmatch import fnmatchcase

    return [unit for unit in active if any(fnmatchcase(unit, pattern) for pattern in NOTICED)]


def to_be_stopped(running: list[str], guests: list[str]) -> list[str]:
    """Which of these running services an update stops before it pauses a guest; ``guests`` are the guests' units. Pure.

    Not systemd's own. One more may run on because a guest's unit requires it, which only systemd can tell.
    """
    kept_names = {*KEPT, *(unit for provider in _providers.all_of_them() for unit in provider.KEPT), *noticed(running), *guests}
    ours = ("systemd-", "kvm-liveupdate", "user@", "user-runtime-dir@")
    return [unit for unit in running if unit not in kept_names and not unit.startswith(ours)]


def services() -> list[str]:
    """The services that have a process now."""
    return _names(_systemd.run("systemctl", "list-units", "--plain", "--no-legend", "--state=running", "--type=service"))


def _stop_the_rest(update: dict) -> None:
    """Stop every unit that neither the guests nor the early boot need; the guests run on."""
    guests = [update["records"][name]["unit"] for name in update["guests"]]
    often = [*KEPT, *(unit for provider in _providers.all_of_them() for unit in provider.KEPT), *update["keep_units"]]
    seen = _systemd.show_each(list(dict.fromkeys((*often, *noticed(update["units"])))), "ActiveState", "TriggeredBy")
    for unit in update["keep_units"]:
        if seen[unit].get("ActiveState") != "active":
            _log(f"{unit} of keep_units is {seen[unit].get('ActiveState')}: nothing of it is kept")
    update["kept"] = kept(seen, update["units"])
    # Not wanted: with that all that it wants itself would be started.
    bound = _systemd.show_each(_bound_to([*guests, *update["kept"]]), "ActiveState", "TriggeredBy")
    update["in_place"] = kept(bound, update["units"])
    _record(update)
    directory = f"{_UNITS}/{JUMP_TARGET}.d"
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/kept.conf", "w", encoding="utf-8") as file:
        file.write("[Unit]\n" + "".join(f"Wants={unit}\n" for unit in (*guests, *update["kept"])))
    for unit in update["in_place"]:
        path = _in_place(unit)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _paths.write_text(path, "[Unit]\nIgnoreOnIsolate=yes\n", 0o644)
    _systemd.run("systemctl", "daemon-reload")
    _spare_others(update)
    update["units"] = _active_units()  # what has ended by itself until now is nothing to start again
    _record(update)
    _systemd.run("systemctl", "isolate", JUMP_TARGET, timeout=max(update["pause_by"] - time.monotonic(), 0.0))


def _end_sessions(update: dict) -> None:
    """End logins, containers and whatever else isolation leaves alone, while the guests run on.

    In the pause the shutdown would wait for each that does not end by itself (src/shutdown/shutdown.c, broadcast_signal).
    """
    used = {_processes.unit_of(record["pid"]) for record in update["records"].values()}
    for verb in (["stop"], ["kill", "--signal=SIGKILL"], ["stop"]):
        units = sessions(_active_units("scope,service"), {*used, *update["kept"], *update["in_place"]})
        if not units:
            return
        _spare_others(update)
        update["ended"] = list(dict.fromkeys((*update.get("ended", ()), *units)))
        _record(update)
        with contextlib.suppress(LiveUpdateError):  # one that has just ended is an error, and the next look tells who is left
            _systemd.run("systemctl", *verb, "--", *units, timeout=SESSIONS_LIMIT_S)
    _log(f"they do not end, not even by SIGKILL, and may make the pause longer: {', '.join(units)}")


def sessions(active: list[str], used: set[str | None]) -> list[str]:
    """Which of the active units isolation leaves alone although no guest needs them: scopes, and users' service managers. Pure."""
    return [unit for unit in active if unit.endswith(".scope") or unit.startswith("user@") if unit != "init.scope" and unit not in used]


def _limit_the_shutdown() -> None:
    """Have the shutdown, within the pause, wait for nobody for long: PID 1 hands its own default limit on to it (src/core/main.c).

    Only after isolation: until then it is also the limit of services that have none of their own.
    """
    os.makedirs(os.path.dirname(_MANAGER), exist_ok=True)
    _paths.write_text(_MANAGER, f"[Manager]\nDefaultTimeoutStopSec={FINAL_KILL_S}s\n", 0o644)
    _systemd.run("systemctl", "daemon-reload")


def _usual_shutdown() -> None:
    if _paths.remove(_MANAGER):
        _systemd.run("systemctl", "daemon-reload")


def _in_place(unit: str) -> str:
    """The drop-in of a unit that isolation passes over, for this boot only."""
    return f"{_UNITS}/{unit}.d/40-kvm-liveupdate.conf"


def _bound_to(units: list[str]) -> list[str]:
    """The units whose stop would stop one of these, or one that they require, although nobody stops that itself."""
    found: list[str] = []
    asked: set[str] = set()
    while units:
        asked.update(units)
        shown = _systemd.show_each(units, *_STOPS_WITH, *_NEEDS)
        found += [unit for properties in shown.values() for name in _STOPS_WITH for unit in properties.get(name, "").split()]
        needed = {unit for properties in shown.values() for name in (*_STOPS_WITH, *_NEEDS) for unit in properties.get(name, "").split()}
        units = sorted(needed - asked)
    return found


def kept(seen: dict[str, dict[str, str]], active: list[str]) -> list[str]:
    """Which units run on beside the guests: of those ``seen`` the active ones (wanting another would start it), and what triggers them.

    A socket that was stopped could not be started again while its service runs. Pure.
    """
    running = [unit for unit, properties in seen.items() if properties.get("ActiveState") == "active"]
    triggers = [trigger for unit in running for trigger in seen[unit].get("TriggeredBy", "").split() if trigger in active]
    return list(dict.fromkeys((*running, *triggers)))


def _save_all(update: dict, records: dict[str, dict]) -> None:
    """Pause and save all guests at once, but those that are quick to save last: they would only wait, paused. Every error counts."""
    slow = [name for name, record in records.items() if _providers.of(record).SAVES_SLOWLY]
    for names in (slow, [name for name in records if name not in slow]):
        errors = [str(job.exception()) for job in _at_once(lambda name: _save(records[name], update), names) if job.exception()]
        if errors:
            raise LiveUpdateError("; ".join(errors))


def _at_once(step: t.Callable[[t.Any], t.Any], items: t.Sequence[t.Any], most: int = 0) -> list[Future]:
    """Do a step for all of these, or for ``most``, at the same time, and wait for all of them."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=max(1, min(len(items), most or len(items)))) as pool:
        return [pool.submit(step, item) for item in items]


def _save(record: dict, update: dict) -> None:
    """Pause and save one guest, as the gate saw it. Its state counts only if it is that of the QEMU whose memory is held."""
    name = record["name"]
    hold, was_running = update["holds"][name], name in update["running"]
    saved = _providers.of(record).save(record, _guests.state_path(name), was_running)
    if not _holding.is_of(hold, record):
        raise LiveUpdateError(f"guest {name}: its QEMU or its memory is not the one that is held any more; run the update again")
    journal = {
        **saved,
        "state": "saved",
        "guest": name,
        "update_id": update["id"],
        "boot_id": update["boot_id"],
        "clock_ahead": update.get("clock_ahead"),
        "on_loss": update["on_loss"],
        "hold": hold["hold"],
        "qemu": [record["pid"], record["started"]],
        "session": hold["session"],
        "sizes": hold["sizes"],
        "uuid": record["uuid"],
        "unit": record["unit"],
        "was_running": was_running,
    }
    _paths.write_json(_guests.journal_path(name), journal)


def _abort(update: dict, why: str) -> None:
    """Undo, whatever else fails: the guests first, then the sessions and the image, then what was stopped.

    A guest's journal goes before the guest runs on: were a kexec under way after all, it must not find a state that the
    memory no longer belongs to. A guest that does not run on keeps its state and its session: its memory may be nowhere else.
    """
    _log(f"update {update['id']}: is undone: {why}")
    _systemd.end_by(None)
    problems = [why]

    def undo(what: str, step: t.Callable[..., object], *arguments: object) -> bool:
        try:
            step(*arguments)
            return True
        except Exception as err:  # pylint: disable=broad-except  # one step that fails must not keep the others from being done
            problems.append(f"not undone: {what}: {err}")
            return False

    records = dict(update["records"]) if "running" in update else {}  # before the pause guests may have ended, or be others by now
    if not records:
        undo("search for the guests", lambda: records.update(_guests.known()))
        records = {name: record for name, record in records.items() if name in update["guests"]}

    def run_on(name: str) -> bool:
        undo(f"journal of guest {name}", _paths.remove, _guests.journal_path(name))
        if undo(f"save of guest {name}", _holding.let_go_on, records[name], name in update.get("running", ())):
            return True
        if not _processes.lives(records[name]):
            problems.append(f"guest {name} has ended meanwhile, nothing of it is kept; start it as before")
            return True
        with contextlib.suppress(Exception):  # as in undo
            if _providers.of(records[name]).status(records[name]) == "running":
                return True
        if name in update.get("running", ()):
            undo(f"note that guest {name} is left paused", _holding.note_left_paused, records[name])
        problems.append(
            f"guest {name} does not run on; its memory and state are kept. Mend that, then let it go on with kvm.liveupdate.guest"
            f" (state: running). To give both up end its QEMU first ({_ends(records[name])}),"
            f" then 'kvm-liveupdate discard {name}'"
        )
        return False

    names = list(records)
    back = {name for name, job in zip(names, _at_once(run_on, names)) if job.result()}
    undo("staged kernel", _kexec.unload)
    undo(f"renaming of {_EXITRD}", _put_exitrd_back)
    for name, record in records.items():
        if name in back:
            undo(f"state of guest {name}", _paths.remove, _guests.state_path(name))
            undo(f"session of guest {name}", _holding.release, record)
    for name in update["guests"]:
        if name not in records:  # it has ended, and its memory would stay taken
            undo(f"session of guest {name}", _holding.release_ended, name)
    for unit in update.get("early", ()):
        undo(f"early start of {unit}", _boot_order.start_early, unit, False)
    for unit in update.get("in_place", ()):
        undo(f"drop-in of {unit}", _paths.remove, _in_place(unit))
    undo("limit of the shutdown", _usual_shutdown)
    if "stopping_from" in update:  # else nothing was stopped, and what has ended has done so by itself
        undo("stopped services", _start_again, update.get("units", []), update["stopping_from"], problems)
    if update.get("ended"):
        undo("look at logins and containers", _tell_ended, update["ended"], problems)
    _end(update, "; ".join(problems))


def _ends(record: dict) -> str:
    """What ends the QEMU of a guest, for people."""
    return f"'virsh destroy {record['uuid']}'" if record["provider"] == "libvirt" else f"'systemctl stop {record['unit']}'"


def recover() -> None:
    """Undo an update whose process ended before the jump, by a kill or a crash. Without effect on any other."""
    with Lock(LOCK_LIMIT_S, of_update=True):
        update = last()
        if outcome(update, _host.boot_id(), "") != "pending":
            return
        if update["state"] == "jumping":
            time.sleep(RECOVER_S)
        _abort(update, f"the process that carried it out ended while it was {update['state']}")


def _tell_ended(units: list[str], notes: list[str]) -> None:
    """Which of the logins and containers that were to end do not run: one was to end when the update was cut off, or came back."""
    active = _active_units("scope,service")
    gone = [unit for unit in units if unit not in active]
    if gone:
        notes.append(f"logins and containers were ended, and do not start by themselves: {', '.join(gone)}")


def _start_again(units: list[str], since: float | None, notes: list[str]) -> None:
    """Start what isolation stopped: the sockets first, then the rest one by one, so that one that fails does not keep others down.

    Units that were made on the fly (systemd-run) are gone with their stop; that goes into ``notes`` and is no failure.
    """
    gone = _gone(stopped(units, _active_units()))
    if gone:
        notes.append(f"these were not defined by a file and ended for good, start them as before: {', '.join(gone)}")
    units = [unit for unit in units if unit not in gone]
    problems = _sockets_again(units, since)
    for unit in ("default.target", *stopped(units, _active_units())):
        try:
            _systemd.run("systemctl", "start", "--no-block", unit)
        except LiveUpdateError as err:
            problems.append(str(err))
    if problems:
        raise LiveUpdateError("; ".join(problems))


def _gone(units: list[str]) -> list[str]:
    """Which of these units systemd does not know any more."""
    return [unit for unit, shown in _systemd.show_each(units, "LoadState").items() if shown.get("LoadState") == "not-found"]


def _sockets_again(units: list[str], since: float | None) -> list[str]:
    """Start the sockets that isolation stopped; returns what went wrong.

    systemd refuses the socket of a service that runs. D-Bus or a login may have started one since, so it stops for its socket.
    """
    problem, sockets = "", []
    for _attempt in range(SOCKET_ATTEMPTS):
        try:
            active = _active_units()
            sockets = [unit for unit in stopped(units, active) if unit.endswith(".socket")]
            if not sockets:
                return []
            triggered = {unit for seen in _systemd.show_each(sockets, "Triggers").values() for unit in seen.get("Triggers", "").split()}
            with_a_vm = {_processes.unit_of(pid) for pid, links in _others(set()).items() if _processes.VM_LINK in links}
            running = _systemd.show_each(sorted(triggered.intersection(active) - with_a_vm), "ActiveEnterTimestampMonotonic", *_NEEDED_BY)
            services = dispensable(running, active, since)
            if services:
                _systemd.run("systemctl", "stop", *services, timeout=SOCKET_LIMIT_S)
            _systemd.run("systemctl", "start", *sockets, timeout=SOCKET_LIMIT_S)
            return []
        except LiveUpdateError as err:
            problem = str(err)
    return [f"{problem}; once nothing needs the services of these sockets, stop those and start the sockets: {', '.join(sockets)}"]


def dispensable(seen: dict[str, dict[str, str]], active: list[str], since: float | None) -> list[str]:
    """Which of the services may stop for a moment: started after ``since`` (seconds, CLOCK_MONOTONIC), and nothing that runs stops with it.

    One that ran all the time may be what a guest needs. ``since`` is None when nothing was stopped. Pure.
    """
    return [
        service
        for service, properties in seen.items()
        if since is not None
        and int(properties.get("ActiveEnterTimestampMonotonic") or 0) > since * 1e6
        and not any(unit in active for name in _NEEDED_BY for unit in properties.get(name, "").split())
    ]


def stopped(before: list[str], now: list[str]) -> list[str]:
    """What ran before and is to run again. Not users' sessions, which come with a login, and nothing of the update itself. Pure."""
    return [unit for unit in before if unit not in now and not unit.startswith(("user@", "user-runtime-dir@", "kvm-liveupdate"))]
