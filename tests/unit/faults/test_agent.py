# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent on the host sees the steps of an update in its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kvmfaults import agent

STEPS = ("now", "staged", "preserved", "committed", "stopping", "saving", "jumping", "aborted")


@pytest.fixture(name="host")
def folders(tmp_path: Path) -> Path:
    """The folders of a host on which an update was made before, and a unit and a domain run."""
    for name in ("state/guests", "run/guests", "domains"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "state/update.json", {"id": "before", "state": "jumping"})
    write(tmp_path / "run/guests/web.json", {"pid": 1})
    write(tmp_path / "run/guests/web.held", {"hold": "before"})
    (tmp_path / "domains/disk.xml").touch()
    (tmp_path / "domains/driver.pid").touch()
    return tmp_path


def write(path: Path, content: dict[str, Any]) -> None:
    """As the runtime does: another file of the same name."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.rename(path)


def reached(update: agent.Update) -> list[str]:
    return [step for step in STEPS if update.reached(step)]


def test_the_steps_come_in_order(host: Path) -> None:
    update = agent.Update(str(host / "state"), str(host / "run"), str(host / "domains"))
    assert reached(update) == ["now"]
    write(host / "run/image.json", {})
    assert reached(update) == ["now", "staged"]
    write(host / "run/guests/web.held", {"hold": "new"})
    assert reached(update) == ["now", "staged"]
    write(host / "run/guests/disk.held", {"hold": "new"})
    assert reached(update) == ["now", "staged", "preserved"]
    for number, state in enumerate(agent.IN_ORDER):
        write(host / "state/update.json", {"id": "new", "state": state})
        assert reached(update) == ["now", "staged", "preserved", *agent.IN_ORDER[: number + 1]]
    write(host / "state/update.json", {"id": "new", "state": "aborted"})
    assert update.reached("aborted") and not update.reached("jumping")


def test_a_guest_is_saved_by_this_update(host: Path) -> None:
    update = agent.Update(str(host / "state"), str(host / "run"), str(host / "domains"))
    write(host / "state/update.json", {"id": "new", "state": "saving"})
    write(host / "state/guests/web.json", {"state": "saved", "update_id": "before"})
    assert not update.reached("saved:web")
    write(host / "state/guests/web.json", {"state": "saved", "update_id": "new"})
    assert update.reached("saved:web")


def test_an_update_that_is_undone_before_the_step_ends_the_wait(host: Path) -> None:
    update = agent.Update(str(host / "state"), str(host / "run"), str(host / "domains"))
    write(host / "state/update.json", {"id": "new", "state": "aborted"})
    assert not agent.wait(update, "saving")
    assert agent.wait(update, "now") and agent.wait(update, "aborted")


def test_the_command_runs_once_and_the_console_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "CONSOLE", str(tmp_path / "console"))
    monkeypatch.setattr(agent, "GUARD", str(tmp_path / "acted-{}"))
    (tmp_path / "console").touch()
    for _time in range(2):
        assert agent.main(["09-x.1", "now", "--", "echo", "done", ">>", str(tmp_path / "done")]) == 0
    assert (tmp_path / "done").read_text() == "done\n"
    assert (tmp_path / "console").read_text()
