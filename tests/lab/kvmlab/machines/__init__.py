# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The emulated hosts: what each consists of, how it starts and ends, how others reach it."""
