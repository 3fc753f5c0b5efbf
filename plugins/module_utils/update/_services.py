# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stop the other services of the host before the pause, and start them again in an undo. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import os
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..guests import _providers
from ..handover import _journal
from ..host import _commands, _files, _processes, _systemd, _units, _watchdogs
from . import _gate

__all__ = (
    "KEPT",
    "active_units",
    "end_feeders",
    "end_sessions",
    "in_place",
    "limit_the_shutdown",
    "services",
    "start_again",
    "stop_the_rest",
    "tell_ended",
    "to_be_stopped",
    "usual_shutdown",
)

_MANAGER = "/run/systemd/system.conf.d/99-kvm-liveupdate.conf"  # systemd-system.conf(5); daemon-reload reads it again
SESSIONS_LIMIT_S = _limits.SESSIONS
WATCHDOGS_LIMIT_S = _limits.WATCHDOGS
FINAL_KILL_S = _limits.FINAL_KILL
_STOPS = 3
_POLL_S = 0.1
# Between the stop of a service and the start of its socket, something may start the service again.
SOCKET_ATTEMPTS = 3
SOCKET_LIMIT_S = _limits.SOCKETS
# Properties with the units that stop with a unit (systemd.unit(5)).
_NEEDED_BY = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo")
# Properties with the units whose stop stops a unit; and with the units that it needs, which isolation keeps while the unit stays.
_STOPS_WITH = ("PartOf", "StopPropagatedFrom")
_NEEDS = ("Requires", "Requisite", "BindsTo")
# Units of the guests' network and storage keep running until the guests are paused.
KEPT = ("remote-fs.target", "systemd-networkd.service", "NetworkManager.service", "networking.service", "openvswitch-switch.service")
# Running guests notice the stop of these units: it flushes rules, withdraws routes, or removes addresses and disks.
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


def active_units(types: str = "service,socket,timer,path,target") -> list[str]:
    """The active units of these types; by default the types that isolation may stop. It does not stop mounts and swap."""
    text = _commands.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", f"--type={types}")
    return _names(text)


def _names(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def noticed(active: list[str]) -> list[str]:
    """The units whose stop running guests would notice (:data:`NOTICED`). Pure."""
    from fnmatch import fnmatchcase

    return [unit for unit in active if any(fnmatchcase(unit, pattern) for pattern in NOTICED)]


def to_be_stopped(running: list[str], guests: list[str]) -> list[str]:
    """The running services that an update stops before it pauses a guest. ``guests`` are the guests' units, and what serves them. Pure.

    Services of systemd are left out. A listed service may keep running because a guest's unit requires it, which only systemd knows.
    """
    kept_names = {*KEPT, *(unit for provider in _providers.all_of_them() for unit in provider.kept), *noticed(running), *guests}
    ours = ("systemd-", "kvm-liveupdate", "user@", "user-runtime-dir@")
    return [unit for unit in running if unit not in kept_names and not unit.startswith(ours)]


def services() -> list[str]:
    """The services that have a running process."""
    return _names(_commands.run("systemctl", "list-units", "--plain", "--no-legend", "--state=running", "--type=service"))


def stop_the_rest(update: dict) -> None:
    """Stop every unit that neither the guests nor the early boot need. The guests keep running."""
    guests = [update["records"][name]["unit"] for name in update["guests"]]
    kept_always = [*KEPT, *(unit for provider in _providers.all_of_them() for unit in provider.kept)]
    often = [*kept_always, *update["keep_units"], *update["servers"]]
    seen = _systemd.show_each(list(dict.fromkeys((*often, *noticed(update["units"])))), "ActiveState", "TriggeredBy")
    for unit in update["keep_units"]:
        if seen[unit].get("ActiveState") != "active":
            _systemd.log(f"{unit} of keep_units is {seen[unit].get('ActiveState')}, so it is not kept running")
    update["kept"] = kept(seen, update["units"])
    # Not with Wants=: that would also start everything that these units want.
    bound = _systemd.show_each(_bound_to([*guests, *update["kept"]]), "ActiveState", "TriggeredBy")
    update["in_place"] = kept(bound, update["units"])
    _journal.record(update)
    # The guests too, although isolation passes over their units: it keeps what a wanted unit requires, and a guest stops with what it
    # requires (systemd, src/core/transaction.c). It would start a guest that has ended, so it is asked for only if all guests run.
    directory = f"{_units.RUN_FOLDER}/{_units.JUMP_TARGET}.d"
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/kept.conf", "w", encoding="utf-8") as file:
        file.write("[Unit]\n" + "".join(f"Wants={unit}\n" for unit in (*guests, *update["kept"])))
    for unit in update["in_place"]:
        path = in_place(unit)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _files.write_text(path, "[Unit]\nIgnoreOnIsolate=yes\n", 0o644)
    _commands.run("systemctl", "daemon-reload")
    _gate.spare_others(update)
    update["units"] = active_units()  # an undo does not start what has ended by itself before
    update["stopping_from"] = time.monotonic()
    _journal.record(update)
    ended = _gate.ended(update)
    if ended:
        del update["stopping_from"]  # nothing was stopped
        raise LiveUpdateError("; ".join(ended))
    _commands.run("systemctl", "isolate", _units.JUMP_TARGET, timeout=max(update["pause_by"] - time.monotonic(), 0.0))
    started_again = _gate.started_again(update)
    if started_again:
        raise LiveUpdateError("; ".join(started_again))


def end_feeders(update: dict) -> None:
    """Wait until the services that feed watchdogs have stopped, and stop those that have started in their place.

    The isolation returns before the services have stopped. When Debian's watchdog.service stops, it starts wd_keepalive.service
    (OnFailure=), which feeds the same watchdog, and stops it when it stops itself. Whether a watchdog is still active then, only the device
    tells (:func:`_readiness.armed`). A service stays if it ran before the isolation, or if a unit that runs needs it.
    """
    until = min(time.monotonic() + WATCHDOGS_LIMIT_S, update["pause_by"])
    unfed = 0
    while time.monotonic() < until:
        seen = _watchdogs.read()
        # Nobody stops such a watchdog any more. One look may have come between the open of the device and the search for its process.
        unfed = unfed + 1 if any(device["active"] and not device["fed_by"] for device in seen) else 0
        if unfed > 1:
            return
        shown = _systemd.show_each(_watchdogs.feeders(seen), "ActiveEnterTimestampMonotonic", *_NEEDED_BY)
        begun = dispensable(shown, active_units(), update["stopping_from"])
        if begun:
            _gate.spare_others(update)
            with contextlib.suppress(LiveUpdateError):  # one that has just ended; the next look shows which are left
                _commands.run("systemctl", "stop", "--", *begun, timeout=max(until - time.monotonic(), 1.0))
        elif not unfed and not _commands.run("systemctl", "list-jobs", "--no-legend").strip():
            return
        time.sleep(_POLL_S)


def end_sessions(update: dict) -> None:
    """End logins, containers and everything else that isolation does not stop, while the guests run.

    Otherwise the shutdown would wait for them during the pause (src/shutdown/shutdown.c, broadcast_signal).
    """
    used = {_processes.unit_of(record["pid"]) for record in update["records"].values()}
    used.update(update["kept"], update["in_place"])
    for verb in (["stop"], ["kill", "--signal=SIGKILL"], ["stop"]):
        until = time.monotonic() + SESSIONS_LIMIT_S
        # If one of the units has just ended, systemctl stops none of them (seen with systemd 262). A new look no longer has this unit.
        for _attempt in range(_STOPS):
            units = sessions(active_units("scope,service"), used)
            if not units:
                return
            _gate.spare_others(update)
            update["ended"] = list(dict.fromkeys((*update.get("ended", ()), *units)))
            _journal.record(update)
            try:
                _commands.run("systemctl", *verb, "--", *units, timeout=max(until - time.monotonic(), 1.0))
                break
            except LiveUpdateError:  # the next look shows which units are left
                if time.monotonic() >= until:
                    break
    units = sessions(active_units("scope,service"), used)
    if units:
        _systemd.log(f"these units did not end, not even by SIGKILL, and may make the pause longer: {', '.join(units)}")


def sessions(active: list[str], used: set[str | None]) -> list[str]:
    """The active units that isolation does not stop although no guest needs them: scopes, and users' service managers. Pure."""
    return [unit for unit in active if unit.endswith(".scope") or unit.startswith("user@") if unit != "init.scope" and unit not in used]


def limit_the_shutdown() -> None:
    """Limit how long the shutdown waits for processes during the pause: it gets the default limit of PID 1 (src/core/main.c).

    Call this only after isolation: before, it is also the limit of services without their own limit.
    """
    os.makedirs(os.path.dirname(_MANAGER), exist_ok=True)
    _files.write_text(_MANAGER, f"[Manager]\nDefaultTimeoutStopSec={FINAL_KILL_S}s\n", 0o644)
    _commands.run("systemctl", "daemon-reload")


def usual_shutdown() -> None:
    if _files.remove(_MANAGER):
        _commands.run("systemctl", "daemon-reload")


def in_place(unit: str) -> str:
    """The path of the drop-in that excludes a unit from isolation, for this boot only."""
    return f"{_units.RUN_FOLDER}/{unit}.d/40-kvm-liveupdate.conf"


def _bound_to(units: list[str]) -> list[str]:
    """The units whose stop would also stop one of these units, or a unit that they require."""
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
    """The units that keep running beside the guests: the active ones in ``seen`` (to want another would start it), and their triggers.

    A stopped socket could not be started again while its service runs. Pure.
    """
    running = [unit for unit, properties in seen.items() if properties.get("ActiveState") == "active"]
    triggers = [trigger for unit in running for trigger in seen[unit].get("TriggeredBy", "").split() if trigger in active]
    return list(dict.fromkeys((*running, *triggers)))


def tell_ended(units: list[str], notes: list[str]) -> None:
    """Add a note about the logins and containers that have ended. Some may still run, if the update was interrupted before their end."""
    active = active_units("scope,service")
    gone = [unit for unit in units if unit not in active]
    if gone:
        notes.append(f"these logins and containers were ended and do not start again by themselves: {', '.join(gone)}")


def start_again(units: list[str], since: float | None, notes: list[str], guests: list[str]) -> None:
    """Start what isolation stopped: first the sockets, then the rest one by one, so that a failure does not affect the others.

    Units without a unit file (systemd-run) cannot be started again. This is noted in ``notes`` and is not a failure. A guest that has ended
    meanwhile stays off: it may run on another host now. Isolation has not stopped it, but a target may want it. ``guests``: their units.
    """
    shown = _systemd.show_each(stopped(units, active_units()), "LoadState")
    gone = [unit for unit, seen in shown.items() if seen.get("LoadState") == "not-found"]
    ended = [unit for unit in shown if unit in guests]
    if gone:
        notes.append(f"these units have no unit file, so they cannot be started again here; start them as before: {', '.join(gone)}")
    units = [unit for unit in units if unit not in (*gone, *ended)]
    problems = _sockets_again(units, since)
    for unit in ("default.target", *stopped(units, active_units())):
        alone = ["--job-mode=ignore-requirements"] if ended and unit.endswith(".target") else []
        try:
            _commands.run("systemctl", "start", "--no-block", *alone, unit)
        except LiveUpdateError as err:
            problems.append(str(err))
    if problems:
        raise LiveUpdateError("; ".join(problems))


def _sockets_again(units: list[str], since: float | None) -> list[str]:
    """Start the sockets that isolation stopped; returns the problems.

    systemd refuses to start the socket of a running service. D-Bus or a login may have started a service since, so this stops it first.
    """
    problem, sockets = "", []
    for _attempt in range(SOCKET_ATTEMPTS):
        try:
            active = active_units()
            sockets = [unit for unit in stopped(units, active) if unit.endswith(".socket")]
            if not sockets:
                return []
            triggered = {unit for seen in _systemd.show_each(sockets, "Triggers").values() for unit in seen.get("Triggers", "").split()}
            with_a_vm = {_processes.unit_of(pid) for pid, links in _gate.others(set()).items() if _processes.VM_LINK in links}
            running = _systemd.show_each(sorted(triggered.intersection(active) - with_a_vm), "ActiveEnterTimestampMonotonic", *_NEEDED_BY)
            services = dispensable(running, active, since)
            if services:
                _commands.run("systemctl", "stop", *services, timeout=SOCKET_LIMIT_S)
            _commands.run("systemctl", "start", *sockets, timeout=SOCKET_LIMIT_S)
            return []
        except LiveUpdateError as err:
            problem = str(err)
    return [
        f"{problem}; these sockets are not started again: {', '.join(sockets)}. Stop their services when nothing needs them, then start"
        " the sockets"
    ]


def dispensable(seen: dict[str, dict[str, str]], active: list[str], since: float | None) -> list[str]:
    """The services that may stop for a moment: those started after ``since`` (CLOCK_MONOTONIC), if no active unit stops with them.

    A guest may need a service that ran all the time. ``since`` is None if nothing was stopped. Pure.
    """
    return [
        service
        for service, properties in seen.items()
        if since is not None
        and int(properties.get("ActiveEnterTimestampMonotonic") or 0) > since * 1e6
        and not any(unit in active for name in _NEEDED_BY for unit in properties.get(name, "").split())
    ]


def stopped(before: list[str], now: list[str]) -> list[str]:
    """The units that ran before and must run again, except users' sessions, which a login starts, and units of the update. Pure."""
    return [unit for unit in before if unit not in now and not unit.startswith(("user@", "user-runtime-dir@", "kvm-liveupdate"))]
