# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _links, _processes, _slow_paths
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import (
    _batch,
    _guests,
    _ram,
    _reasons,
    _save,
    _save_image,
    _setup,
    _virsh,
)

SIZE = 128 << 20
PATH = "/run/kvm-liveupdate-ram/libvirt/qemu/1-app/pc.ram"
GOOD = {"qom-type": "memory-backend-file", "id": "pc.ram", "mem-path": PATH, "share": True, "size": SIZE}


def argv(*objects: dict) -> list[str]:
    words = ["/usr/bin/qemu-system-x86_64", "-object", "rng-random,id=r"]
    for one in objects:
        words += ["-object", json.dumps(one)]
    return words


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({}, PATH),
        ({"share": False}, ""),
        ({"discard-data": True}, ""),
        ({"qom-type": "memory-backend-memfd", "mem-path": ""}, ""),
        ({"mem-path": "/dev/hugepages/libvirt/qemu/1-app"}, ""),
        ({"mem-path": "/mnt/hugepages-1G/libvirt/qemu/1-app"}, ""),
    ],
)
def test_only_a_shared_file_that_stays_is_ram_to_keep(change, path):
    (found,) = _guests.memory_backends(argv({**GOOD, **change}))
    assert (found["id"], found["size"], found["path"]) == ("pc.ram", SIZE, path)


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (f"memory-backend-file,id=pc.ram,mem-path={PATH},share=yes,size={SIZE}", PATH),
        (f"memory-backend-file,id=pc.ram,mem-path={PATH},share=on,size=128M", PATH),
        (f"qom-type=memory-backend-file,id=pc.ram,mem-path={PATH},share,discard-data=on,size={SIZE}", ""),
        (f"{{'qom-type': 'memory-backend-file', 'id': 'pc.ram', 'mem-path': '{PATH}', 'share': true, 'size': {SIZE}}}", PATH),
    ],
)
def test_ram_is_found_in_each_of_qemus_dialects(words, path):
    (found,) = _guests.memory_backends(["qemu", "-object", words])
    assert found == {"kind": "memory-backend-file", "id": "pc.ram", "size": SIZE, "path": path}


@pytest.mark.parametrize(
    ("size", "count"), [("4096", 4096), ("4096B", 4096), ("4k", 4096), ("3M", 3 << 20), ("2G", 2 << 30), ("1t", 1 << 40)]
)
def test_the_size_of_ram_is_read_as_qemu_reads_it(size, count):
    """By its size, the RAM of one node is told from that of another."""
    (found,) = _guests.memory_backends(["qemu", "-object", f"memory-backend-file,id=pc.ram,mem-path={PATH},share=on,size={size}"])
    assert found["size"] == count


def test_a_node_whose_ram_cannot_be_read_is_not_left_out():
    """The guest would come back without it."""
    with pytest.raises(ValueError, match="broken"):
        _guests.memory_backends([*argv(GOOD), "-object", "{broken"])


def test_no_file_is_opened_for_the_ram_of_a_command_line(tmp_path):
    """A QEMU that was broken into can change it."""
    (tmp_path / "more").write_text(f'[object "pc.ram"]\n qom-type = "memory-backend-file"\n mem-path = "{PATH}"\n size = "1"\n')
    assert _guests.memory_backends([*argv(), "-readconfig", str(tmp_path / "more")]) == []


def test_each_node_has_its_own_file():
    found = _guests.memory_backends(argv({**GOOD, "id": "ram-node0"}, {**GOOD, "id": "ram-node1"}))
    assert [backend["id"] for backend in found] == ["ram-node0", "ram-node1"]


@pytest.fixture(name="record")
def domain_that_can_be_preserved(libvirt, monkeypatch):
    monkeypatch.setattr(_guests, "confinement", lambda _pid: "")
    fd = os.memfd_create("ram")
    record = libvirt.add("app", 1, dumpxml="<domain><genid>g1</genid></domain>")
    yield {**record, "backends": _guests.memory_backends(argv(GOOD)), "ram": [{"fd": fd, "size": SIZE}]}
    os.close(fd)


def codes(reasons):
    return [reason["code"] for reason in reasons]


def test_a_domain_that_can_be_preserved_is_read_once(libvirt, record):
    assert _guests.inspect(record) == []
    assert codes(_guests.warn(record)) == ["genid"]
    assert libvirt.processes() == 1
    json.dumps(record)


@pytest.mark.parametrize(
    ("what", "said", "code", "message"),
    [
        ("dumpxml", "<domain><devices><hostdev type='pci'/></devices></domain>", "hostdev", "<hostdev type='pci'>"),
        ("domstate", "crashed\n", "run-state", "crashed"),
        ("query-status", '{"return": {"status": "postmigrate"}}', "run-state", "postmigrate"),
        ("query-status", '{"error": {"desc": "no such thing"}}', "monitor", "no such thing"),
        ("query-migrate", '{"return": {"blocked-reasons": ["invtsc"]}}', "qemu-blocker", "invtsc"),
        ("query-block-jobs", '{"return": [{"device": "vda"}]}', "block-job", "block job"),
        ("dumpxml", "error: no such thing\n", "monitor", "no such thing"),
        ("domjobinfo", "error: no such thing\n", "monitor", "no such thing"),
        ("query-migrate", "error: no such thing\n", "monitor", "no such thing"),
        ("query-migrate", '{"error": {"desc": "no such thing"}}', "monitor", "no such thing"),
        ("query-block", json.dumps({"return": [{"inserted": {"file": "/srv/hand.qcow2"}}]}), "disk-changed", "/srv/hand.qcow2"),
        ("query-block", '{"error": {"desc": "no such thing"}}', "monitor", "no such thing"),
        ("qom-list/peripheral", '{"return": [{"name": "k", "type": "child<usb-kbd>"}]}', "device-changed", "k (usb-kbd)"),
        ("qom-list/peripheral-anon", '{"return": [{"name": "k", "type": "child<usb-kbd>"}]}', "device-changed", "usb-kbd"),
    ],
)
def test_what_libvirt_and_qemu_say_is_a_reason(libvirt, record, what, said, code, message):
    libvirt.domains[0]["says"][what] = said
    libvirt.keep()
    (reason,) = _guests.inspect(record)
    assert reason["code"] == code and message in reason["message"] and reason["remedy"]
    if "postmigrate" in message:  # a pause alone does not leave that state
        uuid = record["uuid"]
        assert reason["remedy"] == f"if it runs on no other host, run 'virsh resume {uuid}' and then 'virsh suspend {uuid}'"


@pytest.mark.parametrize(
    ("text", "refused"), [("", False), ('snapshot_image_format = "raw"', False), ('snapshot_image_format = "lzop"', True)]
)
def test_a_state_that_libvirt_would_compress_is_a_reason_before_any_guest_is_paused(tmp_path, monkeypatch, record, text, refused):
    monkeypatch.setattr(_ram, "_CONFIGURATION", str(tmp_path / "qemu.conf"))
    (tmp_path / "qemu.conf").write_text(text)
    found = _guests.inspect(record)
    assert codes(found) == ["snapshot-format"] * refused
    assert not refused or "the format lzop (snapshot_image_format in qemu.conf)" in found[0]["message"]


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        ('{"return": false}', "", ""),
        ('{"return": true}', "device-changed", "added without libvirt: input0 (usb-tablet)"),
        (
            '{"error": {"desc": "no such thing"}}',
            "monitor",
            "QEMU does not tell whether input0 was plugged in after its start: no such thing",
        ),
        ("error: no answer\n", "monitor", "no answer"),
        ("", "monitor", "input0"),
    ],
)
def test_qemu_is_asked_whether_a_device_that_libvirt_does_not_list_is_that_of_the_start(libvirt, record, monkeypatch, said, code, message):
    monkeypatch.setattr(_processes, "argv_of", lambda _pid: ["qemu", "-device", '{"driver":"usb-tablet","id":"input0"}'])
    says = libvirt.domains[0]["says"]
    says["qom-list/peripheral"] = '{"return": [{"name": "input0", "type": "child<usb-tablet>"}]}'
    says["qom-get/peripheral/input0"] = said
    libvirt.keep()
    found = _guests.inspect(record)
    assert codes(found) == [code] * bool(code) and all(message in reason["message"] for reason in found)


def test_a_peer_on_another_host_is_a_warning(libvirt, record):
    """The connection ends at the jump."""
    peer = "<serial type='tcp'><source mode='connect' host='192.0.2.9' service='4000'/></serial>"
    libvirt.domains[0]["says"]["dumpxml"] = f"<domain><devices>{peer}</devices></domain>"
    libvirt.keep()
    (warning,) = _guests.warn(record)
    assert warning["code"] == "peer-remote" and "192.0.2.9:4000" in warning["message"]


def test_a_domain_whose_qemu_leaves_out_its_ram_is_told(libvirt, record):
    libvirt.domains[0]["says"]["query-migrate-capabilities"] = '{"return": [{"capability": "x-ignore-shared", "state": true}]}'
    libvirt.keep()
    (found,) = _guests.inspect(record)
    assert found["code"] == "ignore-shared" and "virsh qemu-monitor-command" in found["remedy"] and "x-ignore-shared" in found["message"]


def test_a_domain_without_definition_is_refused(libvirt, record):
    (libvirt.folder / "etc" / "app.xml").unlink()
    (reason,) = _guests.inspect(record)
    assert reason["code"] == "not-persistent" and f"virsh define {record['uuid']}.xml" in reason["remedy"]


def test_a_job_is_the_reason_while_it_lasts(libvirt, record):
    libvirt.domains[0]["says"]["domjobinfo"] = "Job type:         Unbounded\nOperation:        Save\n"
    libvirt.keep()
    assert codes(_guests.inspect(record)) == ["libvirt-job"]


def test_a_domain_whose_definition_cannot_be_read_has_no_warnings(libvirt, record):
    libvirt.domains[0]["says"]["dumpxml"] = "error: no such thing"
    libvirt.keep()
    assert _guests.warn(record) == []


def test_a_disk_by_a_name_that_a_boot_may_change_is_a_warning(libvirt, record):
    disk = "<disk type='block' device='disk'><source dev='{}'/><target dev='vda'/></disk>"
    disks = [disk.format(path) for path in ("/dev/sdb", "/dev/disk/by-id/x", "/dev/mapper/vg-lv")]
    libvirt.domains[0]["says"]["dumpxml"] = f"<domain><devices>{''.join(disks)}</devices></domain>"
    libvirt.keep()
    assert [why["message"].split()[2] for why in _guests.warn(record) if why["code"] == "device-name"] == ["/dev/sdb"]


def test_programs_that_libvirt_runs_again_for_a_domain_are_a_warning_that_names_them(libvirt, record, monkeypatch, tmp_path):
    hooks = tmp_path / "hooks"
    monkeypatch.setattr(_virsh, "HOOKS", str(hooks))
    monkeypatch.setattr(_virsh, "HOOK", f"{hooks}/qemu.d/kvm-liveupdate")
    assert codes(_guests.warn(record)) == ["genid"]
    (hooks / "qemu.d").mkdir(parents=True)
    for name in ("qemu", "qemu.d/10-disks", "qemu.d/kvm-liveupdate", "network", "qemu.d/README"):
        (hooks / name).touch()
        (hooks / name).chmod(0o644 if "README" in name else 0o755)
    (_genid, warning) = _guests.warn(record)
    assert warning["code"] == "start-runs-again"
    assert f"libvirt runs {hooks}/qemu, {hooks}/qemu.d/10-disks again" in warning["message"]


def test_what_is_given_to_qemu_past_libvirt_has_the_warnings_of_a_unit(libvirt, record):
    args = "".join(f"<qemu:arg value='{word}'/>" for word in ("-netdev", "user,id=n", "-cpu", "host", "-drive", "file=/dev/sdb"))
    space = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
    libvirt.domains[0]["says"]["dumpxml"] = f"<domain {space}><qemu:commandline>{args}</qemu:commandline></domain>"
    libvirt.keep()
    assert codes(_guests.warn(record)) == ["cpu-host", "user-network", "device-name"]


INTERFACES = """<domain><devices>
<interface type='bridge'><source bridge='br0'/><target dev='vnet0'/></interface>
<interface type='bridge'><source bridge='ovs0'/><virtualport type='openvswitch'/></interface>
<interface type='direct'><source dev='vlan7' mode='bridge'/><target dev='macvtap0'/></interface>
<interface type='ethernet'><target dev='tap1' managed='no'/></interface>
<interface type='ethernet'><target dev='tap2'/></interface>
<interface type='network'><source network='n' bridge='virbr0'/></interface>
<interface type='user'/>
</devices></domain>"""


def test_a_network_that_nothing_sets_up_is_a_warning(libvirt, record, monkeypatch):
    asked = []
    monkeypatch.setattr(_links, "by_hand", lambda names, _root: asked.append(names) or ["br0"])
    libvirt.domains[0]["says"]["dumpxml"] = INTERFACES
    libvirt.keep()
    by_hand = [warning for warning in _guests.warn(record) if warning["code"] == "network-by-hand"]
    assert asked == [["br0", "vlan7", "tap1", "virbr0"]]
    assert len(by_hand) == 1 and "<interface type='bridge'> uses the network interface br0" in by_hand[0]["message"]


def test_a_domain_is_asked_for_by_what_cannot_be_mistaken(libvirt):
    one = libvirt.add("1", 7)
    assert _virsh.uuid_of("1") == one["uuid"]
    (libvirt.folder / "etc" / "1.xml").unlink()
    for name in ("1", "+1", " 01", "x" * 36):
        with pytest.raises(LiveUpdateError, match="does not exist"):
            _virsh.uuid_of(name)
    assert _virsh.uuid_of("app") == "app"


def test_the_uuid_of_a_running_domain_is_libvirts_and_not_what_its_qemu_says(libvirt):
    """A QEMU that was broken into can change its own command line."""
    run = libvirt.folder / "run"
    with subprocess.Popen(["sleep", "60"], executable=shutil.which("sleep")) as process:
        (run / "app.pid").write_text(str(process.pid))
        status = "<domstatus>\n<domain type='kvm' id='1'>\n  <name>app</name>\n  <uuid>aaaaaaaa-1111-4111-8111-111111111111</uuid>\n"
        (run / "app.xml").write_text(status + "<description>&lt;uuid></description><metadata><uuid>no</uuid></metadata>")
        found = _guests.known()
        process.kill()
    assert found == []  # no QEMU
    code = "print('ready', flush=True); input()"
    words = [sys.executable, "-IS", "-c", code, "-uuid", "bbbbbbbb-1111-4111-8111-111111111111"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (run / "app.pid").write_text(str(process.pid))
        (found,) = _guests.known()
        process.kill()
    assert found["uuid"] == "aaaaaaaa-1111-4111-8111-111111111111"


UUID = ("-uuid", "bbbbbbbb-1111-4111-8111-111111111111")


@pytest.mark.parametrize(
    "words",
    [
        ["-object", '{"memory-backend-'],
        ["-object", '{"qom-type": "memory-backend-file"}'],
        ["-object", '{"qom-type": "memory-backend-file", "id": "r", "size": "much"}'],
        ["-object", '{"qom-type": "memory-backend-file", "id": "r", "size": 1, "share": true, "mem-path": 7}'],
        ["-uuid"],
    ],
)
def test_a_qemu_that_changes_its_own_command_line_hides_no_other_guest(libvirt, words):
    run = libvirt.folder / "run"
    (run / "app.xml").write_text("<name>app</name><uuid>aaaaaaaa-1111-4111-8111-111111111111</uuid>")
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", "print('ready', flush=True); input()", *UUID, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        (run / "app.pid").write_text(str(process.pid))
        (found,) = _guests.known()
        process.kill()
    assert found["name"] == "app" and found["ram"] == []
    assert _reasons.memory_reasons(found["backends"], bool(found["ram"]))[0]["code"].startswith("ram-")


def test_a_qemu_whose_name_is_cut_inside_a_letter_is_known(libvirt):
    """The kernel keeps 15 bytes of the name of a process (-name process=)."""
    (libvirt.folder / "run/app.xml").write_text("<name>app</name><uuid>aaaaaaaa-1111-4111-8111-111111111111</uuid>")
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'qemu-b\\xc3', 0, 0, 0); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-IS", "-c", code, *UUID], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (libvirt.folder / "run/app.pid").write_text(str(process.pid))
        (found,) = _guests.known()
        process.kill()
    assert found["name"] == "app"


@contextlib.contextmanager
def process_of(code, *words):
    """A process that has run this, and lives as long as the test looks at it: its ID."""
    code = f"import mmap, os, sys\n{code}\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-IS", "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process.pid


def maps(*files, length=0, flags="SHARED"):
    """Open these files and map them."""
    opened = f"fds = [os.open(path, os.O_RDWR) for path in {[str(file) for file in files]}]"
    return f"{opened}\nmaps = [mmap.mmap(fd, {length} or os.fstat(fd).st_size, mmap.MAP_{flags}) for fd in fds]"


@pytest.fixture(name="ended")
def process_that_has_ended():
    with subprocess.Popen([sys.executable, "-IS", "-c", ""]) as process:
        pass
    return process.pid


def test_a_running_qemu_is_known_with_its_ram_and_its_user(libvirt, tmp_path, monkeypatch):
    """Whoever it runs as now (proc(5), status): the stand-in for it must open the same files, and no others."""
    (tmp_path / "pc.ram").write_bytes(bytes(4096))
    ram = {**GOOD, "mem-path": str(tmp_path / "pc.ram"), "size": 4096}
    status = "Name:\tqemu\nUid:\t1\t64055\t3\t4\nGid:\t5\t108\t7\t8\n"
    real = open
    monkeypatch.setattr(
        _guests, "open", lambda path, **words: io.StringIO(status) if "/status" in path else real(path, **words), raising=False
    )
    with process_of(maps(tmp_path / "pc.ram"), *UUID, *argv(ram)[1:]) as pid:
        (libvirt.folder / "run/app.pid").write_text(f"{pid}\n")
        (found,) = _guests.known()
        assert os.path.samefile(f"/proc/{pid}/fd/{found['ram'][0]['fd']}", tmp_path / "pc.ram")
    assert [ram["size"] for ram in found["ram"]] == [4096] and (found["uid"], found["gid"]) == (64055, 108)
    assert found["uuid"] == UUID[1]  # libvirt has written no status yet


@pytest.mark.parametrize("text", ["", "soon\n", None])
def test_a_domain_that_has_just_ended_hides_no_other_guest(libvirt, ended, text):
    (libvirt.folder / "run/aaa.pid").write_text(str(ended) if text is None else text)
    with process_of("", *UUID) as pid:
        (libvirt.folder / "run/app.pid").write_text(str(pid))
        assert [found["name"] for found in _guests.known()] == ["app"]


def test_a_qemu_without_a_uuid_is_no_domain(libvirt):
    """Nothing could be asked about it."""
    with process_of("", "-uuid") as pid:
        (libvirt.folder / "run/app.pid").write_text(str(pid))
        assert _guests.known() == []


def test_a_command_line_that_cannot_be_read_tells_no_size(libvirt):
    with process_of("", *UUID, "-object", "{broken") as pid:
        (libvirt.folder / "run/app.pid").write_text(str(pid))
        (found,) = _guests.known()
    assert [reason["code"] for reason in _reasons.memory_reasons(found["backends"], bool(found["ram"]))] == ["ram-backend"]
    assert _guests.describe(found)["memory_mib"] is None


@pytest.mark.parametrize(("sizes", "opened"), [((4096, 4096), (0, 1)), ((4096, 8192), (1, 0))])
def test_ram_without_names_is_found_node_by_node(tmp_path, sizes, opened):
    """An update that was undone has removed the names. A node that got the RAM of another one would be corrupt after the jump."""
    files = [tmp_path / f"ram-node{number}" for number in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(bytes(size))
    inodes = [os.stat(file).st_ino for file in files]
    with process_of(maps(*(files[number] for number in opened))) as pid:
        for file in files:
            file.unlink()
        found = _guests._ram_files(pid, [{"size": size, "path": str(file)} for file, size in zip(files, sizes, strict=True)])
        assert [os.stat(f"/proc/{pid}/fd/{ram['fd']}").st_ino for ram in found] == inodes


@pytest.mark.parametrize(
    ("how", "size"),
    [
        ({"flags": "PRIVATE"}, 8192),  # the guest's writes are not in it
        ({"length": 4096}, 8192),
        ({}, 4096),
    ],
)
def test_a_file_that_does_not_hold_the_whole_ram_is_not_taken_for_it(tmp_path, how, size):
    (tmp_path / "file").write_bytes(bytes(8192))
    with process_of(maps(tmp_path / "file", **how)) as pid:
        assert _guests._ram_files(pid, [{"size": size, "path": str(tmp_path / "file")}]) == []


def test_a_descriptor_that_qemu_closes_meanwhile_does_not_hide_its_ram(tmp_path, monkeypatch):
    ram = tmp_path / "pc.ram"
    ram.write_bytes(bytes(4096))
    with process_of(f"spare = os.open('/dev/null', 0)\n{maps(ram)}\nos.close(spare)") as pid:
        links = _processes.fd_links(pid)
        closed = next(number for number in range(100) if number not in links)
        monkeypatch.setattr(_processes, "fd_links", lambda _pid: {**links, closed: str(ram)})
        (found,) = _guests._ram_files(pid, [{"size": 4096, "path": str(ram)}])
        assert closed < found["fd"] and os.path.samefile(f"/proc/{pid}/fd/{found['fd']}", ram)


def test_of_a_qemu_that_has_ended_nothing_is_found(ended):
    assert _guests._ram_files(ended, [{"size": 4096, "path": PATH}]) == []
    assert _guests.confinement(ended) == ""


@pytest.mark.parametrize("said", ["libvirt-6c6ef1d4 (enforce)\n", "system_u:system_r:svirt_t:s0:c1,c2\0"])
def test_the_confinement_of_a_qemu_is_read_from_its_process(monkeypatch, said):
    monkeypatch.setattr(_guests, "open", lambda path, **_words: {"/proc/7/attr/current": io.StringIO(said)}[path], raising=False)
    assert _guests.confinement(7) == said[:-1]


@pytest.mark.parametrize("ruled", [True, False])
def test_a_confined_domain_is_refused_until_its_rule_is_there(libvirt, record, monkeypatch, tmp_path, ruled):
    monkeypatch.setattr(_guests, "confinement", lambda _pid: "libvirt-6c6ef1d4 (enforce)")
    monkeypatch.setattr(_setup, "APPARMOR_RULE", str(tmp_path / "rule"))
    if ruled:
        (tmp_path / "rule").touch()
    assert codes(_guests.inspect(record)) == ([] if ruled else ["confined"])


def test_ram_on_a_disk_is_refused(libvirt, record, monkeypatch):
    """The kernel preserves files of a tmpfs, which has no device: its major number is 0."""
    device = os.fstat(record["ram"][0]["fd"]).st_dev
    monkeypatch.setattr(os, "major", lambda number: 8 if number == device else 0)
    (reason,) = _guests.inspect(record)
    assert reason["code"] == "ram-on-disk" and "on a disk" in reason["message"] and "kvm.liveupdate.setup" in reason["remedy"]


@pytest.mark.parametrize("said", ["pool/web1\n", None])
def test_a_volume_that_is_no_file_or_that_nobody_tells_of_is_not_looked_for(libvirt, monkeypatch, tmp_path, said):
    """Such as an image in a Ceph pool; or where virsh is gone, which is a reason by itself."""
    if said is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        libvirt.says["vol-path --pool ceph -- web1"] = said
        libvirt.keep()
    assert _guests._volumes([{"pool": "ceph", "volume": "web1", "file": {"what": "disk vda", "open": True}}]) == []


MAPPER = """
import mmap, os, sys
files = [os.open(path, os.O_RDWR) for path in sys.argv[1:]]
maps = [mmap.mmap(fd, 4096) for fd in files[:-1]]
print(flush=True)
sys.stdin.read()
"""


def test_the_ram_files_of_a_domain_are_found_and_nothing_else_is_looked_at(tmp_path, monkeypatch):
    """A disk may be on a storage that does not answer; and root looks at no path that only QEMU names."""
    monkeypatch.setattr(_ram, "directory", lambda: str(tmp_path))
    folder = tmp_path / "libvirt" / "qemu" / "1-app"
    folder.mkdir(parents=True)
    files = [folder / "node1", folder / "node0", tmp_path / "disk"]
    for file in files:
        file.write_bytes(bytes(4096))
    looked, plain = [], os.stat

    def look(path, *words, **keys):
        looked.append(os.readlink(path) if str(path).startswith("/proc/") else str(path))
        return plain(path, *words, **keys)

    with subprocess.Popen([sys.executable, "-c", MAPPER, *files], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        links = sorted(_processes.fd_links(process.pid).items(), reverse=True)
        numbers = {os.path.basename(link): fd for fd, link in links}
        monkeypatch.setattr(os, "stat", look)
        backends = [{"size": 4096, "path": str(folder / name)} for name in ("node0", "node1")]
        found = _guests._ram_files(process.pid, backends)
        elsewhere = _guests._ram_files(process.pid, [{"size": 4096, "path": str(tmp_path / "disk")}])
        process.stdin.close()
    assert [file["fd"] for file in found] == [numbers["node0"], numbers["node1"]]
    assert len(elsewhere) == 1  # its place is a reason of its own
    assert str(tmp_path / "disk") not in looked


def test_of_a_command_line_from_proc_no_file_is_opened(libvirt, record, monkeypatch, tmp_path):
    """A QEMU that was broken into can change it."""
    (tmp_path / "file").touch()
    opened, plain = [], _files.open_ordinary
    monkeypatch.setattr(_files, "open_ordinary", lambda path: opened.append(path) or plain(path))
    monkeypatch.setattr(_processes, "argv_of", lambda _pid: ["qemu", "-readconfig", str(tmp_path / "file")])
    monkeypatch.setattr(_slow_paths, "look", lambda work: work(lambda _path: None))
    _guests.inspect(record)
    assert opened == []


@pytest.fixture(name="saved")
def domain_to_save(tmp_path, monkeypatch, libvirt, record):
    """A held domain; libvirt's snapshot of it is "image", in a folder of root's.

    Beside it there is one with an id that is the name of the first.
    """
    libvirt.domains[0]["says"]["dumpxml"] = (
        "<domain><devices><disk><target dev='vda'/></disk><disk><target dev='sda'/></disk></devices></domain>"
    )
    libvirt.add("other", "app")
    made = tmp_path / "app.save"
    (tmp_path / "app.image").write_bytes(b"image")
    monkeypatch.setattr(_virsh, "SAVED", str(tmp_path))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_save_image, "loadable", lambda image, running: image + bytes([running]))
    _files.write_json(str(tmp_path / "app.held"), {"hold": "h"})
    record.update(provider="libvirt", uid=64055, gid=64055)
    return made


def state_is(libvirt, state):
    libvirt.domains[0]["says"]["domstate"] = f"{state}\n"
    libvirt.keep()


def goes_on(libvirt, monkeypatch, refused=0):
    """From now on a domain runs once it was told to, and that was not ``refused`` so often. What it was told, and when, is returned."""
    told, real = [], _virsh.virsh

    def virsh(*words, limit=60.0):
        told.append((words[0], libvirt.clock.now, limit))
        if words[0] == "resume":
            if [verb for verb, *_when in told].count("resume") <= refused:
                raise LiveUpdateError("virsh resume: cannot acquire state change lock")
            state_is(libvirt, "running")
        return real(*words, limit=limit)

    monkeypatch.setattr(_virsh, "virsh", virsh)
    return told


def test_a_domain_that_libvirt_does_not_let_go_on_at_once_is_told_again(libvirt, saved, record, monkeypatch):
    """Given up, it would stay paused: that is not done before the limit of the undo, 300 s."""
    state_is(libvirt, "paused")
    told = goes_on(libvirt, monkeypatch, refused=7)
    _save.resume(record, running=True)
    resumes = [when for verb, when, _limit in told if verb == "resume"]
    assert resumes == [40.0 * number for number in range(8)]
    assert all(0 < limit <= 60 for _verb, _when, limit in told)
    assert [verb for verb, *_when in told].count("qemu-monitor-command") == 2  # off, and whether it is off in the end


def test_a_domain_that_never_goes_on_is_given_up_at_the_limit(libvirt, saved, record, monkeypatch):
    state_is(libvirt, "paused")
    told = goes_on(libvirt, monkeypatch, refused=99)
    with pytest.raises(LiveUpdateError, match=r"the domain is still paused after 300 s: .*cannot acquire state change lock"):
        _save.resume(record, running=True)
    assert 300 < told[-1][1] < 400


def test_what_libvirt_says_in_the_end_counts_and_no_exit_code(libvirt, saved, record, monkeypatch):
    monkeypatch.setattr(_save, "UNDO_LIMIT_S", -1)
    for check in ("_is_taken", "_is_off"):
        monkeypatch.setattr(_save, check, lambda *_said: True)
    said = ["paused", "running", "running"]  # somebody else let it go on meanwhile
    answers = {"domstate": lambda: said.pop(0), "resume": lambda: 1 / 0}

    def virsh(verb, *_words, limit):
        try:
            return answers.get(verb, str)()
        except ZeroDivisionError:
            raise LiveUpdateError("domain is already running") from None

    monkeypatch.setattr(_virsh, "virsh", virsh)
    _save.resume(record, running=True)
    answers["resume"], said[:] = str, ["paused", "paused"]
    with pytest.raises(LiveUpdateError, match="the domain is still paused after -1 s: no command failed"):
        _save.resume(record, running=True)


def test_a_domain_whose_qemu_has_ended_is_not_waited_for(libvirt, saved, record, tmp_path):
    libvirt.domains[0]["says"]["resume"] = "error: domain is not running"
    state_is(libvirt, "shut off")
    for path in (saved, tmp_path / "app.state"):
        path.touch()
    with pytest.raises(LiveUpdateError, match=r"process .* has ended") as caught:
        _save.resume({**record, "started": record["started"] + 1}, running=True)
    assert caught.value.details == {"ended": True} and not saved.exists() and not libvirt.clock.slept


def test_a_domain_is_saved_without_its_end_and_goes_on_when_that_is_undone(libvirt, saved, record, tmp_path, monkeypatch):
    state = str(tmp_path / "app.state")
    devices, image = {"/dev/sdb": ["wwid a"]}, tmp_path / "app.qcow2"
    image.write_bytes(b"after the pause")
    disks = {str(image): {"size": 1, "inode": os.stat(image).st_ino}}  # of the gate
    journal = _save.save({**record, "devices": devices, "disks": disks}, state, running=True)
    assert journal["devices"] == devices and journal["disks"][str(image)]["size"] == 15
    verbs = ["dumpxml", "qemu-monitor-command", "suspend", "snapshot-create-as"]
    assert libvirt.asked() == [f"{verb} app" for verb in verbs] and libvirt.processes() == 2
    assert saved.read_bytes() == b"image\1"
    assert journal["times"]["paused"] <= journal["times"]["saved"] and journal["image"] == str(saved)
    places = {"directory": os.path.dirname(os.path.dirname(PATH)), "files": ["pc.ram"]}
    assert _files.read_json(state) == {"hold": "h", "devices": devices, "image": str(saved), **places}
    state_is(libvirt, "paused")
    goes_on(libvirt, monkeypatch)
    _save.resume(record, running=True)
    verbs = ["domstate", "domjobabort", "qemu-monitor-command", "resume", "domstate", "qemu-monitor-command", "domstate"]
    assert libvirt.asked()[4:] == [f"{verb} app" for verb in verbs] and not saved.exists()


def test_no_disk_is_part_of_the_snapshot(saved, record, monkeypatch):
    """Libvirt would go on in new files otherwise."""
    asked = []
    real = _batch.ask
    monkeypatch.setattr(_batch, "ask", lambda commands, limit: asked.extend(commands) or real(commands, limit))
    _save.write_image(record, str(saved), running=True)
    disks = ("--diskspec", "vda,snapshot=no", "--diskspec", "sda,snapshot=no")
    words = ("--no-metadata", "--memspec", f"{saved.parent}/app.image,snapshot=external", *disks)
    assert asked[-1] == ("snapshot-create-as", record["uuid"], "kvm-liveupdate", *words)
    assert json.loads(asked[1][2])["arguments"]["capabilities"] == [{"capability": "x-ignore-shared", "state": True}]


@pytest.mark.parametrize(
    ("verb", "said", "last"),
    [
        ("dumpxml", "error: no answer", "qemu-monitor-command app"),
        ("migrate-set-capabilities", "error: no answer", "qemu-monitor-command app"),
        ("migrate-set-capabilities", '{"error": {"desc": "no answer"}}', "qemu-monitor-command app"),
        ("suspend", "error: no answer", "domjobabort app"),
        ("snapshot-create-as", "error: no answer", "domjobabort app"),
    ],
)
def test_a_save_that_fails_says_so(libvirt, saved, record, tmp_path, verb, said, last):
    """A guest whose RAM would be written too, or that would run on, is not suspended, or not taken for saved."""
    libvirt.domains[0]["says"][verb] = said
    libvirt.keep()
    with pytest.raises(LiveUpdateError, match=r"guest app cannot be saved: .*no answer"):
        _save.save(record, str(tmp_path / "app.state"), running=False)
    assert libvirt.asked()[-1] == last
    assert not saved.exists()


def test_a_save_is_on_record_before_the_domain_is_suspended(saved, record, tmp_path, monkeypatch):
    """Were the host to go down in between, libvirt's hook has to keep every start of the domain away."""
    order = []
    (tmp_path / "app.resumed").touch()
    real = _files.write_json
    monkeypatch.setattr(_files, "write_json", lambda path, record: order.append(os.path.basename(path)) or real(path, record))

    def write_image(*_arguments):
        order.append("suspended")
        saved.touch()
        assert not (tmp_path / "app.resumed").exists()  # it would pass this save off as one that has run
        return 0.0

    monkeypatch.setattr(_save, "write_image", write_image)
    _save.save(record, str(tmp_path / "app.state"), running=True)
    assert order == ["app.state", "suspended"]


def test_a_saved_image_is_durable(saved, record, monkeypatch):
    """The jump follows at once."""
    synced, content = [], []

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        content.append((saved.parent / "app.save.part").read_bytes() if len(synced) == 1 else saved.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    _save.write_image(record, str(saved), running=True)
    assert synced == [f"{saved}.part", str(saved.parent)]
    assert content == [b"image\1"] * 2


def test_qemus_user_cannot_have_root_write_elsewhere(saved, record, tmp_path):
    """The folder of managed saves is its own: whatever it puts there is replaced, and libvirt itself writes in a folder of root's."""
    roots = tmp_path / "root"
    roots.write_text("root's")
    for name in ("app.save", "app.save.part"):
        (tmp_path / name).symlink_to(roots)
    _save.write_image(record, str(saved), running=True)
    assert roots.read_text() == "root's" and not saved.is_symlink() and saved.read_bytes() == b"image\1"
    assert saved.stat().st_mode & 0o777 == 0o600 and not (tmp_path / "app.image").exists()


def test_a_link_for_the_folder_of_saves_is_not_followed(saved, record, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="Not a directory"):
        _save.write_image(record, str(tmp_path / "link" / "app.save"), running=True)
    assert not list((tmp_path / "real").iterdir())
    monkeypatch.setattr(_virsh, "SAVED", str(tmp_path / "link"))
    assert codes(_guests.inspect(record)) == ["saves-link"]


def test_a_domain_that_was_not_suspended_yet_runs_on(libvirt, saved, record):
    _save.resume(record, running=True)
    assert libvirt.asked() == ["domstate app", *["qemu-monitor-command app"] * 2, "domstate app"]


def test_a_domain_runs_on_although_a_setting_cannot_be_taken_back(libvirt, saved, record, monkeypatch, tmp_path):
    libvirt.domains[0]["says"]["migrate-set-capabilities"] = "error: a migration is in progress"
    state_is(libvirt, "paused")
    told = goes_on(libvirt, monkeypatch)
    (tmp_path / "app.state").touch()
    with pytest.raises(
        LiveUpdateError, match=r"x-ignore-shared is still on.*--hmp 'migrate_set_capability x-ignore-shared off': .*in progress"
    ):
        _save.resume(record, running=True)
    assert ("resume", 0.0) in [step[:2] for step in told] and not saved.exists()  # it does not wait for the setting
    assert [verb for verb, *_when in told].count("qemu-monitor-command") == 9 and told[-1][1] > 300


ON, OFF = (json.dumps({"return": [{"capability": "x-ignore-shared", "state": state}]}) for state in (True, False))


@pytest.mark.parametrize("first", [ON, "error: no answer", "not JSON", '{"error": {"desc": "busy"}}'])
def test_a_setting_that_a_late_request_switches_on_again_is_switched_off(libvirt, saved, record, monkeypatch, first):
    """A daemon that hung may carry out a request of the save after those of the undo."""
    asked, answers, real = [], [first, OFF], _virsh.virsh

    def virsh(*words, limit=60.0):
        asked.append(json.loads(words[2])["execute"] if words[0] == "qemu-monitor-command" else words[0])
        if asked[-1] == "query-migrate-capabilities":
            libvirt.domains[0]["says"][asked[-1]] = answers.pop(0)
            libvirt.keep()
        return real(*words, limit=limit)

    monkeypatch.setattr(_virsh, "virsh", virsh)
    _save.resume(record, running=True)
    assert not answers and asked.count("migrate-set-capabilities") == 2 and "resume" not in asked


def test_a_guest_that_a_late_request_pauses_again_is_resumed_again(libvirt, saved, record, monkeypatch):
    told = goes_on(libvirt, monkeypatch)
    goes_on_again = _virsh.virsh

    def virsh(*words, limit=60.0):
        if "query-migrate-capabilities" in words[-1] and not any(verb == "resume" for verb, *_when in told):
            state_is(libvirt, "paused")
        return goes_on_again(*words, limit=limit)

    monkeypatch.setattr(_virsh, "virsh", virsh)
    _save.resume(record, running=True)
    assert [verb for verb, *_when in told].count("resume") == 1 and told[-1][0] == "domstate"


def test_a_setting_that_does_not_stay_off_is_told_at_the_limit(libvirt, saved, record, monkeypatch):
    libvirt.domains[0]["says"]["query-migrate-capabilities"] = ON
    state_is(libvirt, "running")
    told = goes_on(libvirt, monkeypatch)
    with pytest.raises(LiveUpdateError, match=r"^QEMU's migration option x-ignore-shared is still on.*: x-ignore-shared is on$"):
        _save.resume(record, running=True)
    assert 300 < told[-1][1] < 400


def test_a_job_that_was_told_to_end_may_need_a_moment(libvirt, saved, record, monkeypatch):
    state_is(libvirt, "paused")
    answers = [LiveUpdateError("a migration is in progress")]

    def refuse_once(_said):
        if answers:
            raise answers.pop()

    monkeypatch.setattr(_save, "taken", refuse_once)
    goes_on(libvirt, monkeypatch)
    _save.resume(record, running=True)
    assert not answers and libvirt.asked().count("resume app") == 1


def test_a_hold_that_is_undone_leaves_a_managed_save_alone(saved, record):
    saved.write_bytes(b"of the operator")
    _save.resume(record, running=False)
    assert saved.exists()


@pytest.mark.parametrize(
    ("listed", "status", "seen"),
    [
        (True, '{"return": {"status": "postmigrate", "running": false}}', ""),
        (True, '{"return": {"status": "paused", "running": false}}', "QEMU: paused"),  # it ran meanwhile
        (False, '{"return": {"status": "running", "running": true}}', "QEMU: running"),
        (False, '{"return": {"status": "postmigrate", "running": false}}', "QEMU: postmigrate"),
        (True, '{"error": {"desc": "broken"}}', "QEMU: broken"),
        (True, "error: no monitor", "QEMU: no answer: no monitor"),
        (True, "[]", "QEMU: no answer"),
    ],
)
def test_the_last_look_at_all_domains_is_one_virsh(libvirt, listed, status, seen):
    good = '{"return": {"status": "postmigrate", "running": false}}'
    records = [libvirt.add(name, number, query_status=good) for number, name in enumerate(("app", "db", "web"), 1)]
    libvirt.domains[1]["says"]["query-status"] = status
    paused = [record["uuid"] for record in records if listed or record["name"] != "db"]
    libvirt.says["list --state-paused --uuid"] = "\n".join(paused) + "\n"
    libvirt.keep()
    problems = _save.still_saved(records)
    assert libvirt.processes() == 1 and len(problems) == bool(seen)
    assert all(problem.startswith("guest db was saved") and seen in problem for problem in problems)


def test_what_virsh_prints_is_utf_8_and_comes_back_byte_for_byte(tmp_path, monkeypatch):
    """Whatever the locale of the caller, and even where it is none."""
    program = tmp_path / "virsh"
    program.write_bytes(b"#!/bin/sh\nprintf 'B\303\274ro \377'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = _virsh.virsh("dumpxml")
    assert said.startswith("Büro ") and said.encode("utf-8", "surrogateescape") == b"B\xc3\xbcro \xff"
