# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read and change kernel command lines as the kernel reads them. PRIVATE to the collection.

Source: kernel/params.c (parse_args, next_arg, parameq), lib/kstrtox.c, arch/x86/kernel/setup.c, drivers/of/fdt.c.
"""

from __future__ import annotations

import os

from ..host import _units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = (
    "GUESTS_FIRST",
    "added",
    "effective",
    "for_jump",
    "is_builtin",
    "is_in",
    "missing_options",
    "next_cmdline",
    "value",
    "without",
    "words",
)

NEEDED = ("kho=on", "liveupdate=on")
# Words that a boot loader or a jump (update/_rest_of_boot.py) adds for itself. The next kernel must not inherit them.
_LOADERS_OWN = ("BOOT_IMAGE", "initrd")
GUESTS_FIRST = f"systemd.unit={_units.TARGET}"
CONSOLE = ("systemd.tty.term.console=vt220", "systemd.tty.rows.console=24", "systemd.tty.columns.console=80")
# PID 1 reads the table of mounts at most 5 times a second unless this variable says otherwise (docs/ENVIRONMENT.md of systemd). A boot has
# more mounts, so the next ones, and libvirt's daemon after them, would wait up to a second. The kernel passes a word that it does not know
# to PID 1 as a variable, but panics if there are too many (init/main.c, CONFIG_INIT_ENV_ARG_LIMIT).
MOUNTS = "SYSTEMD_DEFAULT_MOUNT_RATE_LIMIT_BURST=100"
_MANY_WORDS = 24
_END = ("--", None)
_BLANKS = " \t\n\v\f\r"
# COMMAND_LINE_SIZE of x86 and arm64, without the zero byte at its end.
_LONGEST = 2047
# kexec_file_load on x86 keeps room for "elfcorehdr=" and for the zero byte (bzImage64_load in arch/x86/kernel/kexec-bzimage64.c).
_LONGEST_TO_LOAD = _LONGEST - 30 - 1


def words(line: str) -> list[tuple[str, str | None]]:
    """The names and values that the kernel reads, in order; None for a word without ``=``. What follows ``--`` is init's."""
    return [(name, seen) for name, seen, _start, _end, _is_open in _split(line) if (name, seen) != _END]


def value(line: str, name: str) -> str | None:
    """The value of a parameter. The last one counts. None if it is missing or has no value."""
    return next((found for word, found in reversed(words(line)) if _same(word, name)), None)


def is_in(line: str, word: str) -> bool:
    """Whether the line has this ``NAME=VALUE`` or ``NAME``, without another value of this name after it."""
    name, equals, wanted = word.partition("=")
    found = [seen for seen_name, seen in words(line) if _same(seen_name, name)]
    return bool(found) and found[-1] == (wanted if equals else None)


def without(line: str, unwanted: Callable[[str, str | None], bool]) -> str:
    """The line without the words for which ``unwanted(name, value)`` is true. All other text stays."""
    kept, at = "", 0
    for name, seen, start, end, _is_open in _split(line):
        if unwanted(name, seen):
            kept += line[at:start]
            at = end + len(line[end:]) - len(line[end:].lstrip(_BLANKS))
    return (kept + line[at:]).strip(_BLANKS)


def added(line: str, more: Iterable[str]) -> str:
    """The line with more words, before ``--`` and before an unclosed quote: the kernel does not read what follows these as words."""
    text = " ".join(more)
    if not text:
        return line
    end = next((start for name, seen, start, _end, is_open in _split(line) if is_open or (name, seen) == _END), None)
    return f"{line} {text}" if end is None else f"{line[:end]}{text} {line[end:]}"


def _split(line: str) -> Iterator[tuple[str, str | None, int, int, bool]]:
    """Name, value, start and end of each word up to ``--``, and whether a quote is still open at its end."""
    start, size = 0, len(line)
    while start < size:
        if line[start] in _BLANKS:
            start += 1
            continue
        end, in_quote = start, False
        while end < size and (in_quote or line[end] not in _BLANKS):
            in_quote ^= line[end] == '"'
            end += 1
        name, seen = _name_and_value(line[start:end])
        yield name, seen, start, end, in_quote
        if (name, seen) == _END:
            return
        start = end


def _name_and_value(word: str) -> tuple[str, str | None]:
    """A word's parts, without the quotes around all of it or around its value."""
    if word.startswith('"'):
        word = word[1:]
        word = word[:-1] if word.endswith('"') else word
    # A word that begins with "=" is a name as a whole.
    at = word.find("=", 1)
    if at < 0:
        return word, None
    seen = word[at + 1 :]
    if seen.startswith('"'):
        seen = seen[1:]
        seen = seen[:-1] if seen.endswith('"') else seen
    return word[:at], seen


def _same(one: str, other: str) -> bool:
    """Hyphens and underscores are the same in a parameter's name."""
    return one.replace("-", "_") == other.replace("-", "_")


def effective(given: str, config: dict[str, str] | None) -> str:
    """The command line that a kernel with this build configuration uses when it gets this line.

    On x86 a built-in line comes before the given one, or replaces it. On arm64 it replaces it, follows it, or counts if none is given.
    """
    options = config or {}
    builtin = options.get("CMDLINE", "")
    if is_builtin(options):
        line = builtin
    elif options.get("CMDLINE_BOOL") == "y":
        line = f"{builtin} {given}".strip(_BLANKS)
    elif options.get("CMDLINE_EXTEND") == "y":
        line = f"{given} {builtin}".strip(_BLANKS)
    else:
        line = given or builtin  # only arm64 has one then
    return line[:_LONGEST]


def is_builtin(config: dict[str, str] | None) -> bool:
    """Whether a kernel uses only its built-in command line."""
    options = config or {}
    return "y" in (options.get("CMDLINE_OVERRIDE"), options.get("CMDLINE_FORCE"))


def next_cmdline(running: str) -> str:
    """The default command line of the next kernel: the running one without what its boot loader added."""
    ours = {tuple(word.split("=", 1)) for word in (GUESTS_FIRST, MOUNTS, *CONSOLE)}
    return without(running, lambda name, seen: (name, seen) in ours or (name in _LOADERS_OWN and seen is not None))


def missing_options(cmdline: str) -> list[str]:
    """Which of kho=on and liveupdate=on are missing. As in the kernel, the last word of a name counts."""
    return [option for option in NEEDED if not _kstrtobool(value(cmdline, option.partition("=")[0]) or "")]


def _kstrtobool(text: str) -> bool:
    """Read a switch as the kernel does."""
    return text[:1] in ("y", "Y", "t", "T", "1") or text[:2].lower() == "on"


def for_jump(given: str, guests_first: bool, consoles: str) -> str:
    """The command line for the jump: the given one, with words that make this boot fast unless it already has such words. Pure.

    A word that would make the line too long to load is left out: it saves time, but the guests live without it.

    ``consoles`` are the kernel's, from /sys/class/tty/console/active. The last one is /dev/console. PID 1 asks it for its type and size,
    and waits a second for an answer that a serial line does not give (src/basic/terminal-util.c).
    """
    names = [name for name, _value in words(given)]
    more: list[tuple[str, ...]] = []
    if guests_first and "systemd.unit" not in names:
        more.append((GUESTS_FIRST,))
    if MOUNTS.partition("=")[0] not in names and len(names) < _MANY_WORDS:
        more.append((MOUNTS,))
    virtual = not consoles or consoles.split()[-1].removeprefix("tty").isdigit()
    if not virtual and not any(name == "TERM" or name.startswith("systemd.tty.") for name in names):
        more.append(CONSOLE)
    line = given
    for some in more:
        longer = added(line, some)
        if len(os.fsencode(longer)) <= _LONGEST_TO_LOAD:
            line = longer
    return line
