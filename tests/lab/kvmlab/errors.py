# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only error class of the lab. Its text is a sentence for the person at the terminal."""


class LabError(Exception):
    """The lab cannot continue. The text says what failed and what to do."""
