# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which kernels are chosen from what the suites hold."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from kvmlab.errors import LabError
from kvmlab.parts import kernel, packages
from kvmlab.parts.packages import Resolution, Source, candidates, newest_sources, version_key

OLD = Source("linux-source-7.2", "7.2.13-1")
NEW = Source("linux-source-7.3", "7.3.4-1~bpo13+1")


def sources(*names: str) -> tuple[Source, ...]:
    """Sources of these series."""
    return tuple(Source(f"linux-source-{name}", f"{name}.1-1") for name in names)


def resolution(*found: Source, at: float = 0.0) -> Resolution:
    """What a mirror said."""
    return Resolution(at, "http://deb.debian.org/debian", dict.fromkeys(packages.SUITES, "today"), found)


def test_versions_are_ordered_by_the_upstream_number() -> None:
    ordered = ["6.19.10-1", "7.2.9-1~bpo13+1", "7.2.13-1~bpo13+1", "7.2.13-1", "7.10.1-1"]
    assert sorted(ordered, key=version_key) == ordered
    assert all(sorted(turned, key=version_key) == ordered for turned in itertools.permutations(ordered))


def test_the_newest_version_of_each_series_is_taken() -> None:
    rows = [
        ("linux-source-7.2", "7.2.13-1", "sid"),
        ("linux-source-7.2", "7.2.12-1~bpo13+1", "trixie-backports"),
        ("linux-source-7.3", "7.3.4-1~bpo13+1", "trixie-backports"),
        ("linux-source-6.12", "6.12.90-1~bpo13+1", "trixie-backports"),
    ]
    assert newest_sources(rows) == (NEW, OLD, Source("linux-source-6.12", "6.12.90-1~bpo13+1"))


@pytest.mark.parametrize(
    "row",
    [
        ("linux-source-7.2", "7.2.14-1", "forky"),
        ("linux-source", "7.3.4-1", "sid"),
        ("linux-source-7.4", "7.4~rc3-1~exp1", "sid"),
        ("linux-image-7.3", "7.3.4-1", "sid"),
    ],
)
def test_other_suites_and_packages_are_not_looked_at(row: tuple[str, str, str]) -> None:
    assert newest_sources([row]) == ()


def test_the_default_pair_is_the_only_candidate_while_it_is_there() -> None:
    assert candidates((*sources("7.4"), NEW, OLD)) == [(OLD, NEW)]


def test_without_the_default_pair_the_newest_come_first() -> None:
    pairs = [(old.series, new.series) for old, new in candidates(sources("7.3", "7.5", "7.10"))]
    assert pairs == [("7.5", "7.10"), ("7.3", "7.10"), ("7.3", "7.5")]


def test_one_series_makes_no_pair() -> None:
    assert candidates(sources("7.3")) == []


def abi(version: str) -> dict[str, str]:
    """The ABI of a kernel."""
    return {"KHO_FDT_COMPATIBLE": "kho-v4", "LUO_ABI_COMPATIBLE": f"luo-v{version}", "MEMFD_LUO_FH_COMPATIBLE": "memfd-v2"}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was built; nothing really is."""
    series: list[str] = []

    def build(source: packages.Source, twin: bool = False) -> kernel.Kernel:
        series.append(source.series)
        return kernel.Kernel(Path(f"kernel-{source.series}{'-and-twin' if twin else ''}"))

    monkeypatch.setattr(kernel, "abi", lambda source: abi("6" if source.series >= "7.4" else "5"))
    monkeypatch.setattr(kernel, "build", build)
    return series


def test_the_newest_pair_whose_abi_agrees_is_built(built: list[str]) -> None:
    kernel.pair(resolution(*sources("7.5", "7.4", "7.3")))
    assert built == ["7.4", "7.5"]
    kernel.pair(resolution(*sources("7.4", "7.3", "7.1")))
    assert built[2:] == ["7.1", "7.3"]


def test_a_default_pair_that_differs_is_refused(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "abi", lambda source: abi(source.series))
    with pytest.raises(LabError, match=r"7\.2\.13-1 has kho-v4, luo-v7\.2, memfd-v2 but 7\.3\.4-1~bpo13\+1 has kho-v4, luo-v7\.3"):
        kernel.pair(resolution(NEW, OLD))
    assert built == []


def test_a_mirror_without_a_pair_is_refused(built: list[str]) -> None:
    with pytest.raises(LabError, match=r"no two kernels .* found 7\.3\.1-1"):
        kernel.pair(resolution(*sources("7.3")))


def test_twins_are_of_the_default_series_and_share_its_build_with_the_pair(built: list[str]) -> None:
    old, new = kernel.twins(resolution(*sources("7.4"), NEW, OLD))
    assert (old.folder, new.folder) == (Path("kernel-7.3-and-twin/twin"), Path("kernel-7.3-and-twin"))
    assert kernel.pair(resolution(NEW, OLD))[1] == new
    built.clear()
    kernel.twins(resolution(*sources("7.5", "7.10")))
    assert built == ["7.10"]


HEADERS = {
    "kexec_handover.h": ' * KHO_FDT_COMPATIBLE to\n#define KHO_FDT_COMPATIBLE "kho-v4"\n',
    "luo.h": '#define LUO_ABI_COMPATIBLE\t"luo-v5"\n#define LUO_ABI_COMPAT_LEN\tALIGN(sizeof(LUO_ABI_COMPATIBLE), 8)\n',
    "memfd.h": '#define MEMFD_LUO_FH_COMPATIBLE\t"memfd-v2"\n',
}


def test_the_abi_is_read_from_the_headers() -> None:
    assert list(kernel.abi_strings(HEADERS, "7.2").values()) == ["kho-v4", "luo-v5", "memfd-v2"]
    with pytest.raises(LabError, match=r"7\.2: include/linux/kho/abi/luo\.h does not define LUO_ABI_COMPATIBLE"):
        kernel.abi_strings({**HEADERS, "luo.h": "#define LUO_ABI_COMPATIBLE LUO_V5\n"}, "7.2")


def test_an_option_that_the_kernel_drops_or_makes_a_module_is_missing() -> None:
    fragment = "# why\nCONFIG_KVM=y\nCONFIG_LIVEUPDATE=y\nCONFIG_TUN=y\n"
    assert kernel.missing_options("CONFIG_KVM=y\nCONFIG_LIVEUPDATE=y\nCONFIG_TUN=y\nCONFIG_MORE=y\n", fragment) == []
    assert kernel.missing_options("CONFIG_KVM=m\n# CONFIG_LIVEUPDATE is not set\nCONFIG_TUN=y\n", fragment) == [
        "CONFIG_KVM=y",
        "CONFIG_LIVEUPDATE=y",
    ]


def test_a_comment_is_no_reason_to_build_a_kernel_again() -> None:
    assert kernel.options_of("# why\nCONFIG_B=y\n\nCONFIG_A=y\n") == kernel.options_of("CONFIG_A=y\nCONFIG_B=y")
    assert kernel.options_of("CONFIG_A=y") != kernel.options_of("CONFIG_A=m")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A mirror that answers, and counts it; an empty list of answers is a mirror out of reach."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KVM_LIVEUPDATE_MIRROR", raising=False)
    answers: list[float] = []

    def ask() -> Resolution:
        if not answers:
            raise LabError("apt-get update failed")
        return resolution(NEW, OLD, at=answers.pop())

    monkeypatch.setattr(packages, "_ask", ask)
    return answers


def test_the_mirror_is_asked_once_a_day(mirror: list[float]) -> None:
    mirror.append(time.time())
    first = packages.resolve()
    assert first.sources == (NEW, OLD)
    assert packages.resolve() == first


def test_an_old_answer_serves_when_the_mirror_is_out_of_reach(mirror: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    mirror.append(time.time() - 3 * 24 * 3600)
    old = packages.resolve()
    assert packages.resolve() == old
    assert "http://deb.debian.org/debian does not answer, using its answer of 72 hours ago" in capsys.readouterr().err
    mirror.append(time.time())
    assert packages.resolve() != old


def test_without_any_answer_there_is_an_error(mirror: list[float]) -> None:
    with pytest.raises(LabError, match="apt-get update failed"):
        packages.resolve()


def test_another_mirror_is_asked_itself(mirror: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.extend([time.time(), time.time()])
    packages.resolve()
    monkeypatch.setenv("KVM_LIVEUPDATE_MIRROR", "http://mirror.example/debian/")
    assert packages.mirror() == "http://mirror.example/debian"
    packages.resolve()
    assert mirror == []
