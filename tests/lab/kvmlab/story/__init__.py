# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the demo, the tests and the benchmark do: run playbooks, run guests, report."""
