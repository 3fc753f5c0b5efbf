# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's SSH keys: one for the client, one for all hosts. They are generated once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import cache, limits
from ..run import run_logged


@dataclass(frozen=True)
class Keys:
    """A folder with both key pairs."""

    folder: Path

    @property
    def client(self) -> Path:
        """The private key of the client."""
        return self.folder / "client"

    @property
    def host(self) -> Path:
        """The private host key, the same on all hosts."""
        return self.folder / "host"


def public(key: Path) -> str:
    """The public key of a private key."""
    return key.with_name(key.name + ".pub").read_text().strip()


def keys() -> Keys:
    """The keys in the cache."""

    def build(folder: Path, log: Path) -> None:
        for name in ("client", "host"):
            command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"kvm-liveupdate-lab-{name}", "-f", folder / name)
            run_logged(command, what="ssh-keygen", log=log, limit_s=limits.TOOL)

    return Keys(cache.artefact("ssh", {"type": "ed25519"}, build))
