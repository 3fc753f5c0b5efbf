# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest's heartbeats prove, and what they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kvmlab.watch.heartbeat import PERIOD_S, Tick, parse, read_ticks, verdict

BOOT = "61f624b4-1e38-4c1c-9ef3-f73d4589b6bc"
OTHER_BOOT = "32dfe975-83ce-4668-85e6-ae4b90f4518a"
SUM = "c95aa2bb5e83908c"
TICKS_A_PASS = 8


def line(number: int, arrived: float, boot: str = BOOT, checksum: str = SUM) -> str:
    """One line of a log as the supervisor writes it."""
    turn = (number - 1) // TICKS_A_PASS
    shown = checksum if turn else "0" * 16
    guest = 5 + number * PERIOD_S
    return f"{arrived:.6f} {1.7e9 + arrived:.6f} TICK n={number} mono={guest:.6f} boot={boot} sum={shown} pass={turn}"


def log(numbers: range, start: float = 0.0, boot: str = BOOT, checksum: str = SUM) -> list[str]:
    """Lines of ticks that arrive on time, the tick numbered 1 at start."""
    return [line(number, start + number * PERIOD_S, boot, checksum) for number in numbers]


def update(blackout: float = 10.0) -> list[str]:
    """The log of a guest that went on after a blackout behind tick 40."""
    return log(range(1, 41)) + log(range(41, 81), start=blackout)


def test_a_tick_is_read_with_the_times_of_its_arrival() -> None:
    (tick,) = parse([line(17, 100.5)])
    assert tick == Tick(100.5, 1.7e9 + 100.5, 17, 13.5, BOOT, SUM, 2)


def test_a_tick_says_what_time_the_guest_believes_it_is() -> None:
    before, boot, after = line(17, 100.5).partition(" boot=")
    (tick,) = parse([f"{before} real=1700000090.012345{boot}{after} disk=342"])
    assert tick.guest_wall == 1700000090.012345
    assert tick.synced == 342
    assert parse([f"{before} real=17000000{boot}{after}"]) == []


def test_a_tick_says_what_is_on_the_guests_disk() -> None:
    (tick,) = parse([line(17, 100.5) + " disk=342"])
    assert tick.synced == 342
    assert parse([line(17, 100.5) + " disk=342x"]) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no stamps TICK n=1",
        "1.0 2.0 clocksource: timekeeping watchdog",
        f"1.0 2.0 TICK n=1 mono=5.250000 boot={BOOT} sum={SUM} pa",
        f"1.0 2.0 TICK n=1 mono=5.250000 boot={BOOT} sum={SUM[:-1]} pass=1",
        f"1.0 2.0 TICK n=1 mono=5.250000 boot={BOOT} sum={SUM} pass=1x",
    ],
)
def test_what_is_no_whole_tick_is_left_out(text: str) -> None:
    assert parse([text]) == []


def test_a_guest_that_went_on_survived() -> None:
    result = verdict(parse(update(10.0)), since=17.6, now=50.1)
    assert result.survived, result.reason
    assert result.contiguous
    assert result.boot_ids == (BOOT,)
    assert (result.checksum_before, result.checksum_after) == (SUM, SUM)
    assert result.blackout_s == pytest.approx(10.0)
    assert result.last_tick == 80
    assert result.last_tick_age_s == pytest.approx(0.1)
    assert result.reason == "ticks 35 to 80 without a break, memory unchanged"


def test_without_an_update_there_is_no_blackout() -> None:
    result = verdict(parse(log(range(1, 81))), now=20.0)
    assert result.blackout_s == pytest.approx(0.0, abs=1e-6)


def test_a_restarted_guest_did_not_survive() -> None:
    lines = log(range(1, 41)) + log(range(1, 60), start=20.0, boot=OTHER_BOOT, checksum="f9580a714b9e61c5")
    result = verdict(parse(lines), since=9.0, now=35.0)
    assert not result.survived
    assert not result.contiguous
    assert result.boot_ids == (BOOT, OTHER_BOOT)
    assert result.reason == f"restarted: boot {BOOT} ended after tick 40, then came tick 1 of boot {OTHER_BOOT}"


def test_a_restart_shows_although_only_the_new_boot_is_heard_in_the_window() -> None:
    lines = log(range(1, 41)) + log(range(1, 60), start=20.0, boot=OTHER_BOOT)
    result = verdict(parse(lines), since=15.0, now=35.0)
    assert result.reason.startswith("restarted: ")


def test_a_restart_into_the_same_tick_numbers_shows() -> None:
    lines = log(range(1, 41)) + log(range(41, 81), start=10.0, boot=OTHER_BOOT)
    assert not verdict(parse(lines), now=30.0).survived


def test_a_lost_tick_is_a_loss() -> None:
    lines = log(range(1, 41)) + log(range(42, 81), start=10.0)
    result = verdict(parse(lines), now=30.0)
    assert not result.survived
    assert result.reason == "lost ticks: after tick 40 came tick 42"


def test_another_message_in_the_place_of_a_tick_does_not_excuse_its_loss() -> None:
    lines = [*log(range(1, 41)), "20.0 20.0 rcu: INFO: self-detected stall on CPU", *log(range(42, 81), start=10.0)]
    assert verdict(parse(lines), now=30.0).reason == "lost ticks: after tick 40 came tick 42"


def test_a_torn_tick_is_proven_by_its_neighbours() -> None:
    torn = line(41, 20.25)[:60]
    lines = [*log(range(1, 41)), torn, *log(range(42, 81), start=10.0)]
    result = verdict(parse(lines), since=9.0, now=30.0)
    assert result.survived, result.reason
    assert result.torn == (41,)


def test_a_torn_tick_may_share_its_line_with_the_next() -> None:
    begun = line(41, 20.25).partition(" ")[2].partition(" ")[2][:23]
    stamps, text = line(42, 20.5).split(" TICK")
    lines = [*log(range(1, 41)), f"{stamps} {begun}TICK{text}", *log(range(43, 81), start=10.0)]
    result = verdict(parse(lines), now=30.0)
    assert result.survived, result.reason
    assert result.torn == (41,)


def test_one_torn_tick_does_not_excuse_two_lost_ones() -> None:
    lines = [*log(range(1, 41)), line(41, 20.25)[:60], *log(range(43, 81), start=10.0)]
    assert verdict(parse(lines), now=30.0).reason == "lost ticks: after tick 40 came tick 43"


def test_a_torn_tick_that_came_again_whole_is_none_lost() -> None:
    lines = [*log(range(1, 41)), line(41, 20.25)[:60], *log(range(41, 81), start=10.0)]
    result = verdict(parse(lines), now=30.0)
    assert result.survived
    assert result.torn == ()


@pytest.mark.parametrize("again", [40, 30])
def test_ticks_that_come_again_are_old_memory(again: int) -> None:
    lines = log(range(1, 41)) + log(range(again, 81), start=13.0)
    result = verdict(parse(lines), now=33.0)
    assert not result.survived
    assert result.reason == f"went back: after tick 40 came tick {again} of the same boot"


def test_changed_memory_is_a_loss_although_the_ticks_go_on() -> None:
    lines = log(range(1, 41)) + log(range(41, 81), start=10.0, checksum="0123456789abcdef")
    result = verdict(parse(lines), now=30.0)
    assert not result.survived
    assert result.contiguous
    assert (result.checksum_before, result.checksum_after) == (SUM, "0123456789abcdef")
    assert result.reason == f"memory changed: its checksum was {SUM}, then 0123456789abcdef"


def test_survival_is_not_said_before_the_memory_was_read_through_again() -> None:
    # The pass that tick 40 is in the middle of does not count: it is wholly new from tick 41, and known with tick 49.
    early = log(range(1, 41)) + log(range(41, 49), start=10.0)
    result = verdict(parse(early), now=22.1)
    assert not result.survived
    assert result.checksum_after is None
    assert result.reason == "not proven: the guest has not read all its memory since the longest gap, which came after tick 40"
    assert verdict(parse([*early, *log(range(49, 50), start=10.0)]), now=22.4).survived


def test_survival_is_not_said_when_nothing_is_known_from_before() -> None:
    lines = log(range(1, 5)) + log(range(5, 41), start=10.0)
    assert verdict(parse(lines), now=20.0).reason == "not proven: the guest had not read all its memory before the longest gap"


def test_a_guest_that_fell_silent_after_it_came_back_did_not_survive() -> None:
    result = verdict(parse(update()), since=17.6, now=90.0)
    assert not result.survived
    assert result.last_tick_age_s == pytest.approx(40.0)
    assert result.reason == "silent: no tick for 40.0 s after tick 80"


def test_a_guest_that_never_came_back_did_not_survive() -> None:
    result = verdict(parse(log(range(1, 41))), since=21.0, now=81.0)
    assert not result.survived
    assert result.last_tick == 40
    assert result.last_tick_age_s == pytest.approx(61.0)
    assert result.reason == "silent: no tick has arrived after tick 40"


def test_a_guest_that_was_never_heard_did_not_survive(tmp_path: Path) -> None:
    assert read_ticks(tmp_path / "heartbeat-ttyS1.log") == []
    assert verdict([], since=1.0, now=2.0).reason == "silent: no tick has ever arrived"


def test_what_was_before_the_moment_is_not_judged() -> None:
    lines = log(range(1, 20), boot=OTHER_BOOT) + log(range(1, 41), start=30.0) + log(range(41, 81), start=36.0)
    assert not verdict(parse(lines), now=56.0).survived
    assert verdict(parse(lines), since=38.0, now=56.0).survived


def test_the_blackout_is_the_longest_gap() -> None:
    lines = log(range(1, 41)) + log(range(41, 61), start=3.0) + log(range(61, 101), start=9.5)
    result = verdict(parse(lines), now=34.6)
    assert result.blackout_s == pytest.approx(6.5)
    assert result.survived


def test_the_guests_own_clock_is_not_asked() -> None:
    ticks = [replace(tick, guest_monotonic=1e6 if tick.number > 40 else tick.guest_monotonic) for tick in parse(update(10.0))]
    result = verdict(ticks, now=30.0)
    assert result.survived
    assert result.blackout_s == pytest.approx(10.0)


def test_the_usual_time_between_ticks_is_told() -> None:
    assert verdict(parse(update()), since=10).period_s == pytest.approx(PERIOD_S)


def test_a_silence_in_which_the_guests_clock_went_on_was_no_pause() -> None:
    ticks = parse(update())
    late = [replace(tick, guest_monotonic=tick.guest_monotonic + 1.5) if tick.number > 40 else tick for tick in ticks]
    assert verdict(ticks, since=10).late_s == pytest.approx(0.0, abs=1e-6)
    assert verdict(late, since=10).late_s == pytest.approx(1.5)


def test_a_tick_that_was_on_its_way_for_long_was_no_pause() -> None:
    """The first one after a blackout came a second late, those behind it in time."""
    ticks = [replace(tick, arrived=tick.arrived + 1.0) if tick.number == 41 else tick for tick in parse(update())]
    seen = verdict(sorted(ticks, key=lambda tick: tick.number), since=10)
    assert seen.blackout_s == pytest.approx(11.0) and seen.late_s == pytest.approx(1.0)


def told(lines: list[str], words: str) -> list[str]:
    """The same lines; each says these words too, with the number of its tick where NUMBER is."""
    return [f"{text} {words.replace('NUMBER', text.partition('n=')[2].partition(' ')[0])}" for text in lines]


def test_a_tick_says_what_the_parts_of_the_guest_have_done() -> None:
    (tick,) = parse([line(17, 100.5) + " disk=342 disk2=17 cpus=12,13,11,12 tpm=62e8d94e58431a63,5 efi=2"])
    assert (tick.synced, tick.synced_second) == (342, 17)
    assert tick.processors == (12, 13, 11, 12)
    assert (tick.pcr, tick.tpm_count, tick.efi_count) == ("62e8d94e58431a63", 5, 2)
    (plain,) = parse([line(17, 100.5)])
    assert (plain.synced_second, plain.processors, plain.pcr, plain.tpm_count, plain.efi_count) == (None, (), None, None, None)


@pytest.mark.parametrize("words", ["cpus=1", "cpus=1,", "tpm=62e8,5", "tpm=62e8d94e58431a63", "efi=", "disk2=x"])
def test_half_of_what_a_part_has_done_is_no_whole_tick(words: str) -> None:
    lines = [*log(range(1, 41)), line(41, 20.5) + f" {words}", *log(range(42, 81))]
    assert [tick.number for tick in parse(lines)] == [*range(1, 41), *range(42, 81)]
    assert verdict(parse(lines), now=40.1).torn == (41,)


PARTS = "cpus=NUMBER,NUMBER tpm=62e8d94e58431a63,NUMBER efi=NUMBER"


def test_a_guest_whose_parts_went_on_survived() -> None:
    assert verdict(parse(told(update(), PARTS)), since=9.0, now=50.1).survived


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("cpus=NUMBER,7", "processor 1"),
        ("tpm=62e8d94e58431a63,7", "TPM"),
        ("efi=7", "firmware's variable"),
    ],
)
def test_a_part_that_stands_still_did_not_survive(words: str, part: str) -> None:
    result = verdict(parse(told(update(), words)), since=9.0, now=50.1)
    assert not result.survived
    assert result.reason == f"not proven: its {part} has not counted since the longest gap, which came after tick 40"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("cpus=NUMBER,7", "processor 0"),
        ("tpm=62e8d94e58431a63,NUMBER", "TPM"),
        ("efi=NUMBER", "firmware's variable"),
    ],
)
def test_a_part_that_is_as_it_was_before_did_not_survive(words: str, part: str) -> None:
    """The guest goes on, and its TPM, for one, from an older state."""
    older = [text.replace("NUMBER", "20") for text in told(log(range(41, 81), start=10.0), words.replace("NUMBER", "20"))]
    result = verdict(parse([*told(log(range(1, 41)), words), *older]), now=50.1)
    assert result.reason == f"went back: after count 40 of its {part} came count 20"


def test_a_tpm_that_is_another_one_did_not_survive() -> None:
    other = told(log(range(41, 81), start=10.0), "tpm=0000000000000000,NUMBER")
    result = verdict(parse([*told(log(range(1, 41)), "tpm=62e8d94e58431a63,NUMBER"), *other]), now=50.1)
    assert result.reason == "TPM changed: its register was 62e8d94e58431a63, then 0000000000000000"


def test_a_part_that_began_after_the_pause_proves_nothing() -> None:
    lines = [*log(range(1, 41)), *told(log(range(41, 81), start=10.0), "tpm=62e8d94e58431a63,NUMBER")]
    assert verdict(parse(lines), now=50.1).reason == "not proven: its TPM had not counted before the longest gap"


def test_a_guest_whose_ticks_may_be_lost_survived_all_the_same() -> None:
    lines = log(range(1, 41)) + log(range(44, 81), start=10.0)
    result = verdict(parse(lines), since=9.0, now=50.1, lossy=True)
    assert result.survived, result.reason
    assert result.lost == 3
    assert result.reason == "ticks 17 to 80 with 3 lost on the network, memory unchanged"
    assert not verdict(parse(lines), since=9.0, now=50.1).survived


@pytest.mark.parametrize(
    ("lines", "begins"),
    [
        (log(range(1, 41)) + log(range(30, 81), start=13.0), "went back: "),
        (log(range(1, 41)) + log(range(1, 60), start=20.0, boot=OTHER_BOOT), "restarted: "),
        (log(range(1, 41)) + log(range(44, 81), start=10.0, checksum="0123456789abcdef"), "memory changed: "),
    ],
)
def test_where_ticks_may_be_lost_a_loss_of_the_guest_shows(lines: list[str], begins: str) -> None:
    assert verdict(parse(lines), now=50.1, lossy=True).reason.startswith(begins)
