# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The option --every: tests that take long are marked "beyond", and CI leaves them out."""

from __future__ import annotations

import pytest

LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", action="store_true", help="also run the tests that CI leaves out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --every those marked "beyond" are left out, and named at the end."""
    left_out = [] if config.getoption("every") else [item for item in items if item.get_closest_marker("beyond")]
    config.stash[LEFT_OUT] = [item.nodeid for item in left_out]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = [name for name in config.stash.get(LEFT_OUT, []) if not name.startswith("tests/faults/")]  # that suite tells it itself
    if left_out:
        terminalreporter.section("left out of this run; tests/run --all runs them")
        for name in left_out:
            terminalreporter.write_line(name)
