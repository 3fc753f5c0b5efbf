# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab: emulated hypervisors that run real kernels and real guests."""
