# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run many commands in one virsh process. PRIVATE to the collection.

Most of the time of a virsh command is its start and its connection, up to seconds on a slow host. Virsh accepts several commands in one
argument, separated by ``;``. After a command that fails it continues with the next one. After each command this lets virsh print a mark
to both outputs. The marks separate the output and the error of each command, and give the time when it ended.

Source: libvirt tools/vsh.c (vshCommandParse, vshCommandRun, vshPrint and vshError, which flush at once).
"""

from __future__ import annotations

import os
import time

from .._errors import LiveUpdateError
from ..host import _commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    import typing as t  # not at run time: slow to import

__all__ = ("HERE", "Answer", "ask")

HERE = "qemu:///system"
# What virsh prints is compared with English words, and is UTF-8.
_WORDS = {"LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
_ERROR = "error: "
# Linux takes 128 KiB in one argument (execve(2), MAX_ARG_STRLEN).
_LONGEST = 100_000


class Answer:  # pylint: disable=too-few-public-methods
    """What virsh printed for a command; ``error`` is why it failed, ``ended`` is when it ended, in seconds since the epoch.

    ``asked`` is false when a command before it did not end.
    """

    def __init__(self, text: str = "", error: str = "", ended: float = 0.0, asked: bool = True) -> None:
        self.text, self.error, self.ended, self.asked = text, error, ended, asked

    def value(self) -> str:
        """The text; raises when the command failed."""
        if self.error:
            raise LiveUpdateError(self.error)
        return self.text


def ask(commands: t.Sequence[t.Sequence[str]], limit: float, uri: str = HERE) -> list[Answer]:
    """The answer to each command, within ``limit`` seconds for all of them. Raises only if virsh is not installed.

    If a command does not end, or virsh cannot be started, the commands after it are not run: all these answers are errors.
    """
    limit = _commands.left(limit)
    until = time.monotonic() + limit
    answers: list[Answer] = []
    for group in groups([script(command) for command in commands]):
        if time.monotonic() < until:
            answers += _run(group, until, limit, uri)
        else:  # virsh might still run the commands before it is killed
            why = f"not asked: {_commands.too_late()}"
            first = not answers
            answers += [
                Answer("", f"virsh {command.replace(chr(39), '')}: {why}", asked=first and not at) for at, command in enumerate(group)
            ]
    return answers


def script(command: t.Sequence[str]) -> str:
    """A command as virsh reads it (tools/vsh.c, vshCommandStringGetArg). Pure."""
    quoted = ["'" + word.replace("'", "'\\''") + "'" for word in command[1:]]
    return " ".join((command[0], *quoted))


def groups(commands: list[str], longest: int = _LONGEST) -> list[list[str]]:
    """The commands, as many in a group as one argument of a process takes with their marks. Pure."""
    found: list[list[str]] = []
    room = 0
    for command in commands:
        size = len(command.encode("utf-8", "surrogateescape")) + 64
        if size > room:
            found.append([])
            room = longest
        found[-1].append(command)
        room -= size
    return found


def _run(commands: list[str], until: float, limit: float, uri: str) -> list[Answer]:
    import subprocess  # slow to import, and the boot path asks nothing this way

    mark = os.urandom(8).hex()  # nothing that a guest's owner writes into a definition can pass for it
    text = "; ".join(f"{command}; echo {mark}; echo --err {mark}" for command in commands)
    words = ("virsh", "--quiet", "--connect", uri, text)
    try:
        # pylint: disable-next=ansible-bad-function,consider-using-with  # no AnsibleModule on a host; killed and waited for below
        virsh = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **_WORDS}
        )
    except FileNotFoundError as err:
        raise LiveUpdateError("virsh: not found on this host; install it (Debian: package libvirt-clients)") from err
    except OSError as err:  # too many processes or open files, no memory
        return answers_of(commands, mark, ("", ""), [], _commands.cannot_start(err))
    try:
        out, errors, ended = _read(virsh, mark.encode(), until)
        in_time = time.monotonic() < until
        if in_time:
            virsh.wait()
    finally:
        virsh.kill()
        virsh.wait()
    why = "" if in_time else f"virsh: {_commands.no_answer(round(limit, 1))}"
    return answers_of(commands, mark, (out.decode("utf-8", "surrogateescape"), errors.decode("utf-8", "surrogateescape")), ended, why)


def _read(virsh: subprocess.Popen[bytes], mark: bytes, until: float) -> tuple[bytes, bytes, list[float]]:
    """What virsh prints to both outputs until it ends or the limit is over, and when each mark came."""
    import selectors

    said = {virsh.stdout: bytearray(), virsh.stderr: bytearray()}
    ended: list[float] = []
    looked = 0
    with selectors.DefaultSelector() as selector:
        for stream in filter(None, said):  # both are pipes
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            left = until - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                break
            for key, _events in ready:
                chunk = os.read(key.fd, 1 << 16)
                said[key.fileobj] += chunk  # type: ignore[index]
                if not chunk:
                    selector.unregister(key.fileobj)
            while (at := said[virsh.stdout].find(mark, looked)) >= 0:
                looked = at + len(mark)
                ended.append(time.time())
    return bytes(said[virsh.stdout]), bytes(said[virsh.stderr]), ended


def answers_of(commands: list[str], mark: str, outputs: tuple[str, str], ended: list[float], why: str) -> list[Answer]:
    """The part of virsh's ``outputs`` that belongs to each command. ``why`` says why the last commands have no answer. Pure."""
    texts, errors = (output.split(mark) for output in outputs)
    done = min(len(texts), len(errors)) - 1
    answers = []
    for text, said, at in zip(texts[:done], errors, ended):
        said = said.strip().removesuffix(_ERROR.strip()).strip()  # virsh writes that before the mark too
        failed = any(line.startswith(_ERROR) for line in said.splitlines())  # anything else is a warning
        answers.append(Answer(text.lstrip("\n"), _joined(said) if failed else "", at))
    if done < len(commands):
        rest = _joined(errors[done]) if done < len(errors) else ""
        told = f"virsh {commands[done].replace(chr(39), '')}: {rest or why or 'virsh ended'}"
        answers += [Answer("", told, asked=index == done) for index in range(done, len(commands))]
    return answers


def _joined(said: str) -> str:
    return "; ".join(line.replace(_ERROR, "", 1) for line in said.strip().splitlines())
