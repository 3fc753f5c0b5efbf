#!/bin/sh
# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# enter.sh TREE PLACE EXCHANGE MODE COMMAND...: make the root file system of a namespace from TREE, and run COMMAND in it.
# MODE is "prepare" (what COMMAND writes stays in TREE), "run" (it goes to a tmpfs), or "boot" (the same, with a cgroup namespace).
# PLACE is an empty folder, EXCHANGE a folder that COMMAND sees as /exchange. The caller made the namespaces, and all ends with them.
set -eu
tree=$1 place=$2 exchange=$3 mode=$4
shift 4

mount -t tmpfs -o mode=0755 bench "$place"
mkdir "$place/upper" "$place/work" "$place/root"
if [ "$mode" = prepare ]; then
    mount --bind "$tree" "$place/root"
else
    mount -t overlay -o "lowerdir=$tree,upperdir=$place/upper,workdir=$place/work" bench "$place/root"
fi
cd "$place/root"

# The machine's own kernel must not notice anything: its settings are read-only, and of its devices there are only these.
mount -t proc proc proc
for settings in proc/sys proc/sysrq-trigger; do
    if [ -e "$settings" ]; then
        mount --bind "$settings" "$settings"
        mount -o remount,bind,ro "$settings"
    fi
done
mount -t sysfs -o ro sysfs sys
if [ "$mode" = boot ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
fi
mount -t tmpfs -o mode=0755 run run
mount -t tmpfs -o mode=0755 dev dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mknod -m 0666 dev/null c 1 3
mknod -m 0666 dev/zero c 1 5
mknod -m 0666 dev/full c 1 7
mknod -m 0666 dev/random c 1 8
mknod -m 0666 dev/urandom c 1 9
mknod -m 0666 dev/tty c 5 0
ip link set lo up
hostname bench

mkdir -p exchange
mount --bind "$exchange" exchange
pivot_root . mnt
if [ "$mode" = boot ]; then
    become='exec "$@"'
else
    # The shell stays the first process: like PID 1 of a host, it collects processes whose parents have ended. Libvirt waits for that.
    become='"$@"; exit'
fi
exec chroot . setpriv --bounding-set=-sys_boot,-sys_module,-sys_rawio,-sys_time,-syslog /bin/sh -c "umount -l /mnt; $become" sh "$@"
