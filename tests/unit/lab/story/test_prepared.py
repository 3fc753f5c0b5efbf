# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A prepared host is made again when anything that it is made of changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvmlab import cache
from kvmlab.story import prepared
from kvmlab.watch import ledger

IMAGE = Path("/cache/image-1/disk.raw")


def key(kind: str = "forky", image: Path = IMAGE) -> str:
    return cache.key(prepared.inputs_of(kind, image))


def test_the_same_inputs_are_the_same_host() -> None:
    assert key() == key()


def test_another_kind_or_image_or_runtime_is_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    assert len({before, key("trixie"), key(image=Path("/cache/image-2/disk.raw"))}) == 3
    monkeypatch.setattr(ledger, "runtime", lambda: "cafe")
    assert key() != before


def test_another_setup_or_other_guests_are_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(prepared, "GUESTS", prepared.GUESTS[1:])
    assert key() != before
    monkeypatch.undo()
    monkeypatch.setattr(prepared, "SETUP", prepared.SETUP[1:])
    assert key() != before


def test_a_digest_tells_content_and_names_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "COLLECTION", tmp_path)
    (tmp_path / "one").write_text("a")
    first = prepared.digest([tmp_path / "one"])
    (tmp_path / "two").write_text("a")
    assert prepared.digest([tmp_path / "two"]) != first
    (tmp_path / "one").write_text("b")
    assert prepared.digest([tmp_path / "one"]) != first
