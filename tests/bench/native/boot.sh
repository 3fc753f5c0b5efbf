#!/bin/sh
# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# boot.sh WHAT: become systemd, which boots as after a jump. WHAT is "unit" or "domain" (the guest that the update has saved), or "plan".
# No Python here: after a jump it is not in memory either.
set -eu
units=/etc/systemd/system
if [ "$1" = plan ]; then
    exec /usr/lib/systemd/systemd systemd.unit=bench-plan.service
fi
case $1 in
    unit) guest=bench.service ;;
    domain) guest=kvm-liveupdate-hold@bench.service ;;
esac
cp "/var/lib/kvm-liveupdate/$1.json" /var/lib/kvm-liveupdate/update.json
for target in sysinit.target kvm-liveupdate-guests.target; do
    mkdir -p "$units/$target.wants"
    ln -s "../$guest" "$units/$target.wants/$guest"
done
if [ "$1" = domain ]; then
    ln -s ../kvm-liveupdate-daemons.target "$units/kvm-liveupdate-guests.target.wants/kvm-liveupdate-daemons.target"
fi
# The kernel makes this of a word of the jump's command line (module_utils/kernel/_cmdline.py).
export SYSTEMD_DEFAULT_MOUNT_RATE_LIMIT_BURST=100
exec /usr/lib/systemd/systemd systemd.unit=kvm-liveupdate-guests.target
