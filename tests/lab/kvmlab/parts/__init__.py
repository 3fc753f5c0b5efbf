# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What hosts and guests are made of. Each part is built once and kept in the cache."""
