# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins import plugin_utils
from ansible_collections.kvm.liveupdate.plugins.filter._rendered_html import rendered_html
from ansible_collections.kvm.liveupdate.plugins.filter._report_figures import report_figures
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _report

TEMPLATE = Path(next(iter(plugin_utils.__path__))).parents[1] / "roles/hypervisor_update/templates/report.html.j2"
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


def page(hosts):
    return rendered_html(report_figures(hosts), TEMPLATE.read_text())


def outline(hosts):
    parsed = Outline()
    parsed.feed(page(hosts))
    parsed.close()
    return parsed


def test_the_page_is_whole_and_needs_nothing_else():
    parsed = outline({"hv1": UPDATED, "hv2": REFUSED, "hv3": {**REFUSED, "outcome": "current", "why": ""}})
    assert parsed.open == [] and parsed.fetched == []
    assert "2 of 3" in parsed.text and "11.2 s" in parsed.text and "refused, not touched" in parsed.text


NASTY = "<script>alert('1')</script>\""


def test_what_hosts_say_is_text_not_markup():
    """In each place: names, reasons, warnings, titles and attributes."""
    guests = {NASTY: UPDATED["guests"]["web"], f"{NASTY} 2": {"why": NASTY, "warnings": [NASTY]}}
    host = {**UPDATED, "why": NASTY, "step": NASTY, "kernel_before": NASTY, "kernel_after": NASTY, "guests": guests}
    shown = page({NASTY: host, "<hv>": {**REFUSED, "outcome": NASTY}})
    assert "<script" not in shown and "&lt;script&gt;" in shown and "&lt;anonymous&gt;" in shown and "&lt;hv&gt;" in shown
    assert 'alert(&#39;1&#39;)&lt;/script&gt;&#34;"' in shown  # in an attribute
    assert outline({NASTY: host}).text.count(NASTY) >= 9


def test_a_template_escapes_all_that_it_is_given():
    assert (
        rendered_html({"a": ["<i>"]}, "{% macro m(x) %}<b>{{ x }}</b>{% endmacro %}{{ m(a[0]) }}{{ a }}")
        == "<b>&lt;i&gt;</b>[&#39;&lt;i&gt;&#39;]"
    )


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
    assert list(_report.short_names(names).values()) == shown


def test_a_short_name_is_told_in_full():
    name = "web.customer-with-a-<long>-name.example.org"
    shown = page({"hv1": {**UPDATED, "guests": {name: UPDATED["guests"]["web"]}}})
    assert '<td class="short" title="web.customer-with-a-&lt;long&gt;-name.example.org">web</td>' in shown


def test_a_host_over_budget_is_updated_and_stands_out():
    over = "guests paused for too long"
    shown = page({"hv1": {**UPDATED, "why": over, "over_budget": over, "blackout_max": 10.0, "expected_pause": 9.0}})
    assert '<tr class="updated over">' in shown and "updated, pause too long" in shown and f'<p class="why">{over}</p>' in shown
    assert "<td>9.0 s</td><td>10.0 s</td><td>11.2 s</td>" in shown
    assert "too long" not in page({"hv1": UPDATED})


def test_the_page_says_whose_lease_the_run_took_over():
    told = outline({"hv1": {**UPDATED, "taken_over": "bob <bob> on ctl; its process has ended"}, "hv2": UPDATED}).text
    assert told.count("This run took over the lease of ") == 1 and "bob <bob> on ctl; its process has ended." in told


def test_no_host_makes_a_page_too():
    assert "No host was touched." in outline({}).text


@pytest.mark.parametrize(("values", "part", "expected"), [([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0], 0.95, 1.0), (list(range(1, 101)), 0.95, 95)])
def test_quantile(values, part, expected):
    assert _report.quantile(values, part) == expected


@pytest.mark.parametrize("wrong", [[], "text", {"hv1": {}}, {"hv1": {**UPDATED, "times": {"kernel": "soon"}}}])
def test_what_is_no_report_is_refused(wrong):
    with pytest.raises(AnsibleFilterError, match="_report_figures: "):
        report_figures(wrong)
