# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ask libvirt and QEMU about all domains of a host, in one virsh process. PRIVATE to the collection."""

from __future__ import annotations

import json
import time

from .. import _limits
from .._errors import LiveUpdateError
from . import _batch, _definition

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("LIMIT_S", "survey")

ANSWER_LIMIT_S = _limits.LIBVIRT_ANSWER
LIMIT_S = _limits.LIBVIRT_ANSWERS

# Keys of the answers, and the questions: about the host, about a domain, and to a domain's QEMU.
_HOST = (
    ("networks persistent", ("net-list", "--all", "--name", "--persistent")),
    ("networks autostart", ("net-list", "--all", "--name", "--autostart")),
    ("pools persistent", ("pool-list", "--all", "--name", "--persistent")),
    ("pools autostart", ("pool-list", "--all", "--name", "--autostart")),
    ("secrets known", ("secret-list",)),
    ("secrets ephemeral", ("secret-list", "--ephemeral")),
)
_DOMAIN = (("xml", "dumpxml"), ("job", "domjobinfo"), ("state", "domstate"))
_MONITOR: dict[str, dict] = {
    "blockers": {"execute": "query-migrate"},
    "block_jobs": {"execute": "query-block-jobs"},
    "capabilities": {"execute": "query-migrate-capabilities"},
    "status": {"execute": "query-status"},
    # What QEMU has now: see libvirt/_differences.py.
    "blocks": {"execute": "query-block"},
    "devices": {"execute": "qom-list", "arguments": {"path": "/machine/peripheral"}},
    "nameless": {"execute": "qom-list", "arguments": {"path": "/machine/peripheral-anon"}},
}


def survey(records: list[dict], busy: t.Callable[[str], bool]) -> None:
    """Put ``seen`` into each record: ``xml``, ``job``, ``state``, the answers of QEMU (``blockers`` and others) and ``host``, or the
    ``problem``.

    This raises nothing: a question that libvirt does not answer is the ``problem`` of each domain. ``busy`` tells whether libvirt runs a
    job on the domain of this name: then its monitor does not answer before the end of the job.
    """
    if not records:
        return
    questions = questions_of(records, busy)
    answers = _answers(questions, ANSWER_LIMIT_S + len(records))
    host = host_facts({key: answers[owner, key] for owner, key, _command in questions if not owner})
    for record in records:
        record["seen"] = {
            **facts({key: answers[owner, key] for owner, key, _command in questions if owner == record["uuid"]}),
            "host": host,
        }


def questions_of(records: list[dict], busy: t.Callable[[str], bool]) -> list[tuple[str, str, tuple[str, ...]]]:
    """The questions: the domain's UUID (empty for the host), the key, and the command.

    A monitor that hangs blocks all later questions, so monitors come last.
    """
    asked: list[tuple[str, str, tuple[str, ...]]] = []
    asked += [(record["uuid"], key, (verb, record["uuid"])) for record in records for key, verb in _DOMAIN]
    asked += [("", key, command) for key, command in _HOST]
    return asked + [
        (record["uuid"], key, ("qemu-monitor-command", record["uuid"], json.dumps(command)))
        for record in records
        for key, command in _MONITOR.items()
        if not busy(record["name"])
    ]


def _answers(questions: list[tuple[str, str, tuple[str, ...]]], limit: float) -> dict[tuple[str, str], _batch.Answer]:
    """An answer to each question. A domain that does not answer is not asked again. The others are, unless no question was answered."""
    found: dict[tuple[str, str], _batch.Answer] = {}
    until = time.monotonic() + max(LIMIT_S, limit)
    left = questions
    while left:
        try:
            answers = _batch.ask([command for _owner, _key, command in left], min(limit, until - time.monotonic()))
        except LiveUpdateError as err:
            answers = [_batch.Answer(error=str(err)) for _question in left]
        asked = sum(answer.asked for answer in answers)
        silent = left[asked - 1][0]
        nobody = asked == 1 or time.monotonic() >= until
        found.update({(owner, key): answer for (owner, key, _command), answer in zip(left, answers)})
        left = [] if nobody else [question for question in left[asked:] if question[0] != silent]
    return found


def host_facts(answers: dict[str, _batch.Answer]) -> dict:
    """Names of ``networks`` and ``pools`` by property, ``secrets`` as lists of UUID, kind and usage; ``problems`` by kind. Pure."""
    found: dict[str, dict] = {"networks": {}, "pools": {}, "secrets": {}, "problems": {}}
    for key, answer in answers.items():
        kind, state = key.split()
        lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
        if answer.error:
            found["problems"][kind] = answer.error
        elif kind == "secrets":
            # After a heading, each line begins with a UUID.
            found[kind][state] = [line.split(None, 2) for line in lines if line[:36].count("-") == 4]
        else:
            found[kind][state] = lines
    return found


def facts(answers: dict[str, _batch.Answer]) -> dict:
    """The facts from the answers about one domain. Failed answers are missing, and the first of them is the ``problem``. Pure."""
    seen: dict = {"problem": next((answer.error for answer in answers.values() if answer.error), "")}
    for key, answer in answers.items():
        if answer.error:
            continue
        try:
            if key == "xml":
                _definition.parsed(answer.text)
            said = json.loads(answer.text) if key in _MONITOR else {}
        except (LiveUpdateError, ValueError) as err:  # no XML, no JSON: the problem of this domain alone
            seen["problem"] = seen["problem"] or str(err)
            continue
        if key not in _MONITOR:
            seen[key] = answer.text if key != "state" else answer.text.strip()
        elif "error" in said:
            seen["problem"] = seen["problem"] or f"QEMU: {_MONITOR[key]['execute']}: {said['error'].get('desc', said['error'])}"
        else:
            seen[key] = said["return"].get("blocked-reasons", []) if key == "blockers" else said["return"]
    return seen
