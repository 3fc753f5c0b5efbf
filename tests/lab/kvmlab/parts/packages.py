# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find and download Debian packages. This machine's own apt state is not used or changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..run import run_logged, say

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KERNEL_SUITES = ("sid", "trixie-backports")
HOST_SUITES = ("forky", "trixie")
SUITES = (*KERNEL_SUITES, *HOST_SUITES)
DEFAULT_SERIES = ("7.2", "7.3")
FRESH_S = 24 * 3600.0


@dataclass(frozen=True)
class Source:
    """One Debian package in one version."""

    package: str
    version: str

    @property
    def series(self) -> str:
        """The kernel series, as in 7.2."""
        return self.package.removeprefix("linux-source-")


@dataclass(frozen=True)
class Resolution:
    """What the suites contained at one moment."""

    resolved_at: float
    mirror: str
    snapshots: dict[str, str]
    sources: tuple[Source, ...]


def mirror() -> str:
    """The Debian mirror to use."""
    return os.environ.get("KVM_LIVEUPDATE_MIRROR", "http://deb.debian.org/debian").rstrip("/")


def version_key(version: str) -> tuple[tuple[int, ...], bool, str]:
    """A sort key for kernel package versions: by upstream number, then a backport before the release."""
    upstream = re.match(r"[0-9.]+", version)
    numbers = tuple(int(part) for part in upstream.group().strip(".").split(".")) if upstream else ()
    return numbers, "~bpo" not in version, version


def newest_sources(rows: Iterable[tuple[str, str, str]]) -> tuple[Source, ...]:
    """The newest version of each kernel series, newest series first. rows are (package, version, suite)."""
    best: dict[str, str] = {}
    for package, version, suite in rows:
        released = re.fullmatch(r"linux-source-\d+\.\d+", package) and "~rc" not in version
        if not released or suite not in KERNEL_SUITES:
            continue
        if package not in best or version_key(version) > version_key(best[package]):
            best[package] = version
    found = [Source(package, version) for package, version in best.items()]
    return tuple(sorted(found, key=lambda source: version_key(source.series), reverse=True))


def newest(sources: Iterable[Source]) -> Source:
    """The source of the newest series."""
    return max(sources, key=lambda source: version_key(source.series))


def candidates(sources: Sequence[Source]) -> list[tuple[Source, Source]]:
    """Pairs (old, new) of kernels to try in this order: only the default pair if it exists, else all pairs, newest first."""
    by_series = {source.series: source for source in sources}
    if all(series in by_series for series in DEFAULT_SERIES):
        return [(by_series[DEFAULT_SERIES[0]], by_series[DEFAULT_SERIES[1]])]
    ordered = sorted(sources, key=lambda source: version_key(source.series), reverse=True)
    pairs = [(old, new) for index, new in enumerate(ordered) for old in ordered[index + 1 :]]
    # The newest pair is the one with the newest old kernel.
    return sorted(pairs, key=lambda pair: (version_key(pair[0].series), version_key(pair[1].series)), reverse=True)


def resolve() -> Resolution:
    """What to build from. Asks the mirror at most once a day. If the mirror does not answer, its last answer is used."""
    record = _record()
    last = _recorded(record)
    if last and last.mirror == mirror() and 0 <= time.time() - last.resolved_at < FRESH_S:
        return last
    with cache.locked("apt"):
        last = _recorded(record)  # another run may have asked meanwhile
        if last and last.mirror == mirror() and 0 <= time.time() - last.resolved_at < FRESH_S:
            return last
        try:
            fresh = _ask()
        except LabError as error:
            if last is None:
                raise
            age_h = (time.time() - last.resolved_at) / 3600
            say(f"  {mirror()} does not answer, using its answer of {age_h:.0f} hours ago ({str(error).splitlines()[0]})")
            return last
        partial = record.with_suffix(".new")
        partial.write_text(json.dumps(asdict(fresh), indent=1) + "\n")
        partial.rename(record)
        return fresh


def download(source: Source, folder: Path, log: Path) -> Path:
    """Download one package into folder. apt checks its size and hash against the signed index."""
    wanted = f"{source.package}={source.version}"
    command = [*_apt("apt-get"), "-q", "download", wanted]
    with cache.locked("apt"):
        try:
            run_logged(command, what=f"download {wanted}", log=log, limit_s=limits.DOWNLOAD, cwd=folder)
        except LabError:
            say(f"  {wanted}: not in the package lists, updating the lists")
            _update()
            _record().unlink(missing_ok=True)  # the mirror has changed, so the next run must ask it again
            run_logged(command, what=f"download {wanted}", log=log, limit_s=limits.DOWNLOAD, cwd=folder)
    found = list(folder.glob(f"{source.package}_*.deb"))
    if len(found) != 1:
        raise LabError(f"the download of {wanted} left {len(found)} package files in {folder} instead of one")
    return found[0]


def shown(package: str) -> str:
    """The package list records of a package, one for each version."""
    return _output("apt-cache", "show", package)


def _record() -> Path:
    """The file with the last answer of the mirror."""
    return cache.root() / "resolved.json"


def _recorded(record: Path) -> Resolution | None:
    """The last answer of the mirror, or None if there is no readable one."""
    try:
        data = json.loads(record.read_text())
        sources = tuple(Source(**entry) for entry in data["sources"])
        snapshots = {suite: str(data["snapshots"][suite]) for suite in SUITES}
        return Resolution(float(data["resolved_at"]), data["mirror"], snapshots, sources)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ask() -> Resolution:
    """Fetch the package lists and read them."""
    say(f"package lists from {mirror()}")
    _update()
    names = [name for name in _output("apt-cache", "pkgnames", "linux-source-").split() if re.search(r"-\d+\.\d+$", name)]
    rows = []
    for line in _output("apt-cache", "madison", *names).splitlines() if names else ():
        package, version, where = (field.strip() for field in line.split("|"))
        rows.append((package, version, where.split()[1].split("/")[0]))
    sources = newest_sources(rows)
    snapshots = {suite: _date_of(suite) for suite in SUITES}
    return Resolution(time.time(), mirror(), snapshots, sources)


def _update() -> None:
    """Run apt-get update on the lab's own apt state. An error with one list is an error."""
    if not KEYRING.exists():
        raise LabError(f"{KEYRING} is missing; install the package debian-archive-keyring")
    folder = cache.root() / "apt"
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    lines = [f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n" for suite in SUITES]
    (folder / "sources.list").write_text("".join(lines))
    log = cache.root() / "logs" / "apt-update.log"
    log.unlink(missing_ok=True)
    command = [*_apt("apt-get"), "-q", "-o", "APT::Update::Error-Mode=any", "update"]
    run_logged(command, what="apt-get update (private lists)", log=log, limit_s=limits.DOWNLOAD)


def _date_of(suite: str) -> str:
    """The date in a suite's signed index. It tells which snapshot of the suite this is."""
    found = list((cache.root() / "apt" / "lists").glob(f"*_dists_{suite}_InRelease"))
    for path in found:
        date = re.search(r"^Date: (.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if date:
            return date.group(1)
    raise LabError(f"no date in the package lists of {suite} in {cache.root() / 'apt' / 'lists'}; remove that folder and try again")


def _apt(tool: str) -> list[str]:
    """An apt command that uses the lab's own apt state, with this machine's proxies and certificates."""
    folder = cache.root() / "apt"
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "APT::Architecture": "amd64",
        # A slow mirror may serve an expired index. apt still checks its signature.
        "Acquire::Check-Valid-Until": "false",
        # The cache may be in a home folder that the user _apt cannot enter.
        "APT::Sandbox::User": "root",
    }
    return [tool, *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]


def _output(tool: str, *words: str) -> str:
    """The output of an apt query."""
    done = subprocess.run([*_apt(tool), *words], capture_output=True, text=True, timeout=limits.TOOL, check=False)
    if done.returncode != 0:
        raise LabError(f"{tool} {words[0]} failed: {done.stderr.strip()}")
    return done.stdout


def network_settings() -> list[str]:
    """This machine's apt settings for proxies and certificates, as NAME "VALUE" lines."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, timeout=limits.TOOL, check=False)
    wanted = re.compile(r'^Acquire::(http|https)::[^ ]*(Proxy|CaInfo|CaPath|Verify-Peer|Verify-Host)[^ ]* ".+";$', re.IGNORECASE)
    return [line for line in done.stdout.splitlines() if wanted.match(line)]
