# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Debian repository on a host, with one of its kernels as a package. The host can reach no other repository."""

from __future__ import annotations

from ..errors import LabError
from .host import Host

# Moves the kernel's files into the package. As with Debian's kernels, installing or removing it updates the boot menu.
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
    """Move a kernel from /boot of a host into a package. Returns the package as NAME=VERSION."""
    done = host.ssh(_MAKE % (release, VERSION))
    if done.returncode:
        raise LabError(f"{host.name}: cannot make a package of kernel {release}: {done.stderr.strip()}")
    return f"linux-image-{release}={VERSION}"
