# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import datetime
import re
from pathlib import Path

import jinja2
import pytest
from ansible_collections.kvm.liveupdate.plugins import plugin_utils
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._report import figures

TEMPLATE = Path(next(iter(plugin_utils.__path__))).parents[1] / "roles/hypervisor_update/templates/kvm_liveupdate.prom.j2"

RESULT = {
    "outcome": "updated",
    "kernel_before": "7.2.13",
    "kernel_after": "7.3.4",
    "update_id": "u1",
    "blackout_max": 10.0,
    "guests": {
        "web": {"state": "restored", "times": {"paused": 2.0, "resumed": 5.25}},
        "db": {"state": "lost", "times": {"paused": 2.0, "saved": 2.5}},
    },
}
# One line of the format: name, labels with their escapes, a number.
LABEL = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"[a-z_]+(?:\{{{LABEL}(?:,{LABEL})*\}})? -?\d+\.\d+")


def text(result, now):
    """As the template module of Ansible makes it."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    moment = datetime.datetime.fromtimestamp(now, tz=datetime.UTC)
    pauses = figures({"hv1": result})["hosts"][0]["pauses"]
    return environment.from_string(TEMPLATE.read_text()).render(result=result, pauses=pauses, now=lambda: moment)


def test_an_update():
    assert text(RESULT, 1795000000.5) == (
        "# HELP kvm_liveupdate_last_update_timestamp_seconds When the last live update of this host ended.\n"
        "# TYPE kvm_liveupdate_last_update_timestamp_seconds gauge\n"
        "kvm_liveupdate_last_update_timestamp_seconds 1795000000.500\n"
        "# HELP kvm_liveupdate_last_update_outcome How the last live update ended. The outcome has the value 1, the others 0.\n"
        "# TYPE kvm_liveupdate_last_update_outcome gauge\n"
        'kvm_liveupdate_last_update_outcome{outcome="updated"} 1.000\n'
        'kvm_liveupdate_last_update_outcome{outcome="undone"} 0.000\n'
        'kvm_liveupdate_last_update_outcome{outcome="failed"} 0.000\n'
        "# HELP kvm_liveupdate_last_update_info The kernels before and after the last live update, and its id.\n"
        "# TYPE kvm_liveupdate_last_update_info gauge\n"
        'kvm_liveupdate_last_update_info{kernel_before="7.2.13",kernel_after="7.3.4",update_id="u1"} 1.000\n'
        "# HELP kvm_liveupdate_blackout_max_seconds The longest pause that was allowed. 0 means any.\n"
        "# TYPE kvm_liveupdate_blackout_max_seconds gauge\n"
        "kvm_liveupdate_blackout_max_seconds 10.000\n"
        "# HELP kvm_liveupdate_guest_restored Whether the guest is restored with its memory.\n"
        "# TYPE kvm_liveupdate_guest_restored gauge\n"
        'kvm_liveupdate_guest_restored{guest="web"} 1.000\n'
        'kvm_liveupdate_guest_restored{guest="db"} 0.000\n'
        "# HELP kvm_liveupdate_guest_blackout_seconds The pause of the guest.\n"
        "# TYPE kvm_liveupdate_guest_blackout_seconds gauge\n"
        'kvm_liveupdate_guest_blackout_seconds{guest="web"} 3.250\n'
    )


@pytest.mark.parametrize("outcome", ["updated", "undone", "failed"])
def test_an_update_ends_in_one_way(outcome):
    ends = re.findall(r'_outcome\{outcome="(\w+)"\} 1\.000\n', text({**RESULT, "outcome": outcome}, 1.0))
    assert ends == [outcome]


def test_a_host_without_guests_has_no_metric_of_guests():
    assert "guest_" not in text({**RESULT, "guests": {}}, 1.0)


def test_a_guest_that_was_not_touched_is_not_called_lost():
    assert "guest_" not in text({**RESULT, "outcome": "undone", "guests": {"web": {"state": "", "times": {}}}}, 1.0)


@pytest.mark.parametrize(("name", "label"), [('a"b', r"a\"b"), ("a\\b", r"a\\b"), ("a\nb", r"a\nb"), ("Gäste {1}", "Gäste {1}")])
def test_a_name_cannot_break_out_of_its_label(name, label):
    lines = text({**RESULT, "guests": {name: RESULT["guests"]["web"]}}, 1.0).splitlines()
    assert f'kvm_liveupdate_guest_blackout_seconds{{guest="{label}"}} 3.250' in lines
    assert all(SAMPLE.fullmatch(line) for line in lines if not line.startswith("#"))
