# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes fixtures/answers-VERSION.json: what a real libvirt and its QEMU answer about domains, after their start and after each change.

By hand, as root and with the collection's PYTHONPATH, on a machine (or in a chroot) with libvirt-daemon-system, libvirt-clients,
qemu-system-x86, qemu-utils and ovmf, where libvirtd runs and may use TCG: ``python record_answers.py``. What is there was recorded with
libvirt 9.0 and QEMU 7.2 (Debian 12), 11.3 and 10.0 (Debian 13), 12.8 and 11.1 (forky).
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _survey

FOLDER = "/srv/lu"
UUID = "c0ffee00-1111-4111-8111-111111111111"
NAME = "web1"
MADE = (
    "qemu-img create -q -f qcow2 base.qcow2 16M; qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2;"
    " qemu-img create -q -f qcow2 -o data_file=$PWD/data.raw,data_file_raw=on d.qcow2 16M;"
    " qemu-img create -q -f qcow2 -b d.qcow2 -F qcow2 e.qcow2;"
    " truncate -s 16M b.raw c.raw d.raw h.raw; truncate -s 4M one.iso two.iso; truncate -s 1440K f.img"
)


def disk(path: str, dev: str, bus: str, device: str = "disk", more: str = "") -> str:
    """A disk of a definition."""
    kind = "qcow2" if path.endswith("qcow2") else "raw"
    return (
        f"<disk type='file' device='{device}'><driver name='qemu' type='{kind}'{more}/><source file='{FOLDER}/{path}'/>"
        f"<target dev='{dev}' bus='{bus}'/></disk>"
    )


SMALL = (
    disk("a.qcow2", "vda", "virtio")
    + disk("b.raw", "sda", "scsi", more=" cache='none'")
    + disk("one.iso", "sdb", "sata", "cdrom")
    + "<controller type='scsi' model='virtio-scsi'/><controller type='pci' index='0' model='pcie-root'/>"
    + "<controller type='pci' model='pcie-root-port'/>" * 8
    + "<interface type='ethernet'><target dev='tap1'/><model type='virtio'/></interface>"
    + "<memballoon model='virtio'/>"
)
# Many kinds of devices; OLD is for a machine that has some of its own.
MANY = (
    disk("a.qcow2", "vda", "virtio", more=" copy_on_read='on'")
    + disk("b.raw", "sda", "scsi", more=" io='threads' detect_zeroes='on'")
    + disk("one.iso", "sdb", "sata", "cdrom")
    + "<disk type='file' device='cdrom'><target dev='sdc' bus='sata'/></disk>"
    + disk("c.raw", "sdd", "usb")
    + disk("d.raw", "sde", "sata", more=" cache='directsync' discard='unmap'")
    + f"<disk type='dir' device='disk'><driver name='qemu' type='fat'/><source dir='{FOLDER}/dir'/>"
    + "<target dev='vdb' bus='virtio'/><readonly/></disk>"
    + f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{FOLDER}/h.raw'><slices>"
    + "<slice type='storage' offset='512' size='1048576'/></slices></source><target dev='vdc' bus='virtio'/></disk>"
    + "<controller type='scsi' model='virtio-scsi'/><controller type='usb' model='ich9-ehci1'/><controller type='ccid'/>"
    + "<controller type='usb' model='ich9-uhci1'><master startport='0'/></controller>"
    + "<controller type='usb' model='ich9-uhci2'><master startport='2'/></controller>"
    + "<controller type='usb' model='ich9-uhci3'><master startport='4'/></controller>"
    + "<controller type='usb' index='1' model='qemu-xhci'/>"
    + "<interface type='user'><model type='virtio'/></interface>"
    + "<interface type='ethernet'><target dev='tap1'/><model type='e1000e'/><driver name='qemu' queues='2'/></interface>"
    + "<interface type='bridge'><source bridge='br0'/><model type='virtio'/><driver queues='2'/></interface>"
    + "<serial type='pty'/><console type='pty'><target type='virtio'/></console>"
    + "<parallel type='file'><source path='/tmp/parallel'/></parallel>"
    + "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    + "<smartcard mode='passthrough' type='tcp'><source mode='bind' host='127.0.0.1' service='2001'/><protocol type='raw'/></smartcard>"
    + "<input type='tablet' bus='usb'/><input type='keyboard' bus='virtio'/><hub type='usb'/>"
    + "<graphics type='vnc'/><video><model type='virtio'/></video><sound model='ich9'><codec type='duplex'/></sound><sound model='usb'/>"
    + "<redirdev bus='usb' type='tcp'><source mode='bind' host='127.0.0.1' service='4001'/></redirdev>"
    + "<watchdog model='i6300esb'/><watchdog model='itco'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
    + "<memballoon model='virtio'/><panic model='isa'/>"
    + "<iommu model='intel'/>"
)
OLD = (
    disk("a.qcow2", "hda", "ide")
    + disk("one.iso", "hdc", "ide", "cdrom")
    + disk("f.img", "fda", "fdc", "floppy")
    + "<controller type='usb' model='piix3-uhci'/><interface type='user'><model type='rtl8139'/></interface>"
    + "<serial type='file'><source path='/tmp/serial'/></serial><sound model='es1370'/><video><model type='cirrus'/></video>"
    + "<graphics type='vnc'/><memballoon model='none'/><watchdog model='ib700'/>"
)
PAST = (
    "<qemu:commandline>"
    + "".join(
        f"<qemu:arg value='{word}'/>"
        for word in (
            *("-drive", f"file={FOLDER}/c.raw,format=raw,if=none,id=mine", "-device", "virtio-blk-pci,drive=mine,addr=0x1d"),
            *("-netdev", "user,id=mynet", "-device", "e1000e,netdev=mynet,id=mycard,addr=0x1e"),
        )
    )
    + "</qemu:commandline>"
)
PC = "<os><type arch='x86_64' machine='{}'>hvm</type></os>"
NVRAM = (
    "<os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
    f"<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{FOLDER}/vars.fd</nvram></os>"
)


def definition(devices: str, machine: str = PC.format("q35"), more: str = "") -> str:
    """A definition that libvirt takes."""
    features = "" if "'pc'" in machine else "<ioapic driver='qemu'/><vmcoreinfo state='on'/>"
    return (
        f"<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{NAME}</name><uuid>{UUID}</uuid>"
        "<memory unit='MiB'>64</memory><vcpu placement='static' current='1'>2</vcpu>"
        f"<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>{machine}"
        f"<features><acpi/><apic/>{features}</features>"
        f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices>{more}</domain>"
    )


def ask(command: str, **arguments: object) -> tuple[str, ...]:
    """A change by the monitor, without libvirt."""
    return ("qemu-monitor-command", UUID, json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})}))


def attach(xml: str) -> tuple[str, ...]:
    """A device that libvirt plugs in."""
    return ("attach-device", UUID, "--live", xml)


UNTOUCHED = [word for name in ("vda", "vdb", "sda", "sdb") for word in ("--diskspec", f"{name},snapshot=no")]
SNAPSHOT = {"snapshot-file": f"{FOLDER}/hand.qcow2"}
# For each domain its definition, and the changes: what happens, and the words for virsh. "@top" is the node of the first disk.
DOMAINS = {
    "many": (definition(MANY, NVRAM, "<genid/>"), []),
    "old": (definition(OLD, PC.format("pc")), [("change-media", ("change-media", UUID, "hdc", f"{FOLDER}/two.iso", "--live"))]),
    "past": (definition(SMALL, more=PAST), [("snapshot of its own disk", ask("blockdev-snapshot-sync", device="mine", **SNAPSHOT))]),
    "data": (definition(SMALL.replace("a.qcow2", "e.qcow2")), []),
    # What libvirt itself does.
    "libvirt": (
        definition(SMALL),
        [
            ("attach disk", attach(disk("c.raw", "vdb", "virtio"))),
            ("attach scsi disk", attach(disk("d.raw", "sdc", "scsi"))),
            ("attach card", attach("<interface type='ethernet'><target dev='tap2'/><model type='virtio'/></interface>")),
            ("attach rng", attach("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>")),
            ("detach scsi disk", ("detach-disk", UUID, "sdc", "--live")),
            ("change-media", ("change-media", UUID, "sdb", f"{FOLDER}/two.iso", "--live")),
            ("eject", ("change-media", UUID, "sdb", "--eject", "--live")),
            ("snapshot", ("snapshot-create-as", UUID, "s1", "--disk-only", "--no-metadata", "--diskspec", f"vda,file={FOLDER}/s1.qcow2")),
            ("blockcommit", ("blockcommit", UUID, "vda", "--active", "--pivot", "--wait")),
            ("snapshot", ("snapshot-create-as", UUID, "s2", "--disk-only", "--no-metadata", "--diskspec", f"vda,file={FOLDER}/s2.qcow2")),
            ("blockpull", ("blockpull", UUID, "vda", "--wait")),
            ("blockcopy", ("blockcopy", UUID, "vda", f"{FOLDER}/copy.qcow2", "--wait", "--pivot", "--transient-job")),
            ("setvcpus", ("setvcpus", UUID, "2", "--live")),
            ("blkdeviotune", ("blkdeviotune", UUID, "vda", "--total-iops-sec", "100", "--live")),
            ("saved", ("snapshot-create-as", UUID, "s3", "--no-metadata", "--memspec", f"{FOLDER}/state,snapshot=external", *UNTOUCHED)),
            ("managedsave", ("managedsave", UUID)),
            ("start", ("start", UUID)),
        ],
    ),
    # What goes past it.
    "snapshot": (
        definition(SMALL),
        [("snapshot", ask("blockdev-snapshot-sync", **{"node-name": "@top", "snapshot-node-name": "mine", **SNAPSHOT}))],
    ),
    "commit": (
        definition(SMALL),
        [
            ("commit", ask("block-commit", **{"job-id": "j", "device": "@top"})),
            ("pivot", ask("block-job-complete", device="j")),
        ],
    ),
    "nameless": (definition(SMALL), [("device_add", ask("device_add", driver="virtio-rng-pci", bus="pci.8"))]),
    "device": (definition(SMALL), [("device_add", ask("device_add", driver="usb-kbd", id="mine"))]),
    "card": (
        definition(SMALL),
        [
            ("netdev_add", ask("netdev_add", type="user", id="n")),
            ("device_add", ask("device_add", driver="virtio-net-pci", netdev="n", id="net7", bus="pci.8")),
        ],
    ),
    "disk": (
        definition(SMALL),
        [
            ("blockdev-add", ask("blockdev-add", **{"driver": "file", "filename": f"{FOLDER}/c.raw", "node-name": "mine"})),
            ("device_add", ask("device_add", driver="scsi-hd", drive="mine", id="extra", bus="scsi0.0")),
        ],
    ),
    "medium": (
        definition(SMALL),
        [
            ("change", ask("blockdev-change-medium", id="sata0-0-1", filename=f"{FOLDER}/two.iso")),
            ("eject", ask("eject", id="sata0-0-1", force=True)),
            ("back", ask("blockdev-change-medium", id="sata0-0-1", filename=f"{FOLDER}/one.iso")),
        ],
    ),
    "gone": (
        definition(SMALL),
        [
            ("device_del", ask("device_del", id="scsi0-0-0-0")),
            ("blockdev-add", ask("blockdev-add", **{"driver": "file", "filename": f"{FOLDER}/c.raw", "node-name": "mine"})),
            ("device_add", ask("device_add", driver="scsi-hd", drive="mine", id="scsi0-0-0-0", bus="scsi0.0")),
        ],
    ),
    "mirror": (
        definition(SMALL),
        [
            (
                "mirror",
                ask(
                    "drive-mirror", **{"job-id": "j", "device": "@top", "target": f"{FOLDER}/copy.qcow2", "sync": "full", "format": "qcow2"}
                ),
            ),
            ("pivot", ask("block-job-complete", device="j")),
        ],
    ),
    "stream": (definition(SMALL), [("stream", ask("block-stream", **{"job-id": "j", "device": "@top"}))]),
}
ROOT_PORT = "pcie-root-port"
INSERTED = ("file", "ro", "node-name")


def image(found: dict) -> dict:
    """The names of a chain of images."""
    return {"filename": found["filename"], **({"backing-image": image(found["backing-image"])} if "backing-image" in found else {})}


def block(entry: dict) -> dict:
    """An entry of query-block without what no test needs."""
    found = {key: entry[key] for key in ("device", "qdev") if key in entry}
    if "inserted" in entry:
        inserted = entry["inserted"]
        found["inserted"] = {**{key: inserted[key] for key in INSERTED}, "image": image(inserted["image"])}
    return found


def short(xml: str) -> str:
    """The definition without what no test needs."""
    xml = re.sub(r"\s*<(address|clock|mac|target chassis|model name='pcie-root-port')\b[^>]*/>", "", xml)
    cut = "cpu|clock|firmware|features|memory|currentMemory|name|on_\\w+|pm|resource|memoryBacking|seclabel|uuid"
    xml = re.sub(rf"\s*<({cut})\b.*?</\1>", "", xml, flags=re.DOTALL)
    xml = re.sub(r"\s*<controller type='pci' index='\d+' model='pcie-root-port'>.*?</controller>", "", xml, flags=re.DOTALL)
    xml = re.sub(r"^(<domain type='qemu') id='\d+'", r"\1", xml)
    return re.sub(r">\s+<", "><", xml).strip()


def virsh(*words: str) -> str:
    """What virsh prints; "@top" is the node of the first disk."""
    if any("@top" in word for word in words):
        index = re.search(r"<source file='[^']*' index='(\d+)'/>", virsh("dumpxml", UUID))
        words = tuple(word.replace("@top", f"libvirt-{index[1] if index else 0}-format") for word in words)
    done = subprocess.run(("virsh", "-q", "-c", "qemu:///system", *words), capture_output=True, text=True, check=False)
    if done.returncode or '"error"' in done.stdout:
        raise RuntimeError(f"{words}: {done.stderr} {done.stdout}")
    return done.stdout


def look() -> dict:
    """What a survey asks of one domain, and the process's command line."""
    record: dict = {"name": NAME, "uuid": UUID}
    _survey.survey([record], lambda _name: False)
    seen = record["seen"]
    assert not seen["problem"], seen
    seen["blocks"] = [block(entry) for entry in seen["blocks"]]
    pid = int(Path(f"/run/libvirt/qemu/{NAME}.pid").read_text(encoding="ascii"))
    argv = _processes.argv_of(pid)
    kept = ("-device", "-blockdev", "-drive", "-machine")
    pairs = [(word, value) for word, value in itertools.pairwise(argv) if word in kept and ROOT_PORT not in value]
    words = [re.sub(r',"(mac|bus|addr|bootindex)":("[^"]*"|\d+)', "", part) for pair in pairs for part in pair]
    seen["devices"] = sorted((entry for entry in seen["devices"] if ROOT_PORT not in entry["type"]), key=lambda entry: entry["name"])
    return {"xml": short(seen["xml"]), "argv": words, **{key: seen[key] for key in ("blocks", "devices", "nameless")}}


def record(xml: str, changes: list) -> list:
    """One domain after its start, and after each change."""
    subprocess.run(("sh", "-c", f"rm -rf {FOLDER}; mkdir -p {FOLDER}/dir; cd {FOLDER}; {MADE}"), check=True)
    path = Path("/tmp/definition.xml")
    path.write_text(xml, encoding="utf-8")
    virsh("define", str(path))
    virsh("start", UUID)
    try:
        found = [["start", look()]]
        for name, words in changes:
            if words[0] == "attach-device":
                path.write_text(words[3], encoding="utf-8")
                words = ("attach-device", UUID, str(path), "--live")
            virsh(*words)
            time.sleep(1)
            image = {"saved": f"{FOLDER}/state", "managedsave": f"/var/lib/libvirt/qemu/save/{NAME}.save"}.get(name)
            found.append([name, {"saved": short(virsh("save-image-dumpxml", image))} if image else look()])
    finally:
        subprocess.run(("virsh", "-q", "-c", "qemu:///system", "destroy", UUID), check=False)
        subprocess.run(("virsh", "-q", "-c", "qemu:///system", "undefine", UUID, "--nvram", "--managed-save"), check=False)
    return found


def without_repetitions(domains: dict[str, list]) -> dict[str, list]:
    """The steps, each only with what differs from the one before; the first step of a domain from that of the domain before."""
    found: dict[str, list] = {}
    first: dict = {}
    for domain, steps in domains.items():
        known, found[domain] = dict(first), []
        for name, answers in steps:
            found[domain].append([name, {key: value for key, value in answers.items() if known.get(key) != value}])
            known.update(answers)
        first.update(steps[0][1])
    return found


def main() -> None:
    """Record all of them."""
    recorded = {}
    version = re.findall(r"(\d+\.\d+)\.\d+", virsh("version"))
    wanted = sys.argv[1:] or list(DOMAINS)
    for name, (xml, changes) in ((name, DOMAINS[name]) for name in wanted):
        try:
            recorded[name] = record(xml.replace("<watchdog model='itco'/>", "") if version[1] == "9.0" else xml, changes)
        except RuntimeError as err:
            print(name, err)
    folder = Path(os.environ.get("FIXTURES", str(Path(__file__).with_name("fixtures"))))
    steps = [[domain, *step] for domain, found in without_repetitions(recorded).items() for step in found]
    rows = ",\n".join(json.dumps(step, separators=(",", ":")) for step in steps)
    folder.joinpath(f"answers-{version[1]}.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
