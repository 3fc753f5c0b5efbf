#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_away
short_description: Send a guest away that cannot stay in memory over a live update, and bring it back
version_added: 0.1.0
description:
  - With O(state=away) the guest is saved to disk with its RAM, shut down cleanly, or migrated to another host.
  - With O(state=back) it is brought back the way it left, if it left at all. It may be back already, by its autostart.
  - Who is away, and how each left, is on record below C(/var/lib/kvm-liveupdate/away). So it can be brought back after the jump, after
    an update that was undone, or by another run when the controller was lost. C(kvm-liveupdate status) shows it.
  - No guest is ever killed. One that does not leave within O(timeout) is left as it runs and the task fails.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description: The guest's name, as M(kvm.liveupdate.hypervisor_info) returns it.
    type: str
    required: true
  state:
    description: Where the guest is to be.
    type: str
    choices: [away, back]
    required: true
  way:
    description:
      - How it leaves. Needed for O(state=away).
      - V(save), for domains of libvirt, is a managed save. The guest goes on where it was. There has to be room for its RAM below
        C(/var/lib/libvirt/qemu/save).
      - V(shutdown) asks the guest to shut down, through its agent or by its power button, and starts it again. One that is paused is
        refused.
      - V(migrate), for domains of libvirt, is a live migration to O(destination) together with the definition. Only there it then runs,
        and starts with its host if it did so here. Its disks have to be on storage that both hosts reach.
    type: str
    choices: [save, shutdown, migrate]
  destination:
    description:
      - URI of the libvirt that it is migrated to, as seen from this host. Needed for O(way=migrate).
      - This host's own virsh drives the migration at both ends, there and back. So only its root needs a key for the other one.
    type: str
  migrate_uri:
    description:
      - Where libvirt sends the guest on its way there, as C(virsh migrate --migrateuri).
      - By default the name that the destination has for itself.
    type: str
  back_uri:
    description: The same for the way back, the address of this host as seen from O(destination).
    type: str
  back:
    description: Whether O(state=back) migrates it back. Otherwise it has moved for good.
    type: bool
    default: true
  timeout:
    description:
      - Seconds that the guest may take to leave or to come back.
      - By default 300, and for O(way=save) and O(way=migrate) one more for each 20 MiB of its RAM.
    type: int
seealso:
  - module: kvm.liveupdate.guest
"""

EXAMPLES = r"""
- name: Save the guest to disk
  kvm.liveupdate.guest_away:
    name: web1
    state: away
    way: save

- name: Migrate another one to the next host
  kvm.liveupdate.guest_away:
    name: db1
    state: away
    way: migrate
    destination: qemu+ssh://root@hv2.example.org/system
    back_uri: tcp://hv1.example.org

- name: Bring both back
  kvm.liveupdate.guest_away:
    name: "{{ item }}"
    state: back
  loop: [web1, db1]
"""

RETURN = r"""
guest:
  description: The guest's name.
  returned: success
  type: str
left:
  description: How it left, V(saved), V(shut down) or V(migrated). Empty when it did not.
  returned: success
  type: str
where:
  description: V(saved), V(shut down), V(migrated), V(here), or V(off) for a guest that was asked to leave and did not run.
  returned: success
  type: str
msg:
  description: What was done, or would be, in a sentence.
  returned: success
  type: str
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils import _away, _guests, _holding, _host, _libvirt_away, _qemu_away, _update
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module

PROVIDERS = {"libvirt": _libvirt_away, "qemu": _qemu_away}


def answer(away: dict, before: str, after: str, told: str) -> dict:
    """The module's result: where the guest was and is, and how it left. Pure."""
    name, left = away["guest"], _away.WHERE.get(away.get("way", ""), "")
    diff = {"before": {"guest": name, "where": before}, "after": {"guest": name, "where": after}}
    return {"changed": before != after, "guest": name, "left": left, "where": after, "msg": f"guest {name} {told}", "diff": diff}


def has_left(away: dict) -> str:
    """What became of a guest that has left, in words. Pure."""
    what = {"save": "is saved to disk", "shutdown": "is shut down", "migrate": f"runs on {away['destination']}"}
    return what[away["way"]]


def plan(record: dict, params: dict, provider) -> dict:
    """The record of a running guest that is to leave; refuses one that cannot."""
    asked = {key: params[key] for key in ("way", "destination", "migrate_uri", "back_uri", "back")}
    known = {"guest": record["name"], **{key: record[key] for key in ("provider", "uuid", "unit")}}
    away = {**known, **asked, **provider.about(record), "boot_id": _host.boot_id()}
    problems = provider.obstacles(away)
    if _holding.held(record):
        problems.append("its RAM is held for an update - let go of it with kvm.liveupdate.guest, state: running")
    if problems:
        raise LiveUpdateError(f"guest {record['name']} cannot leave by way of {away['way']}: {'; '.join(problems)}")
    return away


def send(module) -> dict:
    """See that the guest is away."""
    name, way = module.params["name"], module.params["way"]
    record, kept = _guests.known().get(name), _away.read(name)
    if record is None and kept:
        if kept["state"] == "leaving" and not module.check_mode:
            _away.write(kept, "away")  # by a run that ended before it could say so
        return answer(kept, _away.WHERE[kept["way"]], _away.WHERE[kept["way"]], f"{has_left(kept)} already")
    if record is None:
        return answer({"guest": name}, "off", "off", "does not run: nothing to send away")
    provider = PROVIDERS[record["provider"]]
    away = plan(record, module.params, provider)
    if not module.check_mode:
        with _update.Lock():
            leave(_away.write(away, "leaving"), provider, module.params["timeout"] or provider.limit_s(away))
    return answer(away, "here", _away.WHERE[way], has_left(away))


def leave(away: dict, provider, limit: float) -> None:
    """Carry it out. A failure that leaves the guest here leaves no record of it."""
    try:
        provider.leave(away, limit)
    except LiveUpdateError:
        if away["guest"] in _guests.known():
            _away.forget(away["guest"])
        raise
    _away.write(away, "away")


def bring_back(module) -> dict:
    """See that the guest is not away."""
    name = module.params["name"]
    away = _away.read(name)
    if not away:
        return answer({"guest": name}, "here", "here", "is not away")
    provider, where = PROVIDERS[away["provider"]], _away.WHERE[away["way"]]
    stays = away["way"] == "migrate" and not away["back"] and away["state"] == "away"
    here = not stays and provider.is_back(away)
    lost = ""
    if not module.check_mode:
        with _update.Lock():
            if not stays and not here:
                lost = provider.come_back(away, module.params["timeout"] or provider.limit_s(away))
            _away.forget(name)
    if stays:
        return answer(away, where, where, f"has moved to {away['destination']} and stays there")
    told = f"is back{'' if lost else ', it was ' + where}{'; ' + lost if lost else ''}"
    return answer(away, "here" if here else where, "here", told)


def main():
    """Spec and run."""
    run_module(
        lambda module: send(module) if module.params["state"] == "away" else bring_back(module),
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["away", "back"], "required": True},
            "way": {"type": "str", "choices": ["save", "shutdown", "migrate"]},
            "destination": {"type": "str"},
            "migrate_uri": {"type": "str"},
            "back_uri": {"type": "str"},
            "back": {"type": "bool", "default": True},
            "timeout": {"type": "int"},
        },
        required_if=[("state", "away", ("way",)), ("way", "migrate", ("destination",))],
    )


if __name__ == "__main__":
    main()
