# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which ladder a guest gets. PRIVATE to the collection.

A ladder is a list of rungs: the ways that a guest may take in an update, best first. Each rung is one of :data:`WAYS`. ``migrate`` has a
destination: ``{"migrate": {"to": URI, "back": true}}``. A mistake is a :class:`PolicyError`: where it is, the value seen, the remedy.
"""

from __future__ import annotations

import functools
import typing as t

try:
    import jmespath
    from jmespath.exceptions import JMESPathError
    from jmespath.visitor import TreeInterpreter
except ImportError:
    jmespath = None

__all__ = ("WAYS", "Policy", "PolicyError", "Rung")

WAYS = ("preserve", "migrate", "save", "shutdown", "refuse")
_EXAMPLE = "e.g. {match: \"contains(devices, 'hostdev')\", ladder: [shutdown, refuse]}"


class PolicyError(ValueError):
    """The policy has a mistake, or cannot be applied to a guest."""


class Rung(t.NamedTuple):
    """One way; ``to`` and ``back`` are for a migration."""

    way: str
    to: str = ""
    back: bool = True


class Ladder(t.NamedTuple):
    """Rungs, and the setting that they come from (``by``, empty for the default)."""

    rungs: tuple[Rung, ...]
    by: str


class Policy:
    """What the operator wants: ``rules`` in order, the ``default`` ladder, and ladders of ``guests`` by name.

    All of it is read at once. So a mistake shows before anything is touched, also where no guest needs the setting.
    """

    def __init__(self, rules: t.Any = (), default: t.Any = ("preserve", "refuse"), guests: t.Any = None) -> None:
        if not isinstance(rules, (list, tuple)):
            raise PolicyError(f"hypervisor_update_policy is {rules!r}; write a list of rules, {_EXAMPLE}")
        if not isinstance(guests or {}, dict):
            raise PolicyError(
                f"hypervisor_update_guests is {guests!r}; write the names of guests with their ladders, e.g. web1: [save, refuse]"
            )
        self._rules = [_rule(rule, f"rule {number} of hypervisor_update_policy") for number, rule in enumerate(rules, start=1)]
        self._default = Ladder(read_ladder(default, "hypervisor_update_ladder"), "")
        self._guests = {
            str(name): Ladder(read_ladder(ladder, f"hypervisor_update_guests, {name}"), "hypervisor_update_guests")
            for name, ladder in (guests or {}).items()
        }
        self._interpreter = TreeInterpreter() if self._rules else None

    def ladder(self, guest: dict[str, t.Any]) -> Ladder:
        """The ladder of a guest: from hypervisor_update_guests, else from its metadata, else from the first rule that matches."""
        if guest["name"] in self._guests:
            return self._guests[guest["name"]]
        if guest.get("ladder") is not None:
            return Ladder(read_ladder(guest["ladder"], f"the metadata of guest {guest['name']}"), "its metadata")
        for expression, parsed, ladder in self._rules:
            try:
                found = self._interpreter.visit(parsed, guest)
            except JMESPathError as err:
                raise PolicyError(
                    f"{ladder.by}: {expression!r} cannot be applied to guest {guest['name']}: {err}; correct the expression"
                ) from err
            # As in JMESPath, 0 is true.
            if not (found is None or found is False or (isinstance(found, (str, list, dict)) and not found)):
                return ladder
        return self._default


def _rule(rule: t.Any, where: str) -> tuple[str, t.Any, Ladder]:
    if not isinstance(rule, dict) or set(rule) != {"match", "ladder"}:
        raise PolicyError(f"{where} is {rule!r}; a rule has match and ladder and nothing else, {_EXAMPLE}")
    return rule["match"], _compiled(rule["match"], where), Ladder(read_ladder(rule["ladder"], where), where)


def _compiled(expression: t.Any, where: str) -> t.Any:
    if jmespath is None:
        raise PolicyError(f"{where} needs the Python library jmespath on the controller; install it with: pip install jmespath")
    if not isinstance(expression, str) or not expression.strip():
        raise PolicyError(f"{where}: match is {expression!r}; write a JMESPath expression, {_EXAMPLE}")
    try:
        return _parse(str(expression))
    except JMESPathError as err:
        raise PolicyError(
            f"{where}: match is not a JMESPath expression: {err}; write numbers in backticks and texts in single quotes"
        ) from err


@functools.lru_cache(maxsize=1024)
def _parse(expression: str) -> t.Any:
    return jmespath.compile(expression).parsed


def read_ladder(ladder: t.Any, where: str) -> tuple[Rung, ...]:
    """The rungs of a ladder. ``where`` the ladder comes from is for the message."""
    if not isinstance(ladder, (list, tuple)) or not ladder:
        raise PolicyError(f"{where}: the ladder is {ladder!r}; write a list of ways, e.g. [preserve, shutdown, refuse]")
    return tuple(_rung(rung, where) for rung in ladder)


def _rung(rung: t.Any, where: str) -> Rung:
    if isinstance(rung, str) and rung in WAYS:
        return Rung(str(rung))
    if isinstance(rung, dict) and set(rung) == {"migrate"}:
        given = rung["migrate"]
        if not isinstance(given, dict) or set(given) - {"to", "back"} or not isinstance(given.get("to", ""), str):
            raise PolicyError(f"{where}: migrate is {given!r}; write {{to: URI of the other libvirt, back: true or false}}")
        if not isinstance(given.get("back", True), bool):
            raise PolicyError(f"{where}: back is {given['back']!r}; write true or false (yes or no in the metadata of a domain)")
        return Rung("migrate", str(given.get("to", "")), given.get("back", True))
    raise PolicyError(f"{where}: {rung!r} is not a way; the ways are {', '.join(WAYS)}, and {{migrate: {{to: URI}}}}")
