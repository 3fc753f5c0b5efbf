# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tests of a case: one for each of its variants. Those that are not quick are marked "beyond", so that CI leaves them out."""

from __future__ import annotations

import pytest

from .cases import BY_NUMBER


def each(number: int) -> pytest.MarkDecorator:
    """The variants of a case as the parameter ``variant`` of its test."""
    case = BY_NUMBER[number]
    marked = [pytest.param(name, id=name, marks=[] if name in case.quick else [pytest.mark.beyond]) for name in case.variants]
    return pytest.mark.parametrize("variant", marked)
