# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cases of the suite: what is done, what must hold besides what always must, and the one action that brings the host back to work."""

from __future__ import annotations

from dataclasses import dataclass

# The actions, in the words of the documentation.
NOTHING = "nothing"
RERUN = "repeat the update command"
RECOVER = "``kvm-liveupdate recover``"
RESUME = "``kvm-liveupdate resume GUEST``"
DISCARD = "``kvm-liveupdate discard GUEST``, then start the guest"
START = "``systemctl start`` of the guest's unit"
REMEDY = "remove the cause"
RUNBOOK = "what the runbooks say for the state of the host"

# The steps of an update, in their order, as the host's records show them.
STEPS = ("staged", "preserved", "committed", "stopping", "saving", "jumping")


@dataclass(frozen=True)
class Case:
    """One case. variants: each is a test of its own. quick: the variants that every run of tests/run does.

    elsewhere: the tests of the lab that have a part of the case.
    """

    number: int
    title: str
    done: str
    holds: str
    action: str
    variants: tuple[str, ...]
    quick: tuple[str, ...] = ()
    elsewhere: str = ""

    @property
    def id(self) -> str:
        """The beginning of the names of its tests."""
        return f"test_{self.number:02d}_"


CASES = (
    Case(
        1,
        "The controller dies",
        "All processes of the run are killed when a step begins: examine, lease, stage, preserve, commit, wait, boot, verify.",
        "Before the commit the guests continue to run. After the commit the host finishes alone.",
        RERUN,
        ("examine", "lease", "stage", "preserve", "commit", "stopping", "booting", "verify"),
    ),
    Case(
        2,
        "SSH breaks",
        "The host's network card loses its cable: while the kernel is staged, while RAM is preserved, or during the jump.",
        "A cut before the commit ends the run. After a cut that covers the jump, the run finds the host again.",
        RERUN,
        ("stage", "preserve", "jump"),
        elsewhere="test_a_lost_host_stops_the_rollout_and_finishes_by_itself",
    ),
    Case(
        3,
        "The holder is killed",
        "SIGKILL to the unit that holds a session: before the jump, and while guests are saved. With and without systemd's file"
        " descriptor store.",
        "Without a session the host does not jump.",
        RERUN,
        ("forky-preserved", "forky-saving", "trixie-preserved", "trixie-saving"),
    ),
    Case(
        4,
        "A guest's save fails or hangs",
        "QEMU or libvirt's daemon is stopped (SIGSTOP) during the save. A state file cannot be written.",
        "All guests resume, also those that were saved.",
        NOTHING,
        ("unit-hangs", "daemon-hangs"),
        elsewhere="test_a_guest_that_cannot_be_saved_undoes_the_update, test_saved_domains_come_back_when_the_update_is_undone",
    ),
    Case(
        5,
        "The disk is full",
        "The root file system is filled before the save, before the records of the jump, during an undo, or before the restore.",
        "An undo and a restore do not need room on the disk.",
        f"{REMEDY} (make room)",
        ("save", "journal", "abort", "restore"),
    ),
    Case(
        6,
        "The kernel image changes after its proof",
        "The image is cut off, or another file takes its place, after it was staged, or right before it is loaded.",
        "The host jumps only into the image that was proved.",
        f"{REMEDY} (put the image back)",
        ("truncated-staged", "swapped-staged", "swapped-stopping"),
        quick=("swapped-staged",),
    ),
    Case(
        7,
        "The new kernel cannot take over",
        "The kernel gets ``kho=off`` or ``liveupdate=off``; it has another handover ABI (kho, luo, memfd); it is built without LUO.",
        "The update is refused before anything is touched.",
        NOTHING,
        ("kho-off", "liveupdate-off", "abi-kho", "abi-luo", "abi-memfd", "no-luo"),
        quick=("kho-off",),
    ),
    Case(
        8,
        "The new kernel panics or hangs",
        "It panics: it finds no root file system, or its PID 1 ends. Or it hangs: its root device never comes.",
        "After a panic the host boots the old kernel, and the guests start from their disks. A hang is reported when the time limit ends.",
        "nothing; after a hang: power-cycle the host",
        ("panic", "init", "hang"),
    ),
    Case(
        9,
        "The power fails",
        "The emulator of the host is killed in each step, while the new kernel boots, after the first guest resumed, and after all did.",
        "A saved state is never used with other memory. Each saved guest is recorded as lost.",
        NOTHING,
        (*STEPS, "booting", "restoring", "restored"),
        quick=("saving",),
    ),
    Case(
        10,
        "The restore of one guest fails",
        "Its state is damaged, QEMU cannot be executed, its memory limit is too small, another program has its disk locked, or another file"
        " is at the path of its disk.",
        "The other guests are restored. This one stays off, and the host says why. Its memory is kept as long as the kernel can keep it.",
        "``state``, ``memory``: " + DISCARD + "; the others: " + f"{REMEDY}, then {START}",
        ("state", "qemu", "memory", "locked", "other-file"),
    ),
    Case(
        11,
        "The restore is killed",
        "SIGKILL to the processes that load a guest's state, to its unit, and to the unit that restores a domain.",
        "No state is loaded twice. The memory is kept.",
        f"{START}; ``loader``: ``systemctl restart``",
        ("loader", "unit", "domain"),
    ),
    Case(
        12,
        "Another process has the live update device open",
        "It is open at the jump. Or it is open at the next boot: for a while, or until somebody ends the process.",
        "The restore waits for the device.",
        f"{REMEDY} (end the process)",
        ("jump", "boot-briefly", "boot"),
    ),
    Case(
        13,
        "The kexec is delayed",
        "A program blocks shutdowns (systemd-inhibit); PID 1 does not run for some seconds, or for longer than the limit.",
        "Only a PID 1 that is silent for longer than the limit ends the update. It reboots the host later, and the guests start from their"
        " disks.",
        NOTHING,
        ("inhibitor", "frozen-briefly", "frozen"),
    ),
    Case(
        14,
        "The clock of the host jumps",
        "One hour forward or back, before the commit, and while services stop.",
        "No limit depends on the clock, and the reported pause is right.",
        NOTHING,
        ("forward", "back", "forward-stopping"),
    ),
    Case(
        15,
        "Twenty updates in a row",
        "No fault: twenty updates of one host.",
        "No session is left, and as much memory is free as after the second update.",
        NOTHING,
        ("twenty",),
    ),
    Case(
        16,
        "A guest changes after its examination",
        "After the RAM was preserved, one of these happens: QEMU is replaced on disk or restarted; the guest gets another device or a"
        " snapshot of its disk; its owner migrates it, or has migrated it. After the save the guest is resumed, or another virtual machine"
        " starts.",
        "The update is undone, or the guest is restored as it is now.",
        NOTHING,
        ("replaced", "restarted", "hot-plugged", "snapshot", "migrating", "migrated", "resumed", "stranger"),
    ),
    Case(
        17,
        "A process ignores signals",
        "A login shell, a service and a unit of the user's manager ignore all signals but SIGKILL.",
        "The update does not wait for them longer than their limit.",
        NOTHING,
        ("ignores",),
    ),
    Case(
        18,
        "A second controller",
        "Another run updates the same host while the first one preserves RAM, and after its commit.",
        "The second run changes nothing. It is refused, or it does not reach the host.",
        NOTHING,
        ("preserved", "stopping"),
    ),
    Case(
        19,
        "Somebody else reboots the host",
        "``systemctl reboot``, a kexec into another image, or ``kexec --unload``, in each step.",
        "No guest is restored from a state that does not belong to its memory.",
        NOTHING,
        (*(f"reboot-{step}" for step in STEPS), "kexec-staged", "kexec-stopping", "unload-saving", "unload-jumping"),
        elsewhere="test_somebody_elses_kexec_leaves_no_memory_reserved",
    ),
    Case(
        20,
        "A service of somebody else with sessions",
        "A service has a LUO session of its own in its file descriptor store during an update.",
        "Its memory survives the jump, and nothing of it is touched.",
        NOTHING,
        ("session",),
    ),
    Case(
        21,
        "The collection is upgraded while guests are preserved",
        "The controller gets another version; with and without a new setup before the update continues.",
        "The setup ends no session. Without it the update is refused.",
        f"run ``kvm.liveupdate.setup``, then {RERUN}",
        ("setup", "no-setup"),
    ),
    Case(
        22,
        "Random schedules",
        "Two to four of the faults above at random steps, with guests that write memory and disk all the time.",
        "The same as for each fault alone.",
        RUNBOOK,
        tuple(str(number) for number in range(1, 13)),
    ),
)
BY_NUMBER = {case.number: case for case in CASES}


def tests(case: Case) -> list[str]:
    """The names by which results of its tests are kept, without the words after the number. Pure."""
    return [f"{case.number:02d}-{variant}" for variant in case.variants]
