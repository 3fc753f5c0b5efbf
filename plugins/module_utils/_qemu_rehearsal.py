# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rehearsal of a guest that our wrapper runs: its saved state, loaded into a stand-in. PRIVATE to the collection.

The stand-in is a QEMU with the guest's command line, but for what must not be there twice: it writes to no disk, is on no network, and
has no consoles. Its RAM is the guest's, mapped privately. It waits for the state before the guest is paused.
"""

from __future__ import annotations

import contextlib
import json
import re

from . import _guests, _paths, _qemu
from ._errors import LiveUpdateError
from ._qmp import Qmp
from .vmm import _argv

__all__ = ("command", "end", "rehearse")

# Options with a value that a stand-in goes without.
_DROPPED = ("pidfile", "qmp", "qmp-pretty", "mon", "monitor", "vnc", "spice", "display", "gdb", "D")
_DROPPED_FLAGS = ("s", "S", "nographic", "daemonize", "full-screen")
_REFUSED = ("blockdev", "tpmdev", "hda", "hdb", "hdc", "hdd", "cdrom", "pflash", "nic", "net")


def command(argv: list[str], monitor: str, memory: str, size: int) -> list[str]:
    """The stand-in's command line. Pure. Raises for what it cannot make harmless."""
    words, options = [argv[0]], iter(argv[1:])
    for word in options:
        option = word.lstrip("-") if word.startswith("-") else ""
        if option in _REFUSED:
            raise LiveUpdateError(f"it cannot be rehearsed: {word} on its command line; use -drive, -netdev and -device instead")
        if option in _DROPPED_FLAGS:
            continue
        if option in _DROPPED:
            next(options, "")
            continue
        words.append(word)
        if option in _CHANGED:
            words.append(_CHANGED[option](next(options, "")))
    words += ["-monitor", "none", "-display", "none", "-qmp", f"unix:{monitor},server=on,wait=off"]
    words += ["-object", f"memory-backend-file,id={_argv.RAM_ID},size={size},share=off,mem-path={memory}"]
    return [*words, "-machine", f"memory-backend={_argv.RAM_ID}", "-S", "-incoming", "defer"]


def _parts(value: str) -> list[tuple[str, str]]:
    """The keys of an option with their values, in either of QEMU's dialects (qemu(1); two commas stand for one)."""
    if value.startswith("{"):
        given = json.loads(value)
        return [(key, ("off", "on")[one] if isinstance(one, bool) else str(one)) for key, one in given.items()]
    parts = re.split(r"(?<!,),(?!,)", value)
    return [(key, text) for key, _equals, text in (part.partition("=") for part in parts)]


def _drive(value: str) -> str:
    """What it writes goes into a file of its own, and it takes no lock on the guest's. Only files have locks."""
    given = dict(_parts(value))
    file = given.get("file", "")
    if "snapshot" in given or any(key.startswith("file.") for key in given) or file.startswith("json:"):
        raise LiveUpdateError(f"it cannot be rehearsed: -drive {value}; name its file by file= and leave out snapshot=")
    if not file:
        return value
    protocol = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)", file)
    is_file = protocol is None or protocol.group() == "file"
    return f"{value},snapshot=on{',file.locking=off' if is_file else ''}"


def _netdev(value: str) -> str:
    """The same backend, for the features that it has, connected to nothing."""
    given = _parts(value)
    kind = dict(given).get("type") or given[0][0]
    kept = [f"{key}={text}" for key, text in given if key in ("id", "vhost", "queues", "vnet_hdr", "sndbuf", "restrict")]
    if kind in ("tap", "bridge"):
        return ",".join(["tap", *kept, "script=no", "downscript=no"])
    if kind == "user":
        return ",".join(["user", *kept])
    raise LiveUpdateError(f"it cannot be rehearsed: -netdev {value}; only tap, bridge and user networks can be left unconnected")


def _chardev(value: str) -> str:
    return f"null,id={dict(_parts(value)).get('id', '')}"


def _audiodev(value: str) -> str:
    return f"none,id={dict(_parts(value)).get('id', '')}"


def _device(value: str) -> str:
    """The same device; a vsock address can be there once only, and is no part of what is saved (hw/virtio/vhost-vsock-common.c)."""
    return re.sub(
        r"""(guest-cid"?\s*[=:]\s*)(0[xX][0-9a-fA-F]+|\d+)""", lambda found: f"{found.group(1)}{_other_cid(found.group(2))}", value
    )


def _other_cid(cid: str) -> int:
    """An address that the operator hardly uses; below 3 and 2**32 - 1 are not for guests (vsock(7))."""
    return 3 + (int(cid, 0) + (1 << 30)) % ((1 << 32) - 4)


def _null(_value: str) -> str:
    """A serial or parallel port is a device of the guest, and stays one."""
    return "null"


_CHANGED = {
    "audiodev": _audiodev,
    "chardev": _chardev,
    "device": _device,
    "drive": _drive,
    "netdev": _netdev,
    "parallel": _null,
    "serial": _null,
}


def _paths_of(name: str) -> tuple[str, str, str]:
    """Its monitor, the state that it loads, and what it says."""
    return _guests.run_path(name, "stand-in.qmp"), _guests.run_path(name, "stand-in.state"), _guests.run_path(name, "stand-in.log")


def rehearse(record: dict) -> float:
    """Pause the guest, load its state into the stand-in; returns when it was paused. :func:`end` has to follow, whatever happens."""
    import subprocess

    name, (ram,) = record["name"], record["ram"]
    monitor, state, log = _paths_of(name)
    try:
        words = command(record["argv"], monitor, f"/proc/{record['pid']}/fd/{ram['fd']}", ram["size"])
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name}: {err}") from err
    with open(log, "wb") as said:
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)  # pylint: disable=consider-using-with  # ended by end()
    started = False
    try:
        with Qmp(monitor, wait_s=_qemu.START_LIMIT_S) as other:
            started = True
            with Qmp(record["monitor"]) as guest:
                paused = _qemu.write_state(guest, state)
            try:
                _qemu.load(other, state)
            except LiveUpdateError as err:
                raise LiveUpdateError(f"guest {name}: what was saved of it does not load, nor would it after the jump: {err}") from err
            return paused
    except LiveUpdateError as err:
        told = f"{err}" if started else f"guest {name} cannot be rehearsed: its stand-in did not start: {err}"
        with open(log, encoding="utf-8", errors="replace") as text:
            raise LiveUpdateError(f"{told}; its stand-in said: {' '.join(text.read().split()) or 'nothing'}") from err


def end(record: dict, running: bool) -> None:
    """Let the guest go on, then end the stand-in and remove what is its own."""
    _qemu.resume(record, running)
    monitor, state, log = _paths_of(record["name"])
    with contextlib.suppress(LiveUpdateError, OSError), Qmp(monitor) as other:
        other.execute("quit")
    for path in (monitor, state, log):
        _paths.remove(path)
