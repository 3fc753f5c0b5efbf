# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the evidence proves: heartbeats, echoes, records on disks. Nothing here touches a host."""
