# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which hosts a rollout updates together, and when it stops. Pure. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

from ._result import CHECK_MEMORY

__all__ = ("RolloutError", "asked", "batches", "gate", "not_together", "read_paused_max")

_SHOWN = 5


class RolloutError(ValueError):
    """An option of the rollout has a mistake."""


def batches(hosts: dict[str, dict[str, t.Any]], serial: t.Any = 1, paused_max: dict[str, t.Any] | None = None) -> list[list[str]]:
    """The names of the hosts of each batch, in order.

    ``hosts`` are the hosts to update, by name and in their order. Of each it takes ``apart`` (a failure domain or a list of them; empty for
    none), and from ``plan`` what :func:`_plan.plan` says of ``essential`` and ``members``. ``serial`` is the size of the batches, as the
    keyword of a play. ``paused_max`` says for each label how many guests with the same value may be paused at once.

    A batch is smaller than its size if the next hosts must not be updated together. Hosts with essential guests come last, each alone.
    """
    sizes, most = _sizes(serial, len(hosts)), read_paused_max(paused_max)
    last = [name for name, host in hosts.items() if host["plan"].get("essential")]
    left = [name for name in hosts if name not in last]
    made: list[list[str]] = []
    while left:
        made.append(_next(left, hosts, sizes[min(len(made), len(sizes) - 1)], most))
        left = [name for name in left if name not in made[-1]]
    return made + [[name] for name in last]


def not_together(
    hosts: dict[str, dict[str, t.Any]], paused_max: dict[str, t.Any] | None = None, more_follow: bool = False
) -> dict[str, str]:
    """Why hosts of a batch are not updated with it after all, by name: guests may have moved since the batches were made.

    ``hosts`` are those of the batch that are about to jump, as for :func:`batches`, with their newest plans. ``more_follow`` says whether
    hosts without essential guests come after this batch.
    """
    made = batches(hosts, max(1, len(hosts)), paused_max)
    first = made[0] if made else []
    found = {}
    for name, host in hosts.items():
        essential = host["plan"].get("essential") or []
        if essential and (more_follow or name not in first):
            why = f"it runs {_few(essential)} of hypervisor_update_essential now, so it has to be updated last, alone"
        elif name not in first:
            why = f"with hypervisor_update_paused_max and hypervisor_update_apart it cannot be updated together with {_few(first)} any more"
        else:
            continue
        found[name] = f"guests have moved since the batches were made: {why} - wait for the end of this run, then repeat the command"
    return found


def _next(left: list[str], hosts: dict[str, dict[str, t.Any]], size: int, most: dict[str, int]) -> list[str]:
    """The first hosts that may be updated together. The first of all is always among them."""
    batch: list[str] = []
    domains: set[str] = set()
    paused: dict[tuple[str, str], int] = {}
    for name in left:
        if len(batch) == size:
            break
        its_own = _domains(hosts[name].get("apart"))
        together = dict(paused)
        for label, values in (hosts[name]["plan"].get("members") or {}).items():
            for value, names in values.items():
                together[label, value] = together.get((label, value), 0) + len(names)
        too_many = any(number > most.get(label, number) for (label, _value), number in together.items())
        if batch and (domains & its_own or too_many):
            continue
        batch.append(name)
        domains |= its_own
        paused = together
    return batch


def _domains(apart: t.Any) -> set[str]:
    return {str(domain) for domain in (apart if isinstance(apart, (list, tuple)) else [apart]) if domain not in (None, "")}


def _sizes(serial: t.Any, total: int) -> list[int]:
    """The sizes of the batches. A survey of AWX gives a text such as ``1,2,10%``."""
    given = serial.strip("[] ").split(",") if isinstance(serial, str) else serial
    texts = [str(item).strip("\"' ") for item in (given if isinstance(given, (list, tuple)) else [given]) if item is not None]
    sizes = []
    for text in [text for text in texts if text] or ["1"]:
        number, percent = text.removesuffix("%"), text.endswith("%")
        if not number.isdecimal() or int(number) == 0:
            raise RolloutError(
                f'hypervisor_update_serial is {serial!r}; write a number of hosts, 1 or more, a percentage such as "10%", or a list of them'
            )
        sizes.append(max(1, int(number) * total // 100) if percent else int(number))
    return sizes


def read_paused_max(given: t.Any) -> dict[str, int]:
    """For each label how many guests with the same value of it may be paused at once."""
    if not isinstance(given or {}, dict):
        raise RolloutError(f"hypervisor_update_paused_max is {given!r}; write labels with numbers of guests, e.g. cluster: 1")
    for label, most in (given or {}).items():
        if not str(most).isdecimal() or int(most) == 0:
            raise RolloutError(f"hypervisor_update_paused_max, {label}: {most!r}; write a number of guests, 1 or more")
    return {str(label): int(most) for label, most in (given or {}).items()}


def gate(
    before: dict[str, t.Any] | None,
    hosts: dict[str, dict[str, t.Any]],
    undone_max: int = 0,
    lost_max: int = 0,
    until: float | None = None,
    now: float = 0.0,
    asked: str = "",
    gone: t.Sequence[str] = (),
) -> dict[str, t.Any]:
    """Whether the next batch may begin.

    ``before`` is what this function returned before the last batch, empty before the first. ``hosts`` are the results of the hosts of the
    last batch. ``until`` is when the window closes and ``now`` the time, both since the epoch. ``asked`` says who asked to stop, if
    somebody did. ``gone`` are hosts of the last batch that the run has lost from sight. It returns

    ``undone``      the hosts that were undone before the jump, so far
    ``lost``        how many guests have lost their memory, so far
    ``stop``        why no other host is updated; empty if the next batch may begin
    ``on_request``  whether this is what the operator wanted: the window has closed, or somebody asked to stop
    """
    before = before or {}
    undone = list(before.get("undone") or []) + [name for name, host in hosts.items() if host["outcome"] == "undone"]
    lost = int(before.get("lost") or 0) + sum(len(host.get("guests_lost") or []) for host in hosts.values())
    failed = [f"{name} {_ENDS[host['outcome']]}" for name, host in hosts.items() if host["outcome"] in _ENDS and not _only_guests(host)]
    failed += [f"{name} {_ENDS['checked']}" for name in gone if hosts[name]["outcome"] not in _ENDS]
    slow = [f"{name}: {host['over_budget']}" for name, host in hosts.items() if host["outcome"] == "updated" and host.get("over_budget")]
    why, on_request = "", False
    if failed:
        why = _few(failed)
    elif lost > lost_max:
        why = f"guests that lost their memory: {lost}. hypervisor_update_lost_max allows {lost_max}"
    elif slow:
        why = _few(slow)
    elif until is not None and now >= until:  # this may be why a host was undone
        why, on_request = "the time of hypervisor_update_until has passed", True
    elif len(undone) > undone_max:
        why = f"hosts that were undone before the jump: {_few(undone)}. hypervisor_update_undone_max allows {undone_max}"
    elif asked:
        why, on_request = asked, True
    return {"undone": undone, "lost": lost, "stop": why, "on_request": on_request}


def asked(request: dict[str, t.Any], file: str) -> str:
    """Who asked to stop; empty for nobody. ``request`` is what the look for the file returned, and ``file`` says where it would be.

    An answer that is missing counts as a request: nobody knows whether the run should stop.
    """
    exists = (request.get("stat") or {}).get("exists")
    if request.get("skipped") or exists is False:
        return ""
    if exists:
        return f"the file {file} exists. Remove it, then repeat the command"
    return f"it is unknown whether the file {file} exists, because that host does not answer. Make it reachable, then repeat the command"


# A host that is still "checked" after its batch did not finish: one of its tasks found it unreachable.
_ENDS = {"failed": "failed", "refused": "was refused", "lost": "was lost", "checked": "did not finish its update"}


def _only_guests(host: dict[str, t.Any]) -> bool:
    """Whether the host itself is well: it failed only because guests have lost their memory, and nothing failed after that, such as the
    return of the guests that were sent away."""
    return host["outcome"] == "failed" and host.get("step") == CHECK_MEMORY and not (host.get("late") or host.get("undo"))


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
