# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The faults: shell commands for the host, and what removes their causes. Only the lab's hosts ever run them."""

from __future__ import annotations

STATE = "/var/lib/kvm-liveupdate/guests"
RUN = "/run/kvm-liveupdate/guests"
RUNTIME = 'import sys; sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")'
CGROUPS = "/sys/fs/cgroup/system.slice"

# A folder where the state of a guest should be written, which nothing can remove as if it were a file.
FAIL_SAVE = f"mkdir -p {STATE}/web.state/obstacle"
FAIL_SAVE_MENDED = f"test ! -d {STATE}/web.state || rm -r {STATE}/web.state"
FAIL_SAVE_OF_DOMAIN = "mkdir -p /var/lib/libvirt/qemu/save/plain.save"
FAIL_SAVE_OF_DOMAIN_MENDED = "rmdir /var/lib/libvirt/qemu/save/plain.save"

FILL = """
size=$(df --output=avail -B1 / | tail -n 1)
fallocate -l $((size - 1048576)) /lab-fill || true
dd if=/dev/zero of=/lab-fill.rest bs=4096 status=none || true
"""
FILL_MENDED = "rm -f /lab-fill /lab-fill.rest"

WEB_PID = f"$(sed -n 's/^ \"pid\": *\\([0-9]*\\).*/\\1/p' {RUN}/web.json)"


def hang(pid: str, seconds: float) -> str:
    """Stop a process for some seconds."""
    return f"pid={pid}; kill -STOP $pid; sleep {seconds:g}; kill -CONT $pid"


def kill_unit(unit: str) -> str:
    """Kill all processes of a unit."""
    return f"systemctl kill --signal=KILL {unit}"


def hold_device(seconds: float) -> str:
    """Have the live update device open for some seconds."""
    return f"exec 9<>/dev/liveupdate || exit; sleep {seconds:g}"


def freeze_init(seconds: float) -> str:
    """PID 1 does not run for some seconds. What it is asked for meanwhile stays pending."""
    file = "/sys/fs/cgroup/init.scope/cgroup.freeze"
    return f"echo 1 > {file}; sleep {seconds:g}; echo 0 > {file}"


def clock(seconds: int) -> str:
    """Set the clock forward or back."""
    return f"date -s @$(($(date +%s) + {seconds}))"


def swap(kernel: str) -> str:
    """Put the running kernel's image in the place of another one."""
    return f"cp {kernel} /root/lab-kernel; cp /boot/vmlinuz-$(uname -r) {kernel}.new; mv {kernel}.new {kernel}"


def truncate(kernel: str) -> str:
    """Cut an image off, in place."""
    return f"cp {kernel} /root/lab-kernel; truncate -s 4M {kernel}"


def swap_mended(kernel: str) -> str:
    """Put the image back."""
    return f"test ! -e /root/lab-kernel || mv /root/lab-kernel {kernel}"


# Commands for a guest's QEMU, over the monitor that the wrapper gave it. An error ends them.
_MONITOR = """
python3 - <<'END'
import json, socket, sys
with socket.socket(socket.AF_UNIX) as monitor:
    monitor.settimeout(60)
    monitor.connect("/run/kvm-liveupdate/guests/web.qmp")
    stream = monitor.makefile("rw")
    stream.readline()
    for name, arguments in (("qmp_capabilities", {}), %s):
        stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\\n")
        stream.flush()
        answer = {}
        while "return" not in answer:
            answer = json.loads(stream.readline())
            if "error" in answer:
                sys.exit(f"{name}: {answer}")
    print(json.dumps(answer))
END
"""
STATUS = _MONITOR % '("query-status", {})'
# Another port of the guest's serial device. QEMU can add and remove one at any time, without the guest.
HOT_PLUG = _MONITOR % (
    '("chardev-add", {"id": "lab-fault", "backend": {"type": "null", "data": {}}}),'
    ' ("device_add", {"driver": "virtserialport", "id": "lab-fault", "chardev": "lab-fault", "name": "lab-fault"})'
)
HOT_PLUG_MENDED = _MONITOR % '("device_del", {"id": "lab-fault"})'

# The owner's live migration. There is no other host: what QEMU sends is thrown away.
MIGRATE = _MONITOR % '("migrate-set-parameters", {"max-bandwidth": 1000}), ("migrate", {"uri": "exec:cat >/dev/null"})'
MIGRATE_MENDED = _MONITOR % '("migrate_cancel", {}), ("migrate-set-parameters", {"max-bandwidth": 1000000000})'
MIGRATED = _MONITOR % '("migrate", {"uri": "exec:cat >/dev/null"})' + "sleep 20\n"
MIGRATED_MENDED = _MONITOR % '("cont", {})'

REPLACE_QEMU = "cd /usr/bin; ln qemu-system-x86_64 lab-qemu; cp lab-qemu lab-qemu.new; mv lab-qemu.new qemu-system-x86_64"
REPLACE_QEMU_MENDED = "cd /usr/bin; test ! -e lab-qemu || mv lab-qemu qemu-system-x86_64"

SNAPSHOT = "virsh snapshot-create-as disk later --disk-only --no-metadata"
SNAPSHOT_MENDED = (
    "virsh domblklist disk | grep -q '[.]later' || exit 0; virsh blockcommit disk vda --active --pivot --wait &&"
    " rm /var/lib/libvirt/images/disk.later"
)

# An old copy of a disk, as below the mount point while the mount is missing.
OTHER_FILE = "cd /var/lib/libvirt/images && mv disk.qcow2 lab-disk && cp -a lab-disk disk.qcow2 && sync"
OTHER_FILE_MENDED = "cd /var/lib/libvirt/images; test ! -e lab-disk || mv lab-disk disk.qcow2"

STUBBORN = "trap '' HUP INT QUIT TERM; while :; do sleep 1000; done"
IGNORE = f"""
cat > /root/stubborn.sh <<'END'
{STUBBORN}
END
systemd-run --quiet --unit lab-stubborn sh /root/stubborn.sh
systemd-run --quiet --scope --unit lab-stubborn-scope sh /root/stubborn.sh >/dev/null 2>&1 &
"""

UNLOAD = f"python3 -c '{RUNTIME}; from kvm_liveupdate.kernel import _kexec; _kexec._unload()'"
REBOOT = "systemctl --no-block reboot"


def foreign_kexec(kernel: str) -> str:
    """A kexec as an operator makes it who knows nothing of live updates."""
    return f"""
cat > /root/lab-kexec.py <<'END'
import os
{RUNTIME}
from kvm_liveupdate.kernel import _kexec
with open("/proc/cmdline") as line:
    words = line.read().strip().encode() + b"\\0"
_kexec._kexec_file_load(os.open("{kernel}", os.O_RDONLY), -1, words, 4)  # without an initial RAM disk
END
python3 /root/lab-kexec.py && systemctl --no-block kexec
"""


STRANGER = (
    "systemd-run --quiet --unit lab-stranger qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 64 -nodefaults -display none;"
    " timeout 60 sh -c 'until ls -l /proc/$(systemctl show -P MainPID lab-stranger)/fd 2>/dev/null | grep -q kvm-vm; do sleep 0.1; done'"
)
STRANGER_MENDED = "systemctl stop lab-stranger"


def on_host(name: str, kernel: str) -> str:
    """The command of a fault of a schedule. Empty for what the lab does itself."""
    return {
        "clock": clock(3600),
        "device": hold_device(30),
        "fail-save": FAIL_SAVE,
        "full": FILL,
        "hang": hang(WEB_PID, 20),
        "hot-plug": HOT_PLUG,
        "ignore": IGNORE,
        "kill-holder": kill_unit("kvm-liveupdate-hold@disk.service"),
        "kill-jump": kill_unit("kvm-liveupdate-jump.service"),
        "reboot": REBOOT,
        "snapshot": SNAPSHOT,
        "swap": swap(kernel),
        "unload": UNLOAD,
    }.get(name, "")


def mended(kernel: str) -> str:
    """Removes the cause of every fault of a schedule, whether it happened or not."""
    steps = (
        *(FILL_MENDED, FAIL_SAVE_MENDED, HOT_PLUG_MENDED, swap_mended(kernel), f"({SNAPSHOT_MENDED})"),
        "date -s @$(cat /sys/class/rtc/rtc0/since_epoch)",
        "systemctl kill --signal=KILL lab-stubborn.service lab-stubborn-scope.scope",
    )
    return "\n".join(f"{step} || true" if not step.startswith("\n") else step for step in steps)
