# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What heartbeats, echoes and disk records prove about a guest. No file here connects to a host."""
