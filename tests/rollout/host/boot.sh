#!/bin/sh
# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The first process of a host, in namespaces of its own: boot.sh NAME ADDRESS FOLDER SSHD. FOLDER is what survives a boot.
set -eu
name=$1 address=$2 folder=$3 sshd=$4

hostname "$name"
mount --make-rprivate /
mount -t tmpfs run /run
mount -t tmpfs lib /var/lib
mkdir -p /run/sshd /run/kvm-liveupdate /var/lib/kvm-liveupdate
mount --bind "$folder/lib" /var/lib/kvm-liveupdate
mount --bind "$folder/passwd" /etc/passwd
for file in osrelease version random/boot_id; do
    mount --bind "$folder/$(basename "$file")" "/proc/sys/kernel/$file"
done
if [ -e /proc/sys/kernel/bootloader_type ]; then # of x86 only
    mount --bind "$folder/bootloader_type" /proc/sys/kernel/bootloader_type
fi
if [ -d "$sshd/usr/lib/openssh" ] && [ -d /usr/lib/openssh ]; then
    mount --bind "$sshd/usr/lib/openssh" /usr/lib/openssh
fi

ip link set lo up
while ! ip link set eth0 up 2>/dev/null; do sleep 0.02; done # the controller makes it
ip address add "$address/24" dev eth0
libraries=$(uname -m)-linux-gnu
export LD_LIBRARY_PATH="$sshd/usr/lib/$libraries:$sshd/lib/$libraries"
exec "$sshd/usr/sbin/sshd" -D -e -f "$folder/sshd_config"
