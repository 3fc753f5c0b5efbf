# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the log of a probe says, and the program itself against a guest that falls silent."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest
from kvmlab.watch import probe


def log(times: list[float], trip: float = 0.01) -> str:
    return "".join(f"{at:.4f} ANSWER {number} {at - trip:.4f}\n" for number, at in enumerate(times, start=1))


def test_the_longest_silence_counts() -> None:
    seen = probe.read(log([1.0, 1.05, 1.1, 9.1, 9.15, 9.35]))
    assert (seen.count, round(seen.silence_s, 3)) == (6, 8.0)
    assert seen.blackout_s == pytest.approx(7.95) and seen.resolution_s == pytest.approx(0.06)


def test_the_way_there_and_back_is_the_usual_one() -> None:
    """What waited for the guest and came back at once afterwards is not usual."""
    assert probe.read(log([1.0, 1.05, 1.1, 9.1]) + log([9.11], trip=8.0)).round_trip_s == pytest.approx(0.01)


def test_when_the_first_datagram_got_through() -> None:
    """One that had waited for the guest comes back after the silence as well, and does not count."""
    seen = probe.read(log([1.0, 1.05]) + log([9.05], trip=7.0) + log([9.1], trip=0.25) + log([9.15], trip=0.01))
    assert [round(sent, 2) for sent in seen.sent_s] == [1.0, 7.8, 8.09]
    assert seen.got_through_s(7.5) == pytest.approx(7.8) and seen.got_through_s(9.0) is None


@pytest.mark.parametrize("text", ["", "Traceback (most recent call last):\n", "1.0000 ANSWER 1\n"])
def test_without_an_answer_nothing_was_measured(text: str) -> None:
    assert probe.read(text) == probe.Answers() and probe.Answers().blackout_s == 0.0


def test_the_program_logs_answers_and_outlives_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        guest.bind(("127.0.0.1", 0))
        guest.settimeout(20)
        main = f"from kvmlab.watch import probe; probe.PORT = {guest.getsockname()[1]}; probe.main(['127.0.0.1'])"
        program = subprocess.Popen([sys.executable, "-c", main], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)})
        assert program.stdout
        limit = threading.Timer(20, program.kill)
        limit.start()
        try:
            answer(guest, 5)
            lines = [program.stdout.readline() for _number in range(5)]
            time.sleep(0.5)
            answer(guest, 30)  # what was sent meanwhile, and some more
            lines += [program.stdout.readline() for _number in range(15)]
        finally:
            limit.cancel()
            program.kill()
            program.wait()
    seen = probe.read("".join(lines))
    assert seen.count == 20 and 0.3 < seen.silence_s < 5


def answer(guest: socket.socket, count: int) -> None:
    for _number in range(count):
        data, peer = guest.recvfrom(64)
        guest.sendto(data, peer)
