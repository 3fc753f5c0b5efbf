# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.kvm.liveupdate.plugins.modules import hypervisor_info

MIB = 1 << 20


def test_memory_is_asked_of_all_guests_together(monkeypatch):
    records = [{"name": name, "unit": f"{name}.service", "ram": [{"size": 64 * MIB}], "limits": {"x.slice": 150 * MIB}} for name in "abc"]
    guests = [{"held": name == "a"} for name in "abc"]
    asked = []
    monkeypatch.setattr(hypervisor_info._memory, "fill", lambda record: (int(record["unit"] != "a.service") << 30, 0))
    monkeypatch.setattr(hypervisor_info._memory, "spare_reasons", lambda needs: asked.append(needs) or [{"code": "memory"}])
    reasons = hypervisor_info.memory_reasons(records, guests)
    assert [reason["code"] for reason in reasons] == ["memory", "memory-limit"]
    # One that is held already has taken its part.
    assert asked == [{"b": (1 << 30, 0), "c": (1 << 30, 0)}]
    assert "the 192 MiB of RAM of a, b, c are charged to x.slice" in reasons[1]["message"]
