# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The emulated hosts: what they consist of, how they start and stop, how to reach them."""
