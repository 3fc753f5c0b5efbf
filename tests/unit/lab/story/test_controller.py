# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is read from the output of a playbook."""

from __future__ import annotations

from kvmlab.story.controller import read_recap, read_report

OUTPUT = """
PLAY RECAP *********************************************************************
hv1                        : ok=10   changed=3    unreachable=0    failed=0    skipped=1    rescued=0    ignored=0
hv2                        : ok=3    changed=0    unreachable=1    failed=0    skipped=0    rescued=0    ignored=0
"""


def test_recap_and_report_are_read(tmp_path):
    recap = read_recap(OUTPUT)
    assert recap["hv1"]["changed"] == 3 and recap["hv2"]["unreachable"] == 1
    (tmp_path / "report.html.json").write_text('{"hv1": {"update_id": "u1"}}')
    assert read_report(tmp_path / "report.html.json") == {"hv1": {"update_id": "u1"}}
    assert read_recap("nothing") == {} and read_report(tmp_path / "nothing") == {}
