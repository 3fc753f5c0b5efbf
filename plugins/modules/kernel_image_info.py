#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_image_info
short_description: Report whether a kernel image can take part in live updates
version_added: 0.2.0
description:
  - The module reads a kernel image. It reports the handover ABI and each reason why this kernel cannot preserve memory or take over.
  - The machine does not have to be a hypervisor, and the kernel does not have to be installed on it. P(kvm.liveupdate.build_kernel#role)
    examines the kernel that it built with this module.
  - Whether one kernel can take over from another one depends on both. M(kvm.liveupdate.hypervisor_info) compares a kernel with the one that
    runs.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details: The module changes nothing.
  idempotent:
    support: full
options:
  path:
    description: Path of the kernel image. A file that is missing or not a kernel is an error.
    type: path
    required: true
  config:
    description:
      - Path of the build configuration of the kernel. The image's own configuration (C(CONFIG_IKCONFIG)) takes precedence. Without
        either, a reason says that the configuration is unknown.
      - The default is C(config-RELEASE) beside the image, otherwise in C(/boot) or in the directory of the kernel's modules.
    type: path
"""

EXAMPLES = r"""
- name: Read a kernel
  kvm.liveupdate.kernel_image_info:
    path: /boot/vmlinuz-7.3.4
  register: kernel

- name: Show why it cannot take part in live updates
  ansible.builtin.debug:
    msg: "{{ kernel.reasons }}"
  when: not kernel.ready
"""

RETURN = r"""
ready:
  description: Whether the kernel can preserve memory and take over. V(true) if there is no reason against it.
  returned: success
  type: bool
  sample: true
reasons:
  description: Why the kernel cannot take part in live updates.
  returned: success
  type: list
  elements: dict
  contains:
    code:
      description: A short name of the reason, for programs.
      returned: always
      type: str
    message:
      description: The reason, with the value seen.
      returned: always
      type: str
    remedy:
      description: What to do about it.
      returned: always
      type: str
    verdict:
      description: V(refused) if a jump would fail, V(unknown) if this cannot be known.
      returned: always
      type: str
  sample:
    - code: kvm-off
      message: "kernel /boot/vmlinuz-7.3.4 is built without CONFIG_KVM: no guest can run on it"
      remedy: use a kernel with CONFIG_KVM=m or y
      verdict: refused
refusals:
  description: All reasons as sentences with their remedies.
  returned: success
  type: list
  elements: str
  sample:
    - "kernel /boot/vmlinuz-7.3.4 is built without CONFIG_KVM: no guest can run on it - use a kernel with CONFIG_KVM=m or y"
kernel:
  description: The kernel.
  returned: success
  type: dict
  contains:
    path:
      description: The path of the image.
      returned: always
      type: str
    kind:
      description: The kind of the image, for example V(bzImage).
      returned: always
      type: str
    release:
      description: Its release, as C(uname -r) shows it.
      returned: always
      type: str
    version:
      description: Its version, as C(uname -v) shows it.
      returned: always
      type: str
    size:
      description: The size of the image in bytes.
      returned: always
      type: int
    sha256:
      description: The SHA-256 digest of the image.
      returned: always
      type: str
    abi:
      description: The ABI strings by which the kernel recognises preserved memory. V(null) for a string that is not found.
      returned: always
      type: dict
      contains:
        kho:
          description: The version of the Kexec Handover, for example V(kho-v4).
          returned: always
          type: str
        luo:
          description: The version of the Live Update Orchestrator, for example V(luo-v5).
          returned: always
          type: str
        memfd:
          description: The version of preserved memory files, for example V(memfd-v2).
          returned: always
          type: str
    signed:
      description: Whether the image has a signature. Whether the signature is valid is not checked.
      returned: always
      type: bool
  sample:
    path: /boot/vmlinuz-7.3.4
    kind: bzImage
    release: 7.3.4
    version: "#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1"
    size: 12345678
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    abi: {kho: kho-v4, luo: luo-v5, memfd: memfd-v2}
    signed: false
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import told
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _image, _proof

SHOWN = ("path", "kind", "release", "version", "size", "sha256", "abi", "signed")


def examine(module):
    """Read the image and hold it against itself."""
    image = _image.read(module.params["path"], module.params["config"])
    reasons = _proof.alone(image)
    return {
        "changed": False,
        "ready": not reasons,
        "reasons": reasons,
        "refusals": [told(why) for why in reasons],
        "kernel": {key: image[key] for key in SHOWN},
    }


def main():
    """Spec and run."""
    run_module(
        examine,
        argument_spec={
            "path": {"type": "path", "required": True},
            "config": {"type": "path"},
        },
    )


if __name__ == "__main__":
    main()
