# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Break the collection on purpose, and see whether a unit test notices."""
