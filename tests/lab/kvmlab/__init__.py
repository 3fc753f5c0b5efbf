# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab: hypervisors as emulated machines, with real kernels and real guests."""
