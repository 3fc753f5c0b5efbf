# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build the kernels of hosts and guests from Debian's source packages."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..run import run_logged, say, tail
from .packages import DEFAULT_SERIES, Resolution, Source, candidates, download, newest

FRAGMENT = Path(__file__).parents[2] / "kernel.config"
MODULAR_FRAGMENT = FRAGMENT.with_name("kernel-modular.config")
OBJECTS = 1600  # roughly what this configuration compiles; only for the progress line

ABI_FOLDER = "include/linux/kho/abi"
ABI_NAMES = {
    "kexec_handover.h": "KHO_FDT_COMPATIBLE",
    "luo.h": "LUO_ABI_COMPATIBLE",
    "memfd.h": "MEMFD_LUO_FH_COMPATIBLE",
}

# Fixed values, so that the same source gives the same image.
BUILD_ENV = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "lab",
    "KBUILD_BUILD_HOST": "lab",
    "LC_ALL": "C",
}
CONFIGURE = ("make", "KCONFIG_ALLCONFIG=lab.config", "allnoconfig")
COMPILE = ("make", "bzImage")
COMPILE_MODULAR = (*COMPILE, "modules")
# depmod runs in the hosts' root file system, since this machine may have none.
INSTALL_MODULES = ("make", "INSTALL_MOD_STRIP=1", "DEPMOD=true", "modules_install")
# Only needed to select other options. Not every kernel has them.
HINTS = {"CONFIG_PROC_SYSCTL=y"}
# Files that this configuration does not use and that are slow to unpack.
LEFT_OUT = ("*/Documentation/*/*", "*/drivers/gpu/drm/*/*.[ch]", "*/sound/*.[ch]", "*/tools/testing")
# The suffix of a kernel's twin: the same source with another name. It stands for a distribution's small update.
TWIN = "-before"
MODULAR = "-modular"


@dataclass(frozen=True)
class Kernel:
    """A built kernel in the cache."""

    folder: Path

    @property
    def release(self) -> str:
        """What uname -r prints when it runs."""
        return (self.folder / "release").read_text().strip()

    @property
    def image(self) -> Path:
        """The bzImage."""
        return self.folder / "bzImage"

    @property
    def config(self) -> Path:
        """Its full configuration."""
        return self.folder / "config"

    @property
    def modules(self) -> Path:
        """The folder of its modules, as below /usr/lib/modules. Only a modular kernel has one."""
        return self.folder / "modules"


def pair(resolution: Resolution, modular: bool = False) -> tuple[Kernel, Kernel]:
    """The two kernels of the lab, old and new. Both have the same live update ABI."""
    refused = []
    tried = candidates(resolution.sources)
    for old, new in tried:
        abis = abi(old), abi(new)
        if abis[0] == abis[1]:
            return (build_modular(old), build_modular(new, twin=True)) if modular else (build(old), build(new, twin=True))
        refused.append(f"{old.version} has {', '.join(abis[0].values())} but {new.version} has {', '.join(abis[1].values())}")
    seen = "; ".join(refused) or "found " + (", ".join(source.version for source in resolution.sources) or "no kernel source")
    raise LabError(f"no two kernels with the same live update ABI at {resolution.mirror}: {seen}; try another KVM_LIVEUPDATE_MIRROR")


def twins(resolution: Resolution, modular: bool = False) -> tuple[Kernel, Kernel]:
    """Two kernels of one source, old and new. They take half as long to build as :func:`pair`, and share its new kernel."""
    if not resolution.sources:
        raise LabError(f"no kernel source at {resolution.mirror}; set KVM_LIVEUPDATE_MIRROR to another mirror")
    default = [source for source in resolution.sources if source.series == DEFAULT_SERIES[-1]]
    source = (default or [newest(resolution.sources)])[0]
    kernel = build_modular(source, twin=True) if modular else build(source, twin=True)
    return Kernel(kernel.folder / "twin"), kernel


def abi(source: Source) -> dict[str, str]:
    """The strings by which a new kernel checks the format of what the old one hands over."""
    inputs = {"package": source.package, "version": source.version}

    def read(folder: Path, log: Path) -> None:
        tree = _unpack(source, folder, log, "--wildcards", f"*/{ABI_FOLDER}")
        strings = abi_strings({name: (tree / ABI_FOLDER / name).read_text() for name in ABI_NAMES}, source.version)
        shutil.rmtree(folder / "work")
        (folder / "abi.json").write_text(json.dumps(strings, indent=1) + "\n")

    found = cache.artefact("kernel-abi", inputs, read)
    strings: dict[str, str] = json.loads((found / "abi.json").read_text())
    return strings


def abi_strings(headers: Mapping[str, str], where: str) -> dict[str, str]:
    """Names and values of the ABI strings in the kernel's headers."""
    found = {}
    for header, name in ABI_NAMES.items():
        match = re.search(rf'^#define\s+{name}\s+"([^"]+)"', headers[header], re.MULTILINE)
        if not match:
            raise LabError(f"{where}: {ABI_FOLDER}/{header} does not define {name}")
        found[name] = match.group(1)
    return found


def inputs_of(source: Source, twin: bool) -> dict[str, str]:
    """All inputs of the kernel image."""
    return {
        "twin": TWIN if twin else "",
        "package": source.package,
        "version": source.version,
        "fragment": options_of(FRAGMENT.read_text()),
        "recipe": json.dumps([BUILD_ENV, CONFIGURE, COMPILE, LEFT_OUT]),
    }


def modular_inputs_of(source: Source, twin: bool) -> dict[str, str]:
    """All inputs of the modular kernel."""
    return {
        "twin": TWIN if twin else "",
        "package": source.package,
        "version": source.version,
        "fragment": options_of(modular_fragment()),
        "recipe": json.dumps([BUILD_ENV, CONFIGURE, COMPILE_MODULAR, INSTALL_MODULES, MODULAR, LEFT_OUT]),
    }


def options_of(fragment: str) -> str:
    """The options of a configuration fragment, without comments. A changed comment needs no new build."""
    return "\n".join(sorted(line for line in fragment.splitlines() if line.startswith("CONFIG_")))


def modular_fragment() -> str:
    """The configuration of the modular kernel: all options of one fragment, with those of the other in their place."""
    return overlaid(FRAGMENT.read_text(), MODULAR_FRAGMENT.read_text())


def overlaid(fragment: str, upper: str) -> str:
    """The options of a fragment. An option that upper has as well takes its value from there. Pure."""
    lines = (*options_of(fragment).splitlines(), *options_of(upper).splitlines())
    options = dict(line.split("=", 1) for line in lines)
    return "".join(f"{name}={value}\n" for name, value in sorted(options.items()))


def build(source: Source, twin: bool = False) -> Kernel:
    """The kernel of one source package. With twin=True, its twin, too."""

    def make(folder: Path, log: Path) -> None:
        what = f"kernel {source.version}"
        say(f"{what}: building, 5 to 20 minutes of two cores")
        tree = _configured(source, folder, log, FRAGMENT.read_text(), what)
        for place, suffix in ((folder, ""), (folder / "twin", TWIN))[: 1 + twin]:
            _compile(tree, COMPILE, suffix, place, log, what + suffix)
        shutil.rmtree(folder / "work")

    return Kernel(cache.artefact("kernel", inputs_of(source, twin), make))


def build_modular(source: Source, twin: bool = False) -> Kernel:
    """The modular kernel of one source package, with its modules. With twin=True, its twin, too."""

    def make(folder: Path, log: Path) -> None:
        what = f"kernel {source.version}{MODULAR}"
        say(f"{what}: building, 5 to 25 minutes of two cores")
        tree = _configured(source, folder, log, modular_fragment(), what)
        for place, suffix in ((folder, MODULAR), (folder / "twin", MODULAR + TWIN))[: 1 + twin]:
            _compile(tree, COMPILE_MODULAR, suffix, place, log, f"kernel {source.version}{suffix}")
            install = (*INSTALL_MODULES, f"LOCALVERSION={suffix}", f"INSTALL_MOD_PATH={folder / 'work'}")
            run_logged(install, what=f"{what} modules", log=log, limit_s=limits.TOOL, cwd=tree, env=BUILD_ENV)
            installed = folder / "work/lib/modules" / Kernel(place).release
            for link in ("build", "source"):
                (installed / link).unlink(missing_ok=True)
            installed.rename(place / "modules")
        shutil.rmtree(folder / "work")

    return Kernel(cache.artefact("kernel", modular_inputs_of(source, twin), make))


def _configured(source: Source, folder: Path, log: Path, fragment: str, what: str) -> Path:
    """Unpack the source and configure it. Returns its folder."""
    tree = _unpack(source, folder, log, "--wildcards", *(f"--exclude={name}" for name in LEFT_OUT))
    (tree / "lab.config").write_text(fragment)
    run_logged(CONFIGURE, what=f"{what} configure", log=log, limit_s=limits.TOOL, cwd=tree, env=BUILD_ENV)
    missing = missing_options((tree / ".config").read_text(), fragment)
    if missing:
        raise LabError(f"{what}: the build drops these options of {FRAGMENT.parent}: {', '.join(missing)}")
    return tree


def _compile(tree: Path, command: tuple[str, ...], suffix: str, place: Path, log: Path, what: str) -> None:
    """Build in a configured source and copy the kernel, its configuration and its release to a folder."""
    words = ("nice", *command, f"LOCALVERSION={suffix}", f"-j{os.cpu_count() or 1}")
    run_logged(words, what=what, log=log, limit_s=limits.BUILD, cwd=tree, env=BUILD_ENV, progress=_ObjectCounter(log).text)
    place.mkdir(exist_ok=True)
    shutil.copy(tree / "arch/x86/boot/bzImage", place / "bzImage")
    shutil.copy(tree / ".config", place / "config")
    shutil.copy(tree / "include/config/kernel.release", place / "release")


def missing_options(config: str, fragment: str) -> list[str]:
    """The fragment's options that this configuration lacks. A kernel drops options that it does not know or whose dependencies are off."""
    return sorted(set(options_of(fragment).splitlines()) - set(config.splitlines()) - HINTS)


def _unpack(source: Source, folder: Path, log: Path, *selection: str) -> Path:
    """Unpack the kernel source below folder/work and return its folder. selection is passed to tar."""
    work = folder / "work"
    work.mkdir()
    deb = package(source)
    run_logged(("dpkg-deb", "-x", deb, work), what=f"unpack {deb.name}", log=log, limit_s=limits.TOOL)
    (tar,) = (work / "usr/src").glob("linux-source-*.tar.xz")
    run_logged(("tar", "-C", work, "-xJf", tar, *selection), what=f"unpack {tar.name}", log=log, limit_s=limits.TOOL)
    shutil.rmtree(work / "usr")
    (tree,) = work.glob("linux-source-*")
    return tree


def package(source: Source) -> Path:
    """The source package in the cache."""
    kept = cache.artefact("deb", {"package": source.package, "version": source.version}, lambda to, log: _fetch(source, to, log))
    (deb,) = kept.glob("*.deb")
    return deb


def _fetch(source: Source, folder: Path, log: Path) -> None:
    """Download the source package."""
    say(f"download {source.package} {source.version} (about 160 MB)")
    download(source, folder, log)


class _ObjectCounter:
    """Counts the compiled objects in a growing build log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0
        self._count = 0

    def text(self) -> str:
        """The progress of the build."""
        with self._log.open("rb") as stream:
            stream.seek(self._offset)
            fresh = stream.read()
        self._offset += len(fresh)
        self._count += len(re.findall(rb"^  (?:CC|AS) ", fresh, re.MULTILINE))
        return f"{self._count} objects of about {OBJECTS}, {tail(self._log, 1).strip()}"
