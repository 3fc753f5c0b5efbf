# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Debian's own kernels: image and configuration, unpacked from the packages without an installation."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..run import run_logged, say
from . import packages

META = "linux-image-amd64"
KEPT = 8


@dataclass(frozen=True)
class Stock:
    """One kernel: its packages and their version."""

    release: str
    version: str
    packages: tuple[str, ...]

    @property
    def series(self) -> str:
        """The kernel series, as in 6.12."""
        return ".".join(self.release.split(".")[:2])


def newest() -> tuple[Stock, ...]:
    """The default kernels of the lab's suites: the newest of each series, oldest series first."""
    packages.resolve()  # downloads the package lists
    found = {stock.series: stock for stock in sorted(map(_of, images(packages.shown(META))), key=_order)}
    if not found:
        raise LabError(f"no suite of {', '.join(packages.SUITES)} has {META} at {packages.mirror()}")
    return tuple(found.values())


def images(shown: str) -> Iterable[tuple[str, str]]:
    """Name and version of the image packages that the meta package's records depend on. Pure."""
    return re.findall(r"^Depends:.*?(linux-image-[^ ,]+) \(= ([^)]+)\)", shown, re.MULTILINE)


def parts(shown: str) -> tuple[str, ...]:
    """The packages with image and configuration, if the image package is split, as newer ones are; else none. Pure."""
    depends = next(iter(re.findall(r"^Depends: (.*)$", shown, re.MULTILINE)), "")
    return tuple(name for name in re.findall(r"[^ ,|]+", depends) if re.match(r"linux-(binary|base)-\d", name))


def folder(stock: Stock) -> Path:
    """The folder in the cache with vmlinuz-RELEASE and config-RELEASE."""

    def fetch(to: Path, log: Path) -> None:
        say(f"stock kernel {stock.release}: downloading {len(stock.packages)} packages")
        work = to / "work"
        for name in stock.packages:
            (work / name).mkdir(parents=True)
            deb = packages.download(packages.Source(name, stock.version), work / name, log)
            run_logged(("dpkg-deb", "-x", deb, work / "tree"), what=f"unpack {deb.name}", log=log, limit_s=limits.TOOL)
        for kind, inside in (("vmlinuz", f"boot/vmlinuz-{stock.release}"), ("config", f"boot/config-{stock.release}")):
            places = (work / "tree" / inside, work / "tree/usr/lib/modules" / stock.release / kind)
            place = next((place for place in places if place.is_file()), None)
            if place is None:
                raise LabError(f"no {kind} of {stock.release} in the packages {', '.join(stock.packages)}, version {stock.version}")
            shutil.copy(place, to / f"{kind}-{stock.release}")
        shutil.rmtree(work)

    found = cache.artefact("stock", {"packages": " ".join(stock.packages), "version": stock.version}, fetch)
    cache.prune("stock", KEPT)
    return found


def _of(image: tuple[str, str]) -> Stock:
    name, version = image
    return Stock(name.removeprefix("linux-image-"), version, parts(packages.shown(f"{name}={version}")) or (name,))


def _order(stock: Stock) -> tuple[tuple[int, ...], bool, str]:
    return packages.version_key(stock.version)
