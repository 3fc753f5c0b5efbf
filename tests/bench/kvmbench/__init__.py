# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bench: how long guests are paused by a live update, and by its alternatives."""
