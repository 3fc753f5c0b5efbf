# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which packages hold Debian's own kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvmlab import cache
from kvmlab.errors import LabError
from kvmlab.parts import packages, stock
from kvmlab.parts.stock import Stock

META = """Package: linux-image-amd64
Version: 7.3.4-1~bpo13+1
Depends: linux-base-amd64 (= 7.3.4-1~bpo13+1), linux-image-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1), linux-modules-amd64 (= 7.3.4-1~bpo13+1)

Package: linux-image-amd64
Depends: linux-base-amd64 (= 7.2.13-1), linux-image-7.2.13+deb14-amd64 (= 7.2.13-1)

Package: linux-image-amd64
Depends: linux-base-amd64 (= 7.2.12-1), linux-image-7.2.12+deb14-amd64 (= 7.2.12-1)

Package: linux-image-amd64
Depends: linux-image-6.12.117+deb13-amd64 (= 6.12.117-1)
"""
SPLIT = """Package: linux-image-7.3.4+deb13-amd64
Depends: dracut | initramfs-tools (>= 0.120+deb8u2), linux-base-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1), linux-binary-7.3.4+deb13-amd64
"""
WHOLE = "Package: linux-image-6.12.117+deb13-amd64\nDepends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2)\n"


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Package lists with these packages."""

    def shown(package: str) -> str:
        if package == stock.META:
            return META
        return WHOLE if "6.12" in package else SPLIT.replace("7.3.4+deb13", package.partition("=")[0][12:-6])

    monkeypatch.setattr(packages, "resolve", lambda: None)
    monkeypatch.setattr(packages, "shown", shown)


@pytest.mark.usefixtures("lists")
def test_the_newest_of_each_series() -> None:
    assert stock.newest() == (
        Stock("6.12.117+deb13-amd64", "6.12.117-1", ("linux-image-6.12.117+deb13-amd64",)),
        Stock("7.2.13+deb14-amd64", "7.2.13-1", ("linux-base-7.2.13+deb14-amd64", "linux-binary-7.2.13+deb14-amd64")),
        Stock("7.3.4+deb13-amd64", "7.3.4-1~bpo13+1", ("linux-base-7.3.4+deb13-amd64", "linux-binary-7.3.4+deb13-amd64")),
    )
    assert [found.series for found in stock.newest()] == ["6.12", "7.2", "7.3"]


def test_a_mirror_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "resolve", lambda: None)
    monkeypatch.setattr(packages, "shown", lambda _package: "")
    with pytest.raises(LabError, match=r"no suite of .* has linux-image-amd64 at http"):
        stock.newest()


@pytest.fixture
def debs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What the packages hold; nothing is downloaded or unpacked."""
    inside: dict[str, str] = {}

    def unpack(command: tuple[object, ...], **_rest: object) -> None:
        for name, content in inside.items():
            path = Path(str(command[-1])) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    monkeypatch.setattr(cache, "root", lambda: tmp_path)
    monkeypatch.setattr(packages, "download", lambda source, to, _log: to / f"{source.package}.deb")
    monkeypatch.setattr(stock, "run_logged", unpack)
    return inside


@pytest.mark.parametrize(
    "names", [("boot/vmlinuz-7.2.13", "boot/config-7.2.13"), ("usr/lib/modules/7.2.13/vmlinuz", "usr/lib/modules/7.2.13/config")]
)
def test_image_and_configuration_are_kept_and_nothing_else(debs: dict[str, str], names: tuple[str, str]) -> None:
    debs.update({names[0]: "image", names[1]: "options", "usr/lib/modules/7.2.13/kernel/a.ko": "module"})
    folder = stock.folder(Stock("7.2.13", "7.2.13-1", ("linux-image-7.2.13",)))
    assert sorted(path.name for path in folder.iterdir()) == ["config-7.2.13", "inputs.json", "vmlinuz-7.2.13"]
    assert ((folder / "vmlinuz-7.2.13").read_text(), (folder / "config-7.2.13").read_text()) == ("image", "options")


def test_packages_without_an_image(debs: dict[str, str], tmp_path: Path) -> None:
    debs["usr/share/doc/x"] = "x"
    with pytest.raises(LabError, match=r"no vmlinuz of 7\.2\.13 in the packages linux-image-7\.2\.13, version 7\.2\.13-1"):
        stock.folder(Stock("7.2.13", "7.2.13-1", ("linux-image-7.2.13",)))
    assert not list(tmp_path.glob("stock-*"))
