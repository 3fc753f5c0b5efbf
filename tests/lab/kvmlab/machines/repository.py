# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Debian repository on a host of the lab, which brings one of its kernels as a package; no other repository can be reached from there."""

from __future__ import annotations

from ..errors import LabError
from .host import Host

# The kernel's files move into the package. As in Debian's own packages the boot loader's menu follows an installation and a removal.
_MAKE = """
set -e
release=%s
mkdir -p /srv/packages/tree/DEBIAN /srv/packages/tree/boot
cd /srv/packages
mv /boot/vmlinuz-$release /boot/config-$release tree/boot
printf '#!/bin/sh\\nset -e\\nupdate-grub\\n' | tee tree/DEBIAN/postinst > tree/DEBIAN/postrm
chmod 755 tree/DEBIAN/postinst tree/DEBIAN/postrm
cat > tree/DEBIAN/control <<END
Package: linux-image-$release
Version: %s
Architecture: amd64
Maintainer: kvm.liveupdate contributors
Description: Linux $release of the lab
END
dpkg-deb --root-owner-group -Znone --build tree linux-image.deb
{
  cat tree/DEBIAN/control
  echo "Filename: ./linux-image.deb"
  echo "Size: $(stat -c %%s linux-image.deb)"
  echo "SHA256: $(sha256sum linux-image.deb | cut -d' ' -f1)"
} > Packages
rm -r tree
echo "deb [trusted=yes] file:/srv/packages ./" > /etc/apt/sources.list
update-grub
"""
VERSION = "1.0-1"


def packaged(host: Host, release: str) -> str:
    """Take a kernel out of /boot of a host and into a package; what its package manager calls that, with the version."""
    done = host.ssh(_MAKE % (release, VERSION))
    if done.returncode:
        raise LabError(f"{host.name}: no package of kernel {release}: {done.stderr.strip()}")
    return f"linux-image-{release}={VERSION}"
