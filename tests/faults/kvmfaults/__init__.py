# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fault suite: what it does to an update, and what must hold afterwards."""
