# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role build_kernel decides: options, names, what is built again, how long it takes. Pure. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t

__all__ = ("NEEDED", "objects_of", "options", "plan", "progress", "values")

# What a live update needs (kernel/liveupdate/Kconfig). The proof of an update reads debugfs.
NEEDED = {
    "DEBUG_FS": "y",
    "KEXEC_FILE": "y",
    "KEXEC_HANDOVER": "y",
    "KEXEC_HANDOVER_DEBUGFS": "y",
    "LIVEUPDATE": "y",
    "LIVEUPDATE_MEMFD": "y",
    "MEMFD_CREATE": "y",
    "SHMEM": "y",
}
# What firmware with Secure Boot and a locked down kernel need.
_SIGNED = {"EFI_STUB": "y", "KEXEC_SIG": "y", "KEXEC_BZIMAGE_VERIFY_SIG": "y", "MODULE_SIG": "y", "MODULE_SIG_ALL": "y"}
# The kernel's build would make a new key each time, and no two builds would be equal.
_UNSIGNED = {"MODULE_SIG_ALL": "n", "MODULE_SIG_KEY": ""}
# A distribution names files here that its source packages do not have. Without them the build fails.
_FILES = {"SYSTEM_TRUSTED_KEYS": "", "SYSTEM_REVOCATION_KEYS": ""}
# The role sets these itself.
_OWN = {
    "LOCALVERSION": "set build_kernel_suffix",
    "LOCALVERSION_AUTO": "set build_kernel_suffix",
    "MODULE_SIG_KEY": "set build_kernel_signing_key",
}

_NAME = re.compile(r"[A-Z0-9][A-Za-z0-9_]*")
# It becomes a part of the names of Debian packages.
_SUFFIX = re.compile(r"[-+][a-z0-9]([a-z0-9.+-]*[a-z0-9])?")
_SUFFIX_MOST = 32

# How many objects an option makes. Measured: 1577 in a kernel with 789 built-in options and no modules; Debian's configuration of 7.3 has
# about 20000 with 2800 built-in options and 4040 modules. A module has one object more, its own description.
_OBJECTS_BUILT_IN, _OBJECTS_MODULE = 2.0, 3.5
# Linking, the type information of BTF, signing and packing come on top of the objects.
_BESIDE_OBJECTS = 1.25
# MiB of disk space for the source and the packages, and for each object with and without debug information. Estimated, not measured.
_DISK_SOURCE, _DISK_DEBUG, _DISK_OBJECT = 4096, 1.5, 0.2
# Options that say what the compiler or the processor can do. They say nothing about what the kernel can do.
_ABOUT_TOOLS = re.compile(r"(ARCH|AS|CC|CLANG|GCC|HAVE|LD|LLD|PAHOLE|RUSTC|TOOLS)_|OPENSSL_SUPPORTS_|RUST_IS_AVAILABLE$")

_LINE = re.compile(r"^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$", re.MULTILINE)
# What ends the description of an option in a Kconfig file.
_ENDS = re.compile(r"\s*(config|menuconfig|choice|endchoice|menu|endmenu|if|endif|source|comment)\b")


def plan(
    given: t.Any,
    suffix: str,
    signing_key: str = "",
    **inputs: str,
) -> dict[str, t.Any]:
    """What is built.

    ``given`` are the options that the operator adds. ``signing_key`` is the path of the key. ``inputs`` are digests and names of everything
    else that decides what the packages contain.

    ``faults``: why nothing can be built, as sentences. ``wanted``: the options that the result must have. ``fragment``: the same as a file.
    ``version_suffix``: what follows the version of the source in the version of the packages. ``digest``: names these inputs and no others.
    """
    extra, faults = _given(given)
    if not _SUFFIX.fullmatch(suffix) or len(suffix) > _SUFFIX_MOST:
        faults.append(
            f"build_kernel_suffix is {suffix!r} - it becomes a part of package names: write - or +, then at most {_SUFFIX_MOST - 1} small"
            " letters, digits, dots, - and +, of which the first and the last is a letter or digit, for example -liveupdate"
        )
    needed = {**NEEDED, **(_SIGNED if signing_key else {})}
    faults += [
        f"build_kernel_options sets {name} to {extra[name]!r}, but {'the signature' if name in _SIGNED else 'a live update'} needs"
        f" {needed[name]} - remove {name} from it"
        for name in needed
        if name in extra and extra[name] != needed[name]
    ]
    wanted = {**_FILES, **({} if signing_key else _UNSIGNED), **needed, **extra, "LOCALVERSION": suffix, "LOCALVERSION_AUTO": "n"}
    if signing_key:
        wanted["MODULE_SIG_KEY"] = signing_key
    fragment = "".join(_line(name, wanted[name]) + "\n" for name in sorted(wanted))
    digested = json.dumps({**inputs, "fragment": fragment}, sort_keys=True)
    return {
        "faults": faults,
        "wanted": wanted,
        "fragment": fragment,
        "version_suffix": "+" + suffix[1:].replace("-", "."),
        "digest": hashlib.sha256(digested.encode()).hexdigest(),
    }


def _given(given: t.Any) -> tuple[dict[str, str], list[str]]:
    """The operator's options as the text that a configuration has, and what is wrong with them."""
    found: dict[str, str] = {}
    faults = []
    if not isinstance(given, dict):
        return {}, [f"build_kernel_options is {given!r} - write options with values, for example KVM_AMD: m"]
    for key, value in given.items():
        name = str(key).removeprefix("CONFIG_")
        if not _NAME.fullmatch(name):
            faults.append(f"build_kernel_options: {key!r} is not the name of a kernel option - write it as in a configuration, KVM_AMD")
        elif name in _OWN:
            faults.append(f"build_kernel_options: the role sets {name} itself - remove it, and {_OWN[name]}")
        elif isinstance(value, bool):
            found[name] = "y" if value else "n"
        elif isinstance(value, (int, str)) and not re.search(r'[\n"\\]', str(value)):
            found[name] = str(value)
        else:
            faults.append(f"build_kernel_options: {name} is {value!r} - write y, m, n, a number, or text without quotes")
    return found, faults


def _line(name: str, value: str) -> str:
    """One option as a line of a configuration."""
    if value == "n":
        return f"# CONFIG_{name} is not set"
    plain = re.fullmatch(r"[ym]|-?[0-9]+|0x[0-9a-fA-F]+", value)
    return f"CONFIG_{name}={value}" if plain else f'CONFIG_{name}="{value}"'


def values(config: str) -> dict[str, str]:
    """The options of a configuration that are set, with their values; text has no quotes."""
    return {name: value.strip('"') for name, value, _off in _LINE.findall(config) if name}


def objects_of(config: str) -> int:
    """About how many objects the kernel with this configuration consists of."""
    states = list(values(config).values())
    return round(states.count("y") * _OBJECTS_BUILT_IN + states.count("m") * _OBJECTS_MODULE)


def options(config: str, base: str, wanted: t.Mapping[str, str], kconfig: str = "") -> dict[str, t.Any]:
    """What became of the options that are ``wanted``, and of those of the ``base`` configuration.

    A kernel drops an option that it does not know, or whose dependencies are off, and says nothing. ``kconfig`` has the lines of Kconfig
    files that describe these options. ``unresolved``: one sentence for each wanted option that the result does not have. ``names``: the
    names of these options. ``lost``: options that the base has and the result does not. ``objects``: see :func:`objects_of`. ``disk_mib``:
    about how much disk space the build needs.
    """
    result, before = values(config), values(base)
    # A kernel without modules has none to sign.
    left_aside = "MODULE_SIG" if result.get("MODULES") != "y" else "-"
    names = [name for name, value in wanted.items() if not _has(result, name, value) and not name.startswith(left_aside)]
    return {
        "names": names,
        "unresolved": [_unresolved(name, wanted[name], result, kconfig) for name in names],
        "lost": [
            name
            for name, value in before.items()
            if value in ("y", "m") and name not in result and wanted.get(name) != "n" and not _ABOUT_TOOLS.match(name)
        ],
        "objects": objects_of(config),
        "disk_mib": round(_DISK_SOURCE + objects_of(config) * (_DISK_DEBUG if result.get("DEBUG_INFO") == "y" else _DISK_OBJECT)),
    }


def _has(result: t.Mapping[str, str], name: str, value: str) -> bool:
    """Whether the result has what is wanted. An option that is wanted as a module may be built in, because another one selects it."""
    is_now = result.get(name, "n")
    return is_now == value or (value == "m" and is_now == "y") or (value == "" and name not in result)


def _unresolved(name: str, value: str, result: t.Mapping[str, str], kconfig: str) -> str:
    """Why the result does not have a wanted option."""
    seen = f"CONFIG_{name} is {result.get(name, 'n')} in the resulting configuration, but {value or 'an empty value'} is wanted"
    if not kconfig:
        return seen
    described, conditions = _depends(name, kconfig)
    if not described:
        return f"{seen}: this kernel source has no option of this name"
    if not conditions:
        return f"{seen}: its description names no dependency; another option may select it or exclude it"
    used = sorted(set(re.findall(r"\b[A-Z0-9][A-Za-z0-9_]*\b", " ".join(conditions))))
    states = ", ".join(f"{other} is {result.get(other, 'n')}" for other in used)
    return f"{seen}: it depends on {' and '.join(conditions)} ({states})"


def _depends(name: str, kconfig: str) -> tuple[bool, list[str]]:
    """Whether there is a description of this option, and the conditions in it."""
    described, inside = False, False
    conditions: list[str] = []
    for line in kconfig.replace("\\\n", " ").splitlines():
        if re.fullmatch(rf"\s*(menu)?config {name}\s*", line):
            described = inside = True
        elif _ENDS.match(line) or line == "--":
            inside = False
        elif inside and (found := re.match(r"\s*depends on (.*\S)", line)) and found[1] not in conditions:
            conditions.append(" ".join(found[1].split()))
    return described, conditions


def progress(text: str, objects: int) -> dict[str, t.Any]:
    """What the file says that the build writes (``roles/build_kernel/files/build``).

    ``objects`` is how many objects there are about. ``done``: how many are compiled. ``percent`` of them. ``minutes``: about how many
    minutes the build still takes, None if this is unknown. ``status``: the exit code of a build that has ended, else None.
    """
    done = before = seconds = 0
    pace = 0.0
    status = None
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["begun"]:
            done = before = int(words[1])
        elif words[:1] == ["measured"] and int(words[1]):
            pace = int(words[2]) / int(words[1])
        elif words[:1] == ["built"]:
            done, seconds = int(words[1]), int(words[2])
        elif words[:1] == ["ended"]:
            status = int(words[1])
    if seconds and done > before:
        pace = seconds / (done - before)
    objects = max(objects, done, 1)
    # The time beside the objects is a share of all of them, not only of those that are missing.
    left = (objects - done + objects * (_BESIDE_OBJECTS - 1)) * pace
    return {
        "done": done,
        "objects": objects,
        "percent": min(100 * done // objects, 99) if status is None else 100,
        "minutes": max(round(left / 60), 1) if pace and status is None else None,
        "status": status,
    }
