# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which units a jump starts before libvirt's daemon: asked of the systemd that runs here, and handed over. Then end that systemd."""

from __future__ import annotations

import subprocess

import room
from kvm_liveupdate.update import _rest_of_boot

room.finish(_rest_of_boot._before(["libvirtd.service"]))
subprocess.run(["systemctl", "--force", "halt"], check=True)
