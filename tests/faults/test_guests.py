# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults of guests, and of what holds, saves and restores them."""

from __future__ import annotations

from collections.abc import Callable

from kvmfaults import injections
from kvmfaults.injections import CGROUPS, RUN, STATE
from kvmfaults.marks import each
from kvmfaults.story import ALL, NAMES, Story, unit_of

QEMU = "/usr/bin/qemu-system-x86_64"
LIMIT = "/etc/systemd/system/web.service.d/lab-limit.conf"
RESTART = "/run/systemd/system/web.service.d/lab-restart.conf"


@each(3)
def test_03_holder_killed(begin: Callable[..., Story], variant: str) -> None:
    """Without a fd store the session ends with its holder. With one, PID 1 still has it."""
    kind, step = variant.split("-")
    story = begin(kind)
    held = "disk" if kind == "forky" else "web"
    mark = story.inject(step, injections.kill_unit(f"kvm-liveupdate-hold@{held}.service"), freeze=0 if step == "saving" else None)
    story.begin()
    assert story.acts(mark)
    story.end()
    story.must_hold(outcomes={"undone"} if kind == "trixie" else {"undone", "updated"}, action=story.rerun)


@each(4)
def test_04_save_hangs(story: Story, variant: str) -> None:
    pid = injections.WEB_PID if variant == "unit-hangs" else "$(systemctl show -P MainPID libvirtd.service)"
    mark = story.inject("saving", injections.hang(pid, 150))
    story.begin()
    assert story.acts(mark)
    story.end()
    story.must_hold(outcomes={"undone"})


@each(10)
def test_10_restore_fails(story: Story, variant: str) -> None:
    step, command = {
        "state": ("saved:web", f"printf xxxx | dd of={STATE}/web.state bs=1 seek=1000 conv=notrunc; sync"),
        "qemu": ("saving", f"chmod -x {QEMU}"),
        "memory": ("saving", f"mkdir -p $(dirname {LIMIT}); printf '[Service]\\nMemoryMax=32M\\n' > {LIMIT}; sync"),
        "locked": ("saving", "true"),
        "other-file": ("saved:disk", injections.OTHER_FILE),
    }[variant]
    if variant == "locked":
        lock = "qemu-io -f qcow2 -c 'sleep 3600000' /var/lib/libvirt/images/disk.qcow2 & sleep 5; systemd-notify --ready; wait"
        story.inject_boot(lock, [unit_of("disk")])
    mark = story.inject(step, command, freeze=0)
    story.begin(hypervisor_update_restore_timeout=60)
    assert story.acts(mark)
    story.end()
    mends = {
        "qemu": f"chmod +x {QEMU}",
        "memory": f"rm {LIMIT}; systemctl daemon-reload",
        "locked": "systemctl stop lab-fault-boot.service",
        "other-file": injections.OTHER_FILE_MENDED,
    }
    held = {"state": {"web"}, "qemu": ALL, "memory": {"web"}, "locked": {"disk"}, "other-file": {"disk"}}[variant]

    def action() -> None:
        if variant in ("state", "memory"):
            story.discard("web")
        else:
            story.start(*(NAMES if variant == "qemu" else held))

    story.must_hold(held=held, outcomes={"failed"}, mend=lambda: story.there(mends.get(variant, "true")), action=action)


# Once QEMU runs in the unit, its state is being loaded by other processes there.
LOADING = f"""
systemd-notify --ready
group={CGROUPS}/web.service/cgroup.procs
until grep -qs '^qemu' $(sed 's|.*|/proc/&/comm|' $group 2>/dev/null) /dev/null; do sleep 0.05; done
"""
KILL_LOADER = f"""{LOADING}
for pid in $(cat $group); do grep -q '^qemu' /proc/$pid/comm || kill -KILL $pid; done
"""
# Not with systemctl: until it has started, the guest may run.
KILL_UNIT = f"{LOADING}\necho 1 > {CGROUPS}/web.service/cgroup.kill\n"
KILL_HOLDER = f"""
systemd-notify --ready
until test -e {RUN}/disk.offer; do sleep 0.05; done
echo 1 > {CGROUPS}/{unit_of("disk")}/cgroup.kill
"""


@each(11)
def test_11_restore_killed(story: Story, variant: str) -> None:
    command, name = {"loader": (KILL_LOADER, "web"), "unit": (KILL_UNIT, "web"), "domain": (KILL_HOLDER, "disk")}[variant]
    story.inject_boot(command, [unit_of(name)])
    play = story.update(hypervisor_update_restore_timeout=60)
    assert story.began_at_boot(), play.output

    def action() -> None:
        if variant == "loader":  # its QEMU runs and waits, so a start would do nothing
            assert story.host.ssh("kvm-liveupdate resume web").returncode != 0
            story.there("systemctl restart web.service")
        else:
            story.start(name)

    # It fails: else the guest was back before something of it was killed.
    story.must_hold(held={name}, outcomes={"failed"}, action=action)


@each(16)
def test_16_guest_changes(story: Story, variant: str) -> None:
    step, command, mend = {
        "replaced": ("preserved", injections.REPLACE_QEMU, injections.REPLACE_QEMU_MENDED),
        "restarted": ("saving", f"kill -KILL {injections.WEB_PID}", f"rm {RESTART}; systemctl daemon-reload"),
        "hot-plugged": ("preserved", injections.HOT_PLUG, injections.HOT_PLUG_MENDED),
        "snapshot": ("preserved", injections.SNAPSHOT, injections.SNAPSHOT_MENDED),
        "migrating": ("preserved", injections.MIGRATE, injections.MIGRATE_MENDED),
        "migrated": ("preserved", injections.MIGRATED, injections.MIGRATED_MENDED),
        "resumed": ("saved:disk", "virsh resume disk; sleep 3", "true"),
        "stranger": ("saved:disk", injections.STRANGER, injections.STRANGER_MENDED),
    }[variant]
    if variant == "restarted":
        text = "[Service]\nRestart=always\nRestartSec=0\n"
        story.there(f"mkdir -p $(dirname {RESTART}); cat > {RESTART}; systemctl daemon-reload", text)
    mark = story.inject(step, command, freeze=0 if step.startswith("saved") else None)
    story.begin()
    assert story.acts(mark)
    play = story.end()
    if variant == "resumed":
        assert "guest disk was saved" in play.output, play.output
    if variant == "stranger":
        assert story.there("systemctl is-active lab-stranger").strip() == "active"
    # A domain is restored with the disk that it has then.
    outcomes = {"undone", "updated"} if variant == "snapshot" else {"undone"}
    if variant == "migrated":  # it runs on the other host, so it must not go on here
        assert '"postmigrate"' in story.there(injections.STATUS)
    story.must_hold(
        ended={"web"} if variant == "restarted" else (),
        held={"web"} if variant == "migrated" else (),
        outcomes=outcomes,
        mend=lambda: story.there(mend),
    )
