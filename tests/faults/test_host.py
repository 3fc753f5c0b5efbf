# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults of the host: its disk, its devices, its clock, its services."""

from __future__ import annotations

from collections.abc import Callable

from kvmfaults import injections
from kvmfaults.marks import each
from kvmfaults.story import ALL, NAMES, Story, unit_of
from kvmlab.story.night import wait_until
from kvmlab.story.prepared import UNITS

# A clock that jumped by an hour shows in a pause that is wrong by an hour.
ABOUT_S = 300.0


@each(5)
def test_05_disk_full(story: Story, variant: str) -> None:
    step = {"save": "stopping", "journal": "saving", "abort": "saving", "restore": "jumping"}[variant]
    if variant == "abort":
        story.inject("stopping", injections.FAIL_SAVE)
    mark = story.inject(step, injections.FILL, freeze=0)
    story.begin()
    assert story.acts(mark)
    story.end()

    def mend() -> None:
        story.there(f"{injections.FILL_MENDED}; {injections.FAIL_SAVE_MENDED}")
        # The host tries again to write its records, every 30 s.
        look = '! grep -l \'"state": "saved"\' /var/lib/kvm-liveupdate/guests/*.json'
        wait_until("the records of the guests", lambda: ((done := story.host.ssh(look)).returncode == 0, done.stdout))

    story.must_hold(outcomes={"updated", "failed"} if variant == "restore" else {"undone"}, mend=mend)


@each(12)
def test_12_device_busy(begin: Callable[..., Story], variant: str) -> None:
    """Where systemd does not carry sessions over, each restore needs the device."""
    if variant == "jump":
        story = begin()
        mark = story.inject("saving", injections.hold_device(60))
        story.begin()
        assert story.acts(mark)
        story.end()
        story.must_hold(outcomes={"updated", "undone"})
        return
    story = begin("trixie")
    seconds = "20" if variant == "boot-briefly" else "infinity"
    story.inject_boot(f"exec 9<>/dev/liveupdate; systemd-notify --ready; sleep {seconds}", map(unit_of, NAMES))
    play = story.update(hypervisor_update_restore_timeout=900 if variant == "boot-briefly" else 60)
    assert story.began_at_boot(), play.output
    if variant == "boot-briefly":
        story.must_hold(outcomes={"updated"})
    else:
        story.must_hold(held=ALL, outcomes={"failed"}, mend=lambda: story.there("systemctl stop lab-fault-boot.service"))


@each(13)
def test_13_kexec_delayed(story: Story, variant: str) -> None:
    if variant == "inhibitor":
        mark = story.inject("now", "systemd-inhibit --what=shutdown:sleep --mode=block --who=lab --why=test sleep 3600")
    else:
        mark = story.inject("jumping", injections.freeze_init(30 if variant == "frozen-briefly" else 150))
    story.begin()
    assert story.acts(mark)
    story.end()
    if variant == "frozen":
        # Nobody can take the request back. When PID 1 runs again, it reboots the host, and the update has unloaded the kernel by then.
        story.must_hold(ended=ALL, outcomes={"undone", "failed"})
    else:
        story.must_hold(outcomes={"updated"})


@each(14)
def test_14_clock_jumps(story: Story, variant: str) -> None:
    step = "stopping" if variant == "forward-stopping" else "preserved"
    mark = story.inject(step, injections.clock(-3600 if variant == "back" else 3600))
    story.begin()
    assert story.acts(mark)
    story.end()
    facts = story.must_hold(outcomes={"updated"})
    for guest in UNITS:
        times = facts.reported["guests"][guest.name]["times"]
        seen = story.host.verdict(guest.port, story.since).blackout_s
        assert seen is not None and abs(times["resumed"] - times["paused"] - seen) < ABOUT_S, (times, seen)


@each(17)
def test_17_process_ignores_signals(story: Story, variant: str) -> None:
    story.there("systemctl start user@0.service")
    story.there(injections.IGNORE)
    look = "systemctl is-active lab-stubborn.service lab-stubborn-scope.scope"
    wait_until("the processes that ignore signals", lambda: ((done := story.host.ssh(look)).returncode == 0, done.stdout))
    story.host.ssh("setsid sh /root/stubborn.sh </dev/null >/dev/null 2>&1 &")
    story.there("XDG_RUNTIME_DIR=/run/user/0 systemd-run --user --quiet --unit lab-stubborn sh /root/stubborn.sh")
    story.update()
    story.must_hold(outcomes={"updated"})
    assert not story.host.ssh("pgrep -f stubborn[.]sh").stdout


# A service with memory of its own. After a jump it finds the session in its fd store, and writes down what the memory is.
SERVICE = f"""
import hashlib, os, signal
{injections.RUNTIME}
from kvm_liveupdate.host import _systemd
from kvm_liveupdate.kernel import _luo

session = _systemd.listen_fds().get("lab-cache")
if session is None:
    file, told = os.memfd_create("pages"), "before"
    os.write(file, os.urandom(1 << 20))
else:
    file, told = _luo.retrieve_fd(session, 0), "after"
    _luo.finish(session)
    _systemd.notify("FDSTOREREMOVE=1\\nFDNAME=lab-cache")
with open(f"/root/lab-cache.{{told}}", "w") as note:
    note.write(hashlib.sha256(os.pread(file, 1 << 20, 0)).hexdigest())
signal.pause()
"""
UNIT = """[Service]
ExecStart=/usr/bin/python3 /root/lab-cache.py
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
NotifyAccess=all

[Install]
WantedBy=multi-user.target
"""


@each(20)
def test_20_service_with_sessions(story: Story, variant: str) -> None:
    story.there("cat > /root/lab-cache.py", SERVICE)
    story.there("cat > /etc/systemd/system/lab-cache.service; systemctl daemon-reload; systemctl enable --now lab-cache", UNIT)
    wait_until("the service", lambda: ((done := story.host.ssh("test -s /root/lab-cache.before")).returncode == 0, done.stderr))
    kept = story.controller.ask(story.host.name, "session", name="lab-cache", unit="lab-cache.service", memfds=["pages"])
    assert kept["changed"], kept
    story.update()
    story.must_hold(outcomes={"updated"})
    wait_until("the service", lambda: ((done := story.host.ssh("test -s /root/lab-cache.after")).returncode == 0, done.stderr))
    assert story.there("cmp /root/lab-cache.before /root/lab-cache.after; echo $?").strip() == "0"
