# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _limits
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _batch, _guests, _reasons, _survey, _virsh

SECRETS = """ UUID                                   Usage
-------------------------------------------------------------------
 aaaaaaaa-1111-4111-8111-111111111111   ceph client.libvirt secret
 bbbbbbbb-1111-4111-8111-111111111111   volume /srv/b.qcow2

"""


def test_one_virsh_process_tells_all_about_all_domains(libvirt):
    records = [libvirt.add(f"vm{number}", number) for number in range(30)]
    networks = {"net-list --all --name --persistent": "lab\nwith blank\n\n", "net-list --all --name --autostart": "lab\n"}
    libvirt.says = {**networks, "secret-list": SECRETS}
    libvirt.keep()
    _guests.survey(records)
    assert libvirt.processes() == 1
    for record in records:
        assert record["seen"]["xml"] == "<domain/>" and record["seen"]["state"] == "running" and not record["seen"]["problem"]
        assert all(record["seen"][key] == [] for key in ("blockers", "block_jobs", "blocks", "devices", "nameless"))
    host = records[0]["seen"]["host"]
    assert host["networks"] == {"persistent": ["lab", "with blank"], "autostart": ["lab"]}
    assert host["secrets"]["known"][0] == ["aaaaaaaa-1111-4111-8111-111111111111", "ceph", "client.libvirt secret"]
    json.dumps(records)
    _guests.survey(records)
    assert libvirt.processes() == 1


def test_each_domain_has_its_own_answers_whatever_it_is_called(libvirt):
    """Virsh takes the name 1 for an id."""
    one = libvirt.add("1", 2, dumpxml="<domain><name>1</name></domain>")
    other = libvirt.add(
        "test", 1, dumpxml="<domain><name>test</name></domain>", query_migrate='{"return": {"blocked-reasons": ["invtsc"]}}'
    )
    _guests.survey([one, other])
    assert "<name>1</name>" in one["seen"]["xml"] and one["seen"]["blockers"] == []
    assert "<name>test</name>" in other["seen"]["xml"] and other["seen"]["blockers"] == ["invtsc"]


def test_a_hung_libvirt_costs_one_limit_and_is_a_reason_of_each_domain(libvirt, monkeypatch):
    monkeypatch.setattr(_survey, "ANSWER_LIMIT_S", 3.0)
    records = [libvirt.add("app", 1, dumpxml="HANGS"), libvirt.add("db", 2)]
    begun = time.monotonic()
    _guests.survey(records)
    assert time.monotonic() - begun < 9 and libvirt.processes() == 1
    for record in records:
        assert "no answer within 5 s" in record["seen"]["problem"]
        assert [reason["code"] for reason in _reasons.monitor_reasons(record["seen"], "u")] == ["monitor"]


def test_one_hung_monitor_keeps_no_other_domain_from_its_answers(libvirt, monkeypatch):
    monkeypatch.setattr(_survey, "ANSWER_LIMIT_S", 3.0)
    hung, well = libvirt.add("hung", 1, query_migrate="HANGS"), libvirt.add("well", 2)
    _guests.survey([hung, well])
    assert "no answer" in hung["seen"]["problem"] and hung["seen"]["state"] == "running"
    assert not well["seen"]["problem"] and well["seen"]["block_jobs"] == []
    assert libvirt.processes() == 2


def test_the_monitor_of_a_domain_that_libvirt_is_at_work_on_is_not_asked(libvirt):
    """It would not answer before the job is done."""
    job = "Job type:         Unbounded\nOperation:        Save\n"
    busy = libvirt.add("busy", 1, domjobinfo=job)
    status = "<domstatus state='running'>\n  <job type='none' async='{}' phase='none'/>\n  <domain type='kvm' id='1'>\n"
    (libvirt.folder / "run" / "busy.xml").write_text(status.format("save"))
    _guests.survey([busy])
    assert busy["seen"]["job"] == job and "blockers" not in busy["seen"]
    assert not any("monitor" in line for line in libvirt.asked())
    (libvirt.folder / "run" / "busy.xml").write_text(status.format("none"))
    assert not _virsh.is_busy("busy") and not _virsh.is_busy("nobody")


ASKED = ("xml", "job", "state", "status", "blockers", "block_jobs", "capabilities", "blocks", "devices", "nameless")


@pytest.mark.parametrize("missing", ASKED)
def test_a_question_that_was_not_asked_is_no_clean_bill(missing):
    seen = {**dict.fromkeys(ASKED, ()), "problem": "", "state": "running", "status": {"status": "running"}}
    assert _reasons.monitor_reasons(seen, "u") == []
    del seen[missing]
    assert [reason["code"] for reason in _reasons.monitor_reasons(seen, "u")] == ["monitor"]


def test_an_error_of_qemu_is_the_domains_problem():
    answers = {"blockers": _batch.Answer('{"error": {"desc": "no such command"}}')}
    assert _survey.facts(answers) == {"problem": "QEMU: query-migrate: no such command"}


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"dumpxml": "<domain><name>app</domain>"}, "what libvirt prints as its definition is not XML: mismatched tag"),
        ({"dumpxml": "<domain>\udcff</domain>"}, "is not XML: 'utf-8' codec can't encode"),
        ({"query_migrate": "Bye"}, "Expecting value"),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_reason_of_this_domain_alone(libvirt, answers, problem):
    """The errors of Python's parser of XML are SyntaxErrors: they ended the examination of the whole host."""
    app, db = libvirt.add("app", 1, **answers), libvirt.add("db", 2)
    _guests.survey([app, db])
    assert not db["seen"]["problem"] and db["seen"]["xml"] == "<domain/>"
    assert problem in app["seen"]["problem"]
    assert [reason["code"] for reason in _reasons.monitor_reasons(app["seen"], "u")] == ["monitor"]
    if "dumpxml" in answers:
        assert _guests.describe(app)["devices"] == [] and _guests.warn(app) == []


def test_a_host_without_virsh_is_the_domains_problem(monkeypatch):
    def missing(*_arguments):
        raise LiveUpdateError("virsh: not found")

    monkeypatch.setattr(_batch, "ask", missing)
    record = {"name": "app", "uuid": "u"}
    _guests.survey([record])
    assert record["seen"]["problem"] == "virsh: not found"


def test_a_libvirt_that_is_only_slow_is_no_reason():
    """Guests run while it is asked."""
    assert _limits.LIBVIRT_ANSWER >= _limits.COMMAND and _limits.LIBVIRT_ANSWERS > _limits.LIBVIRT_ANSWER


def test_libvirt_has_the_limits_of_an_examination(monkeypatch):
    """They are long: a late answer would be a reason against each domain."""
    limits = []
    monkeypatch.setattr(_survey.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(
        _batch,
        "ask",
        lambda commands, limit: limits.append(limit) or [_batch.Answer(error="slow", asked=not at) for at in range(len(commands))],
    )
    _survey.survey([{"name": "app", "uuid": "u"}, {"name": "db", "uuid": "v"}], lambda _name: False)
    assert limits == [_limits.LIBVIRT_ANSWER + 2]
    assert _survey.LIMIT_S == _limits.LIBVIRT_ANSWERS
