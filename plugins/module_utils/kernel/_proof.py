# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prove, before the jump, that one kernel can take over what another has preserved. PRIVATE to the collection.

Source: kernel/liveupdate (kho_populate, luo_early_startup) and mm/memfd_luo.c. The next kernel detects a mismatch only when the old
kernel is gone. So what is not certain counts as not proven.
"""

from __future__ import annotations

import os

from .._errors import LiveUpdateError, reason
from . import _cmdline, _image, _initrd, _modules, _running, _scratch, _storage

__all__ = ("PROVEN", "REFUSED", "UNKNOWN", "alone", "boot", "compare", "objections", "prove")

PROVEN, REFUSED, UNKNOWN = "proven", "refused", "unknown"
_ID_LENGTH = 12

# Each string's option, what the next kernel does when its own string differs, and what it does without the option.
_PARTS = {
    "kho": (
        "KEXEC_HANDOVER",
        "boots as if nothing was preserved, and every guest is lost without an error",
        "ignores the preserved memory, and every guest is lost without an error",
    ),
    "luo": (
        "LIVEUPDATE",
        "panics while it boots, and every guest is lost",
        "boots, but nothing can use or free the preserved memory: every guest is lost",
    ),
    "memfd": (
        "LIVEUPDATE_MEMFD",
        "boots, but every open of /dev/liveupdate fails with EIO: no guest can get its memory back",
        "boots, but every open of /dev/liveupdate fails with EIO: no guest can get its memory back",
    ),
}
_WITHOUT_OPTION = {
    "kho=on": "ignores the preserved memory, and every guest is lost",
    "liveupdate=on": "has no /dev/liveupdate, so no guest can get its memory back",
}
_NO_GUEST = "no guest can run on it"
_WITHOUT_DRIVER = {
    "TUN": "guests with a tap device cannot be restored on it",
    **dict.fromkeys(("KVM", "KVM_AMD", "KVM_INTEL"), _NO_GUEST),
}
_IN_USE = "this host uses the driver now, and without it guests may not be restored or reachable"
# The states of /sys/kernel/security/lockdown in which an image must be signed.
_LOCKED = ("integrity", "confidentiality")
_OTHER_WAY = "or migrate or shut down the guests and update this host with an ordinary reboot"
_PANICS = "the kernel panics while it boots, and every guest is lost"
_NO_DISKS = "the host does not find these disks or file systems after the jump, nor the guests on them"
_BUILD_INITRD = "update-initramfs -c -k {release}, dracut --kver {release}, or mkinitcpio -P"
# Kinds of images that kexec_file_load accepts on neither architecture, and the remedy.
_NOT_LOADABLE = {
    "vmlinux": "use the bzImage or arm64 Image that was built from it",
    "uki": "extract its kernel ('objcopy -O binary --only-section=.linux FILE KERNEL') and its .initrd, and use these",
    "zboot": "use the arm64 Image in it, arch/arm64/boot/Image of the kernel build",
}
# Both architectures that live update exists for, as the kernel names them.
_ARCHITECTURES = ("x86_64", "aarch64")


def compare(running: dict, target: dict) -> dict:
    """Whether a live update from the running kernel to the target can work (``there``), and one in the other direction (``back``).

    Both are what :func:`_running.read` and :func:`_image.read` give, each with the ``cmdline`` that the kernel runs or is given.
    A target that has ``boot``, what :func:`boot` says, is also held against what this host needs to boot and to run guests.
    Each way has a verdict, ``proven``, ``refused`` or ``unknown``, and its reasons, which have a verdict each. ``pair`` names these
    two builds and no others.
    """
    if target.get("cmdline") is not None:
        target = {**target, "cmdline": _cmdline.effective(target["cmdline"], target.get("config"))}
    here = f"the running kernel {running.get('release') or ''}".rstrip()
    there = f"kernel {target.get('path') or target.get('release') or '(not read)'}"
    return {
        "pair": f"{_build(running)}-{(target.get('sha256') or 'none')[:_ID_LENGTH]}",
        "there": _way(running, here, target, there),
        "back": _way(target, there, running, here),
    }


def alone(image: dict) -> list[dict]:
    """Why a kernel cannot preserve memory, or cannot take over, whatever the other kernel is. Each reason has a verdict. Pure.

    It is held against itself, with the words that it needs on the command line. ``image`` is as :func:`_image.read` gives it.
    """
    side = {**image, "cmdline": _cmdline.effective(" ".join(_cmdline.NEEDED), image.get("config"))}
    name = f"kernel {image['path']}"
    found: dict[str, dict] = {}
    for why in _way(side, name, side, name)["reasons"]:
        # Both sides are the same kernel, so some reasons come twice.
        found[why["code"]] = why
    return list(found.values())


def _build(running: dict) -> str:
    """What identifies the running kernel: its build id or, if it has none, a digest of its release and version."""
    from hashlib import sha256

    name = f"{running.get('release')} {running.get('version')}"
    return (running.get("build_id") or sha256(name.encode()).hexdigest())[:_ID_LENGTH]


def prove(image: dict, cmdline: str, initrd: str | None = None, root: str = "/", without: bool = False) -> dict:
    """:func:`compare` for ``image``, as :func:`_image.read` gives it, and the running kernel on this host.

    ``without``: the operator says that the kernel needs no initial RAM disk.
    """
    try:
        initrd_size = os.stat(initrd).st_size if initrd else 0
    except OSError as err:
        raise LiveUpdateError(f"initial RAM disk {initrd}: {err.strerror}; use the path of an initial RAM disk on the host") from err
    running = _running.read(root)
    target = {**image, "cmdline": cmdline, "initrd_size": initrd_size, "boot": boot(image, initrd, without, root)}
    return compare(running, target)


def boot(image: dict, initrd: str | None, without: bool, root: str = "/") -> dict:
    """The facts that decide whether a kernel boots on this host and can run its guests.

    ``initrd`` is the path of its initial RAM disk, ``fault`` what is wrong with that file, ``contents`` what is in it if that is known,
    ``without`` whether none is wanted, and ``came_with_one`` whether the running kernel started with one. ``needs`` are the drivers that
    the host uses, ``folder`` is the folder of the kernel's modules, and ``absent`` are needed modules that are missing there.
    ``storage`` is what the kernel has for the disks and file systems of the host (:func:`_storage.served`).
    """
    needs = _modules.needs(root)
    fault = _initrd.fault(initrd) if initrd else ""
    return {
        "initrd": initrd,
        "fault": fault,
        "contents": _initrd.contents(initrd) if initrd and not fault else {},
        "without": without,
        "came_with_one": _initrd.came_with_one(root),
        "needs": needs,
        "folder": _modules.folder(image["release"], root),
        "absent": _modules.absent(image.get("config") or {}, image["release"], needs, root),
        "storage": _storage.served(image.get("config"), image["release"], _storage.needs(root), root),
    }


def objections(proof: dict, accepted: list[str]) -> list[dict]:
    """The reasons against the jump: all that keeps it from being proven. What is unknown does not count for an ``accepted`` pair. Pure."""
    there = proof["there"]
    if there["verdict"] == PROVEN or (there["verdict"] == UNKNOWN and proof["pair"] in accepted):
        return []
    if there["verdict"] == REFUSED:
        return list(there["reasons"])
    consent = _reason(
        UNKNOWN,
        "unproven",
        f"the jump is not proven for this pair of kernels, {proof['pair']}",
        "fix the problems above; or test the jump on a host without guests, and then accept the pair with"
        f" hypervisor_update_accept_unknown: [{proof['pair']}]",
    )
    return [*there["reasons"], consent]


def _way(source: dict, source_name: str, target: dict, target_name: str) -> dict:
    reasons = [
        *_machine(source, source_name, target, target_name),
        *_loadable(source, source_name, target, target_name),
        *_signature(source, source_name, target, target_name),
        *_room(source, target, target_name),
        *_strings(source, source_name, target, target_name),
        *_command_lines(source, source_name, target, target_name),
        *_guests(target, target_name),
        *_starts(target, target_name),
        *_has_modules(target, target_name),
        *_has_storage(target, target_name),
        *_unlocks(target, target_name),
    ]
    verdicts = [reason["verdict"] for reason in reasons]
    return {"verdict": next((verdict for verdict in (REFUSED, UNKNOWN) if verdict in verdicts), PROVEN), "reasons": reasons}


def _reason(verdict: str, code: str, message: str, remedy: str) -> dict:
    return {**reason(code, message, remedy), "verdict": verdict}


def _why_unread(side: dict, what: str) -> str:
    return (side.get("unread") or {}).get(what) or "nothing was read"


def _machine(source: dict, source_name: str, target: dict, target_name: str) -> list[dict]:
    found = []
    one, other = source.get("arch"), target.get("arch")
    if not one or not other:
        name = target_name if one else source_name
        found.append(_reason(UNKNOWN, "arch-unread", f"the architecture of {name} is unknown", "use a kernel image that can be read"))
    elif one != other or other not in _ARCHITECTURES:
        found.append(_reason(REFUSED, "arch", f"{target_name} is for {other}, but {source_name} is for {one}", f"use a kernel for {one}"))
    sizes = source.get("page_size"), target.get("page_size")
    if None in sizes:
        name = target_name if sizes[0] else source_name
        found.append(_reason(UNKNOWN, "page-size-unread", f"the page size of {name} is unknown", "use the bootable image, not a vmlinux"))
    elif sizes[0] != sizes[1]:
        found.append(
            _reason(
                REFUSED,
                "page-size",
                f"{target_name} has pages of {sizes[1]} bytes, but {source_name} has pages of {sizes[0]}: it would misread the memory",
                f"use a kernel with pages of {sizes[0]} bytes",
            )
        )
    return found


def _loadable(source: dict, source_name: str, target: dict, target_name: str) -> list[dict]:
    """Whether the source's kexec_file_load accepts the target."""
    found = []
    config = source.get("config")
    if config and config.get("KEXEC_FILE") != "y":
        found.append(
            _reason(
                REFUSED,
                "kexec-file-off",
                f"{source_name} is built without CONFIG_KEXEC_FILE: it has no kexec_file_load, the only call that carries memory over",
                f"use a kernel with CONFIG_KEXEC_FILE=y, {_OTHER_WAY}",
            )
        )
    kind = target.get("kind")
    if kind is None:
        found.append(
            _reason(
                UNKNOWN,
                "image-unread",
                f"the image of {target_name} cannot be examined: {_why_unread(target, 'image')}",
                "keep the image of each kernel in /boot while the kernel is in use",
            )
        )
    elif kind in _NOT_LOADABLE:
        found.append(
            _reason(
                REFUSED, "image-kind", f"{target_name} is of the kind {kind}, which kexec_file_load does not accept", _NOT_LOADABLE[kind]
            )
        )
    if target.get("above_4g") is False:
        found.append(
            _reason(
                REFUSED,
                "not-relocatable",
                f"{target_name} cannot be loaded above 4 GiB (its boot header says so), so kexec_file_load refuses it",
                "use a 64-bit kernel with CONFIG_RELOCATABLE=y",
            )
        )
    return found


def _signature(source: dict, source_name: str, target: dict, target_name: str) -> list[dict]:
    """Whether the source's kexec_file_load requires a signature that is missing. Staging tells whether an existing one is valid."""
    config = source.get("config") or {}
    if target.get("signed") is not False or config.get("KEXEC_SIG", "y") != "y":
        return []
    if config.get("KEXEC_SIG_FORCE") == "y":
        why = f"{source_name} is built with CONFIG_KEXEC_SIG_FORCE"
    elif source.get("lockdown") in _LOCKED:
        why = f"{source_name} is locked down ({source['lockdown']})"
    else:
        return []
    return [
        _reason(
            REFUSED,
            "not-signed",
            f"{target_name} has no signature, and {why}: kexec_file_load refuses it",
            "use a kernel that is signed with a key which the host trusts",
        )
    ]


def _room(source: dict, target: dict, target_name: str) -> list[dict]:
    """Whether the source's scratch areas have room for what the target needs to start. If they are unknown, staging detects most cases."""
    sizes = source.get("scratch")
    if not sizes:
        return []
    needs = {
        "the kernel": target.get("init_size") or 0,
        "its initrd": target.get("initrd_size") or 0,
        **_scratch.crashkernel(target.get("cmdline") or "", source.get("memory") or 0),
    }
    missing = _scratch.misfits(sizes, needs)
    if not missing:
        return []
    wanted = ", ".join(f"{name} {_mib(need)}" for name, need in needs.items() if need)
    return [
        _reason(
            REFUSED,
            "scratch",
            f"{target_name} has no room for {' and '.join(missing)}: it needs {wanted} MiB, each in one piece, and the scratch areas of KHO"
            f" have {', '.join(map(_mib, sizes))} MiB",
            "set a larger hypervisor_setup_scratch and run the playbook kvm.liveupdate.setup, which reboots the host; or reserve less with"
            " crashkernel=",
        )
    ]


def _mib(size: int) -> str:
    return str(-(-size >> 20))


def _strings(source: dict, source_name: str, target: dict, target_name: str) -> list[dict]:
    """Whether both use the same version of each of the three formats."""
    found = []
    off = [_first_off(side) for side in (source, target)]
    if off[0]:
        found.append(_off(source, source_name, off[0], "cannot preserve memory"))
    if off[1]:
        found.append(_off(target, target_name, off[1], _PARTS[off[1]][2]))
    for name in _image.ABI:
        if name in off:
            break  # the other parts need this one
        values = _string(source, name), _string(target, name)
        if values[0] is None:
            found.append(_unread_string(source, source_name, name))
        if values[1] is None:
            found.append(_unread_string(target, target_name, name))
        if None not in values and values[0] != values[1]:
            found.append(
                _reason(
                    REFUSED,
                    f"abi-{name}",
                    f"{source_name} preserves memory in the format {values[0]}, but {target_name} reads only {values[1]}: it"
                    f" {_PARTS[name][1]}",
                    f"use a kernel with {values[0]}, {_OTHER_WAY}",
                )
            )
    return found


def _first_off(side: dict) -> str | None:
    return next((name for name in _image.ABI if _is_off(side, name)), None)


def _is_off(side: dict, name: str) -> bool:
    """Whether the kernel is known to be built without this part."""
    config = side.get("config")
    value = config.get(_PARTS[name][0]) if config else None
    # The first kernels with live update had no option of its own for memfd.
    if config and value != "y" and (value == "n" or name != "memfd"):
        return True
    return value is None and _looked(side, name) and _string(side, name) is None


def _looked(side: dict, name: str) -> bool:
    """Whether the kernel was searched for its string."""
    return name in (side.get("abi") or {}) and name not in (side.get("unread") or {})


def _off(side: dict, side_name: str, name: str, then: str) -> dict:
    option = _PARTS[name][0]
    seen = f"its configuration has no CONFIG_{option}=y" if side.get("config") else f"it contains no string {name}-vN"
    return _reason(
        REFUSED,
        f"{option.lower().replace('_', '-')}-off",
        f"{side_name} is built without {option} ({seen}): it {then}",
        f"use a kernel with CONFIG_KEXEC_HANDOVER=y, CONFIG_LIVEUPDATE=y and CONFIG_LIVEUPDATE_MEMFD=y, {_OTHER_WAY}",
    )


def _string(side: dict, name: str) -> str | None:
    return (side.get("abi") or {}).get(name)


def _unread_string(side: dict, side_name: str, name: str) -> dict:
    option = _PARTS[name][0]
    why = f"CONFIG_{option} is on, but it contains no string {name}-vN" if _looked(side, name) else _why_unread(side, name)
    return _reason(
        UNKNOWN,
        f"abi-{name}-unread",
        f"the {name} format version of {side_name} is unknown: {why}",
        "keep the image of the running kernel in /boot, mount debugfs, and use an image that contains one string of each kind",
    )


def _command_lines(source: dict, source_name: str, target: dict, target_name: str) -> list[dict]:
    found = []
    for side, side_name, is_target in ((source, source_name, False), (target, target_name, True)):
        cmdline = side.get("cmdline")
        if cmdline is None:
            found.append(
                _reason(
                    UNKNOWN,
                    "cmdline-unread",
                    f"the command line of {side_name} is unknown",
                    "give its command line (hypervisor_update_cmdline)",
                )
            )
            continue
        for option in _cmdline.missing_options(cmdline):
            then = _WITHOUT_OPTION[option] if is_target else "cannot preserve memory"
            remedy = f"add {option} to it; the playbook kvm.liveupdate.setup does this for the kernels that the host boots"
            if _cmdline.is_builtin(side.get("config")):
                remedy = "use a kernel without a fixed command line (CONFIG_CMDLINE_OVERRIDE, CONFIG_CMDLINE_FORCE)"
            found.append(
                _reason(
                    REFUSED,
                    f"cmdline-{option.partition('=')[0]}",
                    f"the command line of {side_name} lacks {option}: this kernel {then}",
                    remedy,
                )
            )
    return found


def _guests(target: dict, target_name: str) -> list[dict]:
    """Whether the target has what the guests need."""
    config = target.get("config")
    if not config:
        return [
            _reason(
                UNKNOWN,
                "config-unread",
                f"the build configuration of {target_name} is unknown: {_why_unread(target, 'config')}",
                "put its configuration beside it as config-RELEASE, or build it with CONFIG_IKCONFIG=y",
            )
        ]
    wanted = (target.get("boot") or {}).get("needs", {}).get("options", ["KVM"])
    return [
        _reason(
            REFUSED,
            f"{option.lower().replace('_', '-')}-off",
            f"{target_name} is built without CONFIG_{option}: {_WITHOUT_DRIVER.get(option, _IN_USE)}",
            f"use a kernel with CONFIG_{option}=m or y",
        )
        for option in wanted
        if config.get(option) not in ("y", "m")
        # Guests also run without it, slower.
        and option != "VHOST_NET"
    ]


def _starts(target: dict, target_name: str) -> list[dict]:
    """Whether the kernel can mount the root file system, with its initial RAM disk or alone."""
    facts = target.get("boot")
    if not facts:
        return []
    if facts["initrd"] and facts["fault"]:
        return [
            _reason(
                REFUSED,
                "initrd-damaged",
                f"the initial RAM disk {facts['initrd']} of {target_name} is damaged or incomplete: {facts['fault']}; {_PANICS}",
                f"build it again ({_BUILD_INITRD.format(release=target['release'])})",
            )
        ]
    if not facts["initrd"] and not facts["without"]:
        device = _cmdline.value(target.get("cmdline") or "", "root")
        if facts["came_with_one"] is not False:
            why = "the running kernel started with one" if facts["came_with_one"] else "it is unknown whether the running kernel used one"
        elif not _initrd.kernel_mounts(target.get("cmdline") or ""):
            why = f"a kernel cannot find root={device} without one" if device else "its command line has no root="
        else:
            why = ""
        if why:
            return [
                _reason(
                    REFUSED,
                    "initrd-missing",
                    f"no initial RAM disk is found for {target_name}, and {why}: {_PANICS}",
                    f"build one ({_BUILD_INITRD.format(release=target['release'])}), or set hypervisor_update_initrd to its path;"
                    " if this kernel needs no initial RAM disk, set it to none",
                )
            ]
    return _unpacks(target, target_name, facts) or _of_this_release(target, target_name, facts) or _root_drivers(target, target_name, facts)


def _unpacks(target: dict, target_name: str, facts: dict) -> list[dict]:
    """Whether the kernel can decompress its initial RAM disk (usr/Kconfig)."""
    config, found = target.get("config"), (facts.get("contents") or {}).get("compressed") or []
    if not config or not facts["initrd"]:
        return []
    return [
        _reason(
            REFUSED,
            "initrd-compression",
            f"the initial RAM disk {facts['initrd']} is compressed with {name}, but {target_name} is built without"
            f" CONFIG_RD_{name.upper()}: {_PANICS}",
            f"set the compression of your initial RAM disks to one that this kernel has, and build it again"
            f" ({_BUILD_INITRD.format(release=target['release'])})",
        )
        for name in found
        if config.get(f"RD_{name.upper()}") != "y"
    ]


def _of_this_release(target: dict, target_name: str, facts: dict) -> list[dict]:
    """Whether the modules in the initial RAM disk belong to this kernel. One without modules, or that cannot be read, is not judged."""
    found, release = (facts.get("contents") or {}).get("modules"), target["release"]
    if not facts["initrd"] or not found or release in found or (target.get("config") or {}).get("MODULES") == "n":
        return []
    return [
        _reason(
            REFUSED,
            "initrd-release",
            f"the initial RAM disk {facts['initrd']} has modules of {', '.join(found)} only, and {target_name} cannot load them: {_PANICS}",
            f"set hypervisor_update_initrd to the one of this kernel, or build it again ({_BUILD_INITRD.format(release=release)})",
        )
    ]


def _root_drivers(target: dict, target_name: str, facts: dict) -> list[dict]:
    """Whether the kernel has the drivers that the root file system needs. Without an initial RAM disk they must be built in."""
    config = target.get("config")
    if not config:
        return []
    needed = facts["needs"]["root"]
    enough = ("y", "m") if facts["initrd"] else ("y",)
    found = [
        _reason(
            REFUSED,
            "root-driver",
            f"{target_name} has CONFIG_{option}={config.get(option, 'n')}{'' if facts['initrd'] else ' and no initial RAM disk'}, but the"
            f" root file system of this host needs that driver: {_PANICS}",
            f"use a kernel with CONFIG_{option}=y" + (" or m" if facts["initrd"] else ", or give it an initial RAM disk"),
        )
        for option in needed
        if config.get(option) not in enough
    ]
    inside, storage = _inside(target), _root_storage(target)
    if not facts["initrd"] and storage:
        drivers = ", ".join(dict.fromkeys(need["module"] for need in storage))
        message = f"{target_name} has no initial RAM disk and no built-in drivers {drivers}, which the root file system of this host needs"
        found.append(
            _reason(REFUSED, "root-driver", f"{message}: {_PANICS}", "give it an initial RAM disk, or use a kernel with these drivers")
        )
    if not inside:
        return found
    modules = [_modules.ROOT_MODULES[option] for option in needed if config.get(option) == "m"]
    lacking = list(dict.fromkeys([module for module in modules if module not in inside] + [need["module"] for need in storage]))
    if not lacking:
        return found
    return [
        _reason(
            REFUSED,
            "root-driver",
            f"the initial RAM disk {facts['initrd']} of {target_name} lacks the modules {', '.join(lacking)}, which the root file system of"
            f" this host needs: {_PANICS}",
            f"build it again for this host ({_BUILD_INITRD.format(release=target['release'])})",
        ),
        *found,
    ]


def _inside(target: dict) -> list[str]:
    """The modules of this kernel in its initial RAM disk. Empty if they are not known."""
    facts = target.get("boot") or {}
    found: list[str] = ((facts.get("contents") or {}).get("modules") or {}).get(target["release"]) or []
    return found if facts.get("initrd") else []


def _root_storage(target: dict) -> list[dict]:
    """What the root file system needs and the kernel has only as modules that are not in its initial RAM disk, as far as that is known.

    Those that :func:`_root_drivers` judges by their build options are left out. Those that the kernel does not have at all are for
    :func:`_has_storage`.
    """
    facts, inside = target["boot"], _inside(target)
    by_option = {_modules.ROOT_MODULES[option] for option in facts["needs"]["root"]}
    return [
        need
        for need in facts["storage"]
        if need["root"]
        and need["module"] not in by_option
        and need["names"]
        and not need["builtin"]
        and (inside or not facts["initrd"])
        and not _is_inside(need, inside)
    ]


def _is_inside(need: dict, inside: list[str]) -> bool:
    return not need["dropped"] and not {need["module"], *need["names"]}.isdisjoint(inside)


def _has_storage(target: dict, target_name: str) -> list[dict]:
    """Whether the kernel has the drivers of the disks and file systems that the host uses."""
    facts = target.get("boot")
    if not facts:
        return []
    inside, release = _inside(target), target["release"]
    told = {*facts["absent"], *(_modules.OPTIONS[option] for option in facts["needs"]["options"])}
    told.update(need["module"] for need in _root_storage(target))
    if inside or not facts["initrd"]:
        told.update(_modules.ROOT_MODULES[option] for option in facts["needs"]["root"])
    lacking: dict[str, dict] = {}
    for need in facts["storage"]:
        if need["module"] not in told and not (need["names"] or need["builtin"] or _is_inside(need, inside)):
            lacking.setdefault(need["module"], need)
    missing, dropped, unsure = (
        ", ".join(f"{name} ({need['what']})" for name, need in lacking.items() if (need["dropped"], need["unsure"]) == kind)
        for kind in ((False, False), (True, False), (False, True))
    )
    found = []
    if missing:
        message = (
            f"{target_name} lacks drivers of storage that this host uses: {missing}. They are neither in {facts['folder']} nor built in"
        )
        remedy = (
            f"install the package with the modules of this kernel (Debian: linux-modules-{release}; Ubuntu: also"
            f" linux-modules-extra-{release}; Fedora: kernel-modules), or copy them; build a module that is no part of the kernel (zfs)"
            f" for this kernel too (dkms autoinstall -k {release}); then run depmod {release}, and build the initial RAM disk again"
        )
        found.append(_reason(REFUSED, "storage-driver", f"{message}: {_NO_DISKS}", remedy))
    if dropped:
        message = f"these drivers of {target_name} do not support devices of this host any more: {dropped}: {_NO_DISKS}"
        remedy = "use a kernel that supports them, or move what is on these disks to others"
        found.append(_reason(REFUSED, "storage-driver", message, remedy))
    if unsure:
        message = f"{target_name} is built without modules, and whether it has these drivers of storage is unknown: {unsure}"
        remedy = "use a kernel with modules, or look for the drivers in its build configuration"
        found.append(_reason(UNKNOWN, "storage-driver", message, remedy))
    return found


def _has_modules(target: dict, target_name: str) -> list[dict]:
    """Whether the modules are installed without which guests cannot run or cannot be reached."""
    facts = target.get("boot")
    if not facts or not facts["absent"]:
        return []
    release = target["release"]
    return [
        _reason(
            REFUSED,
            "modules",
            f"{target_name} needs the modules {', '.join(facts['absent'])} on this host, but {facts['folder']} does not contain them:"
            " guests cannot be restored, or cannot be reached",
            f"install the package with the modules of this kernel (Debian: linux-modules-{release}; Ubuntu: also"
            f" linux-modules-extra-{release}; Fedora: kernel-modules), or copy them and run depmod {release}",
        )
    ]


def _unlocks(target: dict, target_name: str) -> list[dict]:
    """Whether the host unlocks its encrypted disks without a person: guests are paused until then."""
    found: dict[str, str] = {}
    for need in (target.get("boot") or {}).get("storage", []):
        found.update(need.get("locked") or {})
    at_root = [name for name, what in found.items() if what.endswith(" of /")]
    others = [f"{name} ({what})" for name, what in found.items() if name not in at_root]
    unknown = f"It is unknown whether a boot of {target_name} unlocks"
    remedy = (
        "name a key file for each encrypted disk in /etc/crypttab; or move the guests away, accept this pair"
        " (hypervisor_update_accept_unknown), and make a trial of the host (kvm.liveupdate.trial). Update with the accepted pair only if"
        " the host comes back by itself"
    )
    reasons = []
    if at_root and not _cmdline.value(target.get("cmdline") or "", "rd.luks.key"):
        message = (
            f"the root file system of this host is encrypted ({', '.join(at_root)}). {unknown} it without a person. If it does not, all"
            " guests are paused until somebody unlocks it"
        )
        reasons.append(_reason(UNKNOWN, "root-encrypted", message, remedy))
    if others:
        message = (
            f"these disks of this host are encrypted: {', '.join(others)}. {unknown} them without a person. If it does not, the guests that"
            " need them are paused until somebody unlocks them"
        )
        reasons.append(_reason(UNKNOWN, "disk-encrypted", message, remedy))
    return reasons
