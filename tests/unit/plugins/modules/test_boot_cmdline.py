# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _boot_cmdline
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.modules import boot_cmdline


@pytest.fixture(name="asked")
def what_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(_files, "RUN", str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(_boot_cmdline, "change", lambda words, check_mode: asked.append((words, check_mode)) or (["a=1"], words, True))
    return asked


def ask(state="present", words=None, check_mode=False):
    return boot_cmdline.manage(SimpleNamespace(params={"state": state, "words": words}, check_mode=check_mode))


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(("state", "words"), [("present", ["kho=on", "kho_scratch=512M,1G,512M"]), ("absent", [])])
def test_what_is_asked_for(asked, state, words, check_mode):
    found = ask(state, words or ["kho=on"], check_mode)
    assert asked == [(words, check_mode)]
    assert found == {"changed": True, "words": words, "diff": {"before": {"words": ["a=1"]}, "after": {"words": words}}}


@pytest.mark.parametrize("word", ["", "a b", 'a="b"', "$(reboot)", "`reboot`", "a\\n"])
def test_what_a_shell_would_not_take_as_it_is_is_refused(asked, word):
    """update-grub reads the file as a shell script."""
    with pytest.raises(LiveUpdateError, match=r"^words: .* is not allowed; use kernel parameters without blanks"):
        ask(words=["kho=on", word])
    assert asked == []
