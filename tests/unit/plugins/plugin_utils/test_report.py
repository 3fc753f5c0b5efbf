# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
from html.parser import HTMLParser

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins.filter.report_page import report_page
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import report

HOST_TIMES = {"committed": 100.0, "stopping": 103.0, "saving": 106.0, "jumping": 107.0, "kernel": 108.0, "userspace": 111.0, "units": 112.5}
GUEST_TIMES = {"paused": 106.1, "saved": 106.6, "start": 115.0, "retrieved": 115.5, "qemu": 117.0, "loaded": 117.2, "resumed": 117.25}
UPDATED = {
    "outcome": "updated",
    "why": "",
    "kernel_before": "7.2.13",
    "kernel_after": "7.3.4",
    "times": HOST_TIMES,
    "guests": {"web": {"state": "restored", "times": GUEST_TIMES}},
}
REFUSED = {
    **UPDATED,
    "outcome": "refused",
    "why": "guest db: its RAM is <anonymous> memory",
    "kernel_after": "7.2.13",
    "times": {},
    "guests": {"db": {}},
}


class Outline(HTMLParser):
    """Which tags are open at the end, what is fetched from elsewhere, and the text."""

    VOID = frozenset({"meta", "rect", "line"})

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def outline(hosts):
    parsed = Outline()
    parsed.feed(report_page(hosts))
    parsed.close()
    return parsed


def test_the_parts_sum_up_to_the_pause():
    guest = UPDATED["guests"]["web"]
    found = report.parts(UPDATED, guest)
    assert [name for name, _length in found] == [
        "save",
        "leave the old kernel",
        "new kernel",
        "systemd loads its units",
        "start the restore",
        "take back the memory",
        "start QEMU",
        "load the devices",
        "go on",
    ]
    assert sum(length for _name, length in found) == pytest.approx(report.blackout(guest)) == pytest.approx(11.15)


def test_the_step_of_the_clock_is_taken_off_the_new_kernels_stamps():
    host = copy.deepcopy(UPDATED)
    host["guests"]["web"]["clock_step"] = -0.4
    lengths = dict(report.parts(host, host["guests"]["web"]))
    assert lengths["leave the old kernel"] == pytest.approx(1.8) and lengths["new kernel"] == pytest.approx(3.0)
    assert lengths["systemd loads its units"] == pytest.approx(1.5)
    assert sum(lengths.values()) == pytest.approx(11.15)


@pytest.mark.parametrize("missing", ["kernel", "userspace", "units", "saved", "start", "retrieved", "qemu", "loaded"])
def test_a_stamp_that_is_missing_joins_two_parts(missing):
    host = copy.deepcopy(UPDATED)
    host["times"].pop(missing, None)
    host["guests"]["web"]["times"].pop(missing, None)
    found = report.parts(host, host["guests"]["web"])
    assert len(found) == 8 and any(" + " in name for name, _length in found)
    assert sum(length for _name, length in found) == pytest.approx(11.15)


def test_a_domain_waits_for_libvirt_and_no_other_guest_does():
    times = {**GUEST_TIMES, "libvirt": 116.5}
    lengths = dict(report.parts(UPDATED, {"times": {name: at for name, at in times.items() if name not in ("qemu", "loaded")}}))
    assert lengths["wait for libvirt"] == pytest.approx(1.0)
    assert lengths["start QEMU + load the devices + go on"] == pytest.approx(0.75)
    assert sum(lengths.values()) == pytest.approx(11.15)


def test_a_guest_that_was_not_carried_over_has_no_pause():
    assert report.blackout({}) is None and report.parts(UPDATED, {"times": {"paused": 1.0}}) == []


def test_the_page_is_whole_and_needs_nothing_else():
    parsed = outline({"hv1": UPDATED, "hv2": REFUSED, "hv3": {**REFUSED, "outcome": "current", "why": ""}})
    assert parsed.open == [] and parsed.fetched == []
    assert "2 of 3" in parsed.text and "11.2 s" in parsed.text and "refused, nothing touched" in parsed.text


def test_what_hosts_say_is_text_not_markup():
    page = report_page({"<hv>": REFUSED})
    assert "<anonymous>" not in page and "&lt;anonymous&gt;" in page and "&lt;hv&gt;" in page


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["web", "db"], ["web", "db"]),
        (["web-1.example.org", "web-2.example.org"], ["web-1", "web-2"]),
        (["web.one.org", "web.two.org"], ["web.one.org", "web.two.org"]),
        ([".hidden"], [".hidden"]),
        (["a-guest-with-a-name-that-is-far-too-long-1"], ["a-guest-with…r-too-long-1"]),
    ],
)
def test_names_are_shortened_where_they_stay_apart(names, shown):
    assert list(report.short_names(names).values()) == shown


def test_a_short_name_is_told_in_full():
    name = "web.customer-with-a-<long>-name.example.org"
    page = report_page({"hv1": {**UPDATED, "guests": {name: UPDATED["guests"]["web"]}}})
    assert '<td class="short" title="web.customer-with-a-&lt;long&gt;-name.example.org">web</td>' in page


def test_a_host_over_budget_is_updated_and_stands_out():
    over = "guests were paused for too long"
    page = report_page({"hv1": {**UPDATED, "why": over, "over_budget": over, "blackout_max": 10.0, "expected_pause": 9.0}})
    assert '<tr class="updated over">' in page and "updated, over budget" in page and f'<p class="why">{over}</p>' in page
    assert "<td>9.0 s</td><td>10.0 s</td><td>11.2 s</td>" in page
    assert "over budget" not in report_page({"hv1": UPDATED})


def test_no_host_makes_a_page_too():
    assert "No host was touched." in outline({}).text


@pytest.mark.parametrize(("values", "part", "expected"), [([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0], 0.95, 1.0), (list(range(1, 101)), 0.95, 95)])
def test_quantile(values, part, expected):
    assert report.quantile(values, part) == expected


@pytest.mark.parametrize("wrong", [[], "text", {"hv1": {}}, {"hv1": {**UPDATED, "times": {"kernel": "soon"}}}])
def test_what_is_no_report_is_refused(wrong):
    with pytest.raises(AnsibleFilterError, match="report_page"):
        report_page(wrong)
