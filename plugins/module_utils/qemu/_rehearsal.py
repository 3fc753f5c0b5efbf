# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rehearsal of a guest that the wrapper runs: load its saved state into a stand-in. PRIVATE to the collection.

The stand-in is a QEMU with the guest's command line, except for what must not exist twice. It writes to no disk, is connected to no
network, and has no consoles. Its RAM is a private mapping of the guest's RAM. It waits for the state before the guest is paused.
"""

from __future__ import annotations

import contextlib
import re
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _files
from ..vmm import _argv, _monitor, _options
from . import _save

__all__ = ("command", "end", "rehearse")

QUIT_LIMIT_S = _limits.REHEARSAL_QUIT

# Options that a stand-in does not get: consoles, displays, monitors, logs, and those that would allocate the whole RAM a second time.
_DROPPED_TEXT = """
D S alt-grab ctrl-grab curses d daemonize dfilter display echr full-screen gdb jitdump mem-prealloc mon monitor no-frame no-quit nographic
perfmap pidfile portrait qmp qmp-pretty realtime rotate s sdl spice trace vnc
"""
_DROPPED = frozenset(_DROPPED_TEXT.split())
# Options that open nothing for writing, and nothing that can exist only once.
_KEPT_TEXT = """
L M accel acpitable action append async-teardown balloon bios boot compat cpu dtb enable-fips enable-kvm fw_cfg g global icount initrd iscsi
k kernel m machine msg name no-acpi no-fd-bootchk no-hpet no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection no-reboot no-shutdown
no-user-config nodefaults nodefconfig numa old-param only-migratable option-rom prom-env rtc rtc-td-hack sandbox seed
semihosting singlestep smbios smp snapshot startdate tb-size tdf usb uuid vga watchdog watchdog-action win2k-hack
"""
_KEPT = frozenset(_KEPT_TEXT.split())
# The same for objects, by the beginning of their types. Other objects write to files, use devices of the host, or talk to other processes.
_OBJECTS = (
    "authz-",
    "can-bus",
    "cryptodev-backend-builtin",
    "iothread",
    "main-loop",
    "rng-",
    "secret",
    "thread-context",
    "throttle-group",
    "tls-c",
)
# Devices that can exist only once, or that QEMU does not serve alone.
_ONCE = ("vfio-", "usb-host", "usb-mtp", "u2f-passthru", "vhost-user", "vhost-scsi", "vhost-vdpa", "x-pci-proxy", "virtio-9p", "ivshmem")
_USB = ("tablet", "mouse", "keyboard", "wacom-tablet", "braille")
# Other keys of -drive that do not name an image.
_IMAGE = ("filename", "driver")
_LEAVE_OUT = "leave the guest out (hypervisor_update_rehearsal_guests)"


def command(argv: list[str], monitor: str, memory: str, size: int) -> list[str]:
    """The stand-in's command line. Pure. Raises for an option that cannot be made harmless."""
    words = [argv[0]]
    for option, value in _options.split(argv):
        if option in _DROPPED:
            continue
        shown = f"-{option} {value}".strip() if option else value
        if option in _CHANGED:
            try:
                words += [f"-{option}", _CHANGED[option](value)]
            except ValueError as err:
                raise LiveUpdateError(f"it cannot be rehearsed: {shown}: {err}; {_LEAVE_OUT}") from err
        elif option in _KEPT:
            words += [f"-{option}", value] if value or option in _options.WITH_WORD else [f"-{option}"]
        else:
            remedy = (
                "a second QEMU beside the guest cannot have this option; use -drive, -netdev, -chardev and -device instead where possible,"
                f" or {_LEAVE_OUT}"
            )
            raise LiveUpdateError(f"it cannot be rehearsed: its command line has {shown}; {remedy}")
    words += ["-monitor", "none", "-display", "none", "-qmp", f"unix:{monitor},server=on,wait=off"]
    words += ["-object", f"memory-backend-file,id={_argv.RAM_ID},size={size},share=off,mem-path={memory}"]
    return [*words, "-machine", f"memory-backend={_argv.RAM_ID}", "-S", "-incoming", "defer"]


def _quoted(value: str) -> str:
    return value.replace(",", ",,")


def _drive(value: str) -> str:
    """A disk whose writes go into a separate file, and which takes no lock on the guest's image. Only files have locks."""
    given = _options.keys_of("drive", value)
    file = given.get("file", "")
    if "snapshot" in given or any(key.startswith(("file.", "backing", "server")) for key in given) or file.startswith("json:"):
        raise LiveUpdateError(f"it cannot be rehearsed: -drive {value}; name its file with file= and remove snapshot=")
    if not file:
        if set(given) & set(_IMAGE):
            raise LiveUpdateError(f"it cannot be rehearsed: -drive {value}; name its file with file=")
        return value
    protocol = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)", file)
    is_file = protocol is None or protocol.group() == "file"
    return f"{value},snapshot=on{',file.locking=off' if is_file else ''}"


def _netdev(value: str) -> str:
    """A backend with the same features, connected to nothing."""
    given = _options.keys_of("netdev", value)
    kind = given.get("type", "")
    kept = [f"{key}={_quoted(text)}" for key, text in given.items() if key in ("id", "vhost", "queues", "vnet_hdr", "sndbuf", "restrict")]
    if kind in ("tap", "bridge"):
        return ",".join(["tap", *kept, "script=no", "downscript=no"])
    if kind == "user":
        return ",".join(["user", *kept])
    raise LiveUpdateError(
        f"it cannot be rehearsed: -netdev {value}, because only tap, bridge and user networks can be disconnected in the second QEMU;"
        f" {_LEAVE_OUT}"
    )


def _chardev(value: str) -> str:
    return f"null,id={_options.keys_of('chardev', value).get('id', '')}"


def _audiodev(value: str) -> str:
    return f"none,id={_options.keys_of('audiodev', value).get('id', '')}"


def _device(value: str) -> str:
    """The same device. A vsock address can exist only once, and is not part of the saved state (hw/virtio/vhost-vsock-common.c)."""
    driver = _options.keys_of("device", value).get("driver", "")
    if driver.startswith(_ONCE):
        raise LiveUpdateError(
            f"it cannot be rehearsed: -device {value}, because the host can have only one such device at a time; {_LEAVE_OUT}"
        )
    given = _options.keys_of("device", value)
    if "guest-cid" not in given:
        return value
    other = str(_other_cid(given["guest-cid"]))
    changed = re.sub(r"""(guest-cid["']?\s*[=:]\s*["']?)(?:0[xX][0-9a-fA-F]+|\d+)""", lambda found: found.group(1) + other, value)
    if _options.keys_of("device", changed).get("guest-cid") != other:
        raise LiveUpdateError(f"it cannot be rehearsed: -device {value}; write guest-cid as a plain number")
    return changed


def _other_cid(cid: str) -> int:
    """An address that is hardly in use. Those below 3 and 2**32 - 1 are not for guests (vsock(7))."""
    return 3 + (int(cid, 0) + (1 << 30)) % ((1 << 32) - 4)


def _null(value: str) -> str:
    """A serial or parallel port is a device of the guest, so the stand-in gets it too."""
    return "none" if value == "none" else "null"


def _object(value: str) -> str:
    """An object that only QEMU itself uses."""
    kind = _options.keys_of("object", value).get("qom-type", "")
    if not kind.startswith(_OBJECTS):
        raise LiveUpdateError(
            f"it cannot be rehearsed: -object {value}, because {kind or 'it'} may use something that exists only once on the host;"
            f" {_LEAVE_OUT}"
        )
    return value


def _overcommit(value: str) -> str:
    """Without the lock on the RAM: it would copy all of it, because the stand-in maps the guest's RAM privately."""
    return f"cpu-pm={_options.keys_of('overcommit', value).get('cpu-pm', 'off')}"


def _usb(value: str) -> str:
    if value not in _USB:
        raise LiveUpdateError(f"it cannot be rehearsed: -usbdevice {value}; use -device instead")
    return value


_CHANGED = {
    "audiodev": _audiodev,
    "chardev": _chardev,
    "debugcon": _null,
    "device": _device,
    "drive": _drive,
    "netdev": _netdev,
    "object": _object,
    "overcommit": _overcommit,
    "parallel": _null,
    "serial": _null,
    "usbdevice": _usb,
}


def _paths_of(name: str) -> tuple[str, str, str]:
    """The stand-in's monitor, the state that it loads, and its output."""
    return _files.run_path(name, "stand-in.qmp"), _files.run_path(name, "stand-in.state"), _files.run_path(name, "stand-in.log")


def rehearse(record: dict) -> float:
    """Pause the guest and load its state into the stand-in; returns when it was paused. :func:`end` must follow, also after a failure."""
    import subprocess

    name, (ram,) = record["name"], record["ram"]
    monitor, state, log = _paths_of(name)
    try:
        words = command(record["argv"], monitor, f"/proc/{record['pid']}/fd/{ram['fd']}", ram["size"])
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name}: {err}") from err
    with open(log, "wb") as said:
        # pylint: disable-next=ansible-bad-function,consider-using-with  # it runs on, and end() ends it
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    started = False
    try:
        with _monitor.Monitor(monitor, wait_s=_monitor.START_LIMIT_S) as other:
            started = True
            try:
                with _monitor.Monitor(record["monitor"]) as guest:
                    paused = _save.pause_and_write(record, guest, state)
            except LiveUpdateError as err:
                raise LiveUpdateError(f"guest {name} cannot be saved: {err}") from err
            try:
                _monitor.load(other, state)
            except LiveUpdateError as err:
                raise LiveUpdateError(
                    f"guest {name}: its saved state does not load, so it would not load after the jump either: {err}"
                ) from err
            return paused
    except LiveUpdateError as err:
        told = f"{err}" if started else f"guest {name} cannot be rehearsed: its stand-in did not start: {err}"
        with open(log, encoding="utf-8", errors="replace") as text:
            printed = f"{told}; the stand-in printed: {' '.join(text.read().split()) or 'nothing'}"
        raise LiveUpdateError(printed if started else f"{printed}; {_LEAVE_OUT}") from err


def end(record: dict, running: bool) -> None:
    """End the stand-in, resume the guest in any case, and remove the stand-in's files, also if the guest has ended."""
    monitor, state, log = _paths_of(record["name"])
    try:
        _end_stand_in(monitor)
    finally:
        gone = _resumed(record, running)
    for path in (monitor, state, log):
        _files.remove(path)
    if gone:
        raise gone


def _resumed(record: dict, running: bool) -> LiveUpdateError | None:
    """Resume the guest if its QEMU lives; returns the error about a guest that another program has migrated, which needs nothing more."""
    try:
        _save.resume(record, running)
    except LiveUpdateError as err:
        if err.details.get("elsewhere"):
            return err
        if not err.details.get("ended"):
            raise
    return None


def _end_stand_in(path: str) -> None:
    """Let the stand-in quit, and wait a moment: until then it has the guest's disks open, and the guest is paused."""
    with contextlib.suppress(LiveUpdateError, OSError), _monitor.Monitor(path, answer_s=QUIT_LIMIT_S) as other:
        other.execute("quit")
        until = time.monotonic() + QUIT_LIMIT_S
        while time.monotonic() < until:
            other.status()  # raises when it has ended, because the connection is closed
            time.sleep(0.01)
