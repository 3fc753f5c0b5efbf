# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one error of the lab: a sentence for the person at the terminal."""


class LabError(Exception):
    """Something the lab cannot go on from; its text says what and what to do."""
