# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes, _slow_paths, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _guests, _needs, _virsh
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _after_boot, _block, _disk_files, _reopened

LUKS = "11111111-2222-4333-8444-555555555555"
DOMAIN = f"""<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name>
  <metadata><source file='/no/file/of/the/domain'/></metadata>
  <os>
    <kernel>/tmp/vmlinuz</kernel>
    <initrd>/tmp/initrd</initrd>
    <loader readonly='yes' type='pflash'>/usr/share/code.fd</loader>
    <nvram template='/usr/share/vars.fd'>/run/vars.fd</nvram>
  </os>
  <devices>
    <disk type='volume' device='disk'><source pool='scratch' volume='web1.qcow2'/><target dev='vda'/></disk>
    <disk type='file' device='disk'>
      <source file='/srv/b.qcow2'><encryption format='luks'><secret type='passphrase' uuid='{LUKS}'/></encryption></source>
      <backingStore type='file'><source file='/srv/base.qcow2'/></backingStore>
      <target dev='vdb'/>
    </disk>
    <disk type='block' device='lun'>
      <source dev='/dev/sdx'><reservations managed='no'><source type='unix' path='/run/pr.sock' mode='client'/></reservations></source>
      <target dev='sdc'/>
    </disk>
    <disk type='network' device='disk'>
      <auth username='libvirt'><secret type='ceph' usage='client.libvirt secret'/></auth>
      <source protocol='nbd' name='x'><host transport='unix' socket='/run/nbd.sock'/></source><target dev='vdd'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/var/lib/seed.iso'/><target dev='sda'/></disk>
    <disk type='file' device='cdrom'><source file='/var/lib/open.iso'/><target dev='sdb' tray='open'/></disk>
    <disk type='file' device='cdrom'><source file='/var/lib/may-be.iso' startupPolicy='optional'/><target dev='sdd'/></disk>
    <interface type='network'><source network='lab' bridge='virbr1'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    <tpm model='tpm-tis'><backend type='external'><source type='unix' mode='connect' path='/run/mytpm.sock'/></backend></tpm>
    <tpm model='tpm-crb'><backend type='emulator'><encryption secret='{LUKS}'/></backend></tpm>
    <serial type='unix'><source mode='bind' path='/run/of-qemu'/></serial>
    <serial type='unix'><source mode='connect' path='/run/of-somebody'/></serial>
    <serial type='dev'><source path='/dev/ttyS5'/></serial>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-set'/><qemu:arg value='device.x=y'/><qemu:env name='A' value='b'/>
  </qemu:commandline>
</domain>
"""
NOTHING = {"networks": [], "pools": [], "secrets": [], "files": [], "sockets": []}
ALL_THERE = {
    "networks": {"persistent": ["lab"], "autostart": ["lab"]},
    "pools": {"persistent": ["lab"], "autostart": ["lab"]},
    "secrets": {"known": [[LUKS, "volume", "/srv/b"], ["other", "ceph", "client.libvirt secret"]], "ephemeral": []},
    "problems": {},
}


def test_what_a_running_domain_needs_at_its_next_start():
    found = _needs.needs(DOMAIN)
    assert found["networks"] == ["lab"] and found["pools"] == ["scratch"]
    assert found["secrets"] == [("", "client.libvirt secret"), (LUKS, "")]
    assert {file["path"]: (file["open"], file["target"]) for file in found["files"]} == {
        "/tmp/vmlinuz": (False, ""),
        "/tmp/initrd": (False, ""),
        "/usr/share/code.fd": (False, ""),
        "/run/vars.fd": (True, ""),
        "/srv/b.qcow2": (True, ""),
        "/srv/base.qcow2": (True, ""),
        "/dev/sdx": (True, ""),
        "/var/lib/seed.iso": (True, "sda"),
        "/var/lib/open.iso": (False, "sdb"),
        "/dev/ttyS5": (False, ""),
        "/run": (False, ""),
    }
    assert [one["path"] for one in found["sockets"]] == ["/run/mytpm.sock", "/run/pr.sock", "/run/nbd.sock", "/run/of-somebody"]


def test_what_the_owner_gives_qemu_past_libvirt():
    assert _needs.command_line(DOMAIN) == (["-set", "device.x=y"], {"A": "b"})
    assert _needs.command_line("<domain/>") == ([], {})


DEFINE = "virsh {0}-dumpxml lab > lab.xml && virsh {0}-define lab.xml && virsh {0}-autostart lab"


def told(host, **wanted):
    return _needs.reasons({**NOTHING, **wanted}, {**ALL_THERE, **host}, {}, {}, "web1")


@pytest.mark.parametrize(("kind", "verb"), [("network", "net"), ("pool", "pool")])
@pytest.mark.parametrize(
    ("seen", "problems", "code", "remedy"),
    [
        ({"persistent": [], "autostart": []}, {}, "transient", DEFINE),
        ({"persistent": ["lab"], "autostart": ["lab2"]}, {}, "no-autostart", "virsh {0}-autostart lab"),
        (
            {},
            {"networks": "no answer", "pools": "no answer"},
            "unknown",
            "make sure that 'virsh {0}-list --all' answers, then run this again",
        ),
    ],
)
def test_a_network_or_pool_that_a_boot_does_not_bring(kind, verb, seen, problems, code, remedy):
    (reason,) = told({f"{kind}s": seen, "problems": problems}, **{f"{kind}s": ["lab"]})
    assert (reason["code"], reason["remedy"]) == (f"{kind}-{code}", remedy.format(verb))
    assert "lab" in reason["message"]
    assert told({}, **{f"{kind}s": ["lab"]}) == []


@pytest.mark.parametrize(
    ("secret", "host", "code"),
    [
        ((LUKS, ""), {}, None),
        (("", "client.libvirt secret"), {}, None),
        (("", "client.other"), {}, "secret-gone"),
        ((LUKS.replace("1", "2"), ""), {}, "secret-gone"),
        ((LUKS, ""), {"secrets": {key: [[LUKS, "volume", "/srv/b"]] for key in ("known", "ephemeral")}}, "secret-ephemeral"),
        ((LUKS, ""), {"problems": {"secrets": "no answer"}}, "secret-unknown"),
    ],
)
def test_a_secret_that_a_boot_does_not_bring(secret, host, code):
    found = told(host, secrets=[secret])
    assert [reason["code"] for reason in found] == ([code] if code else [])
    assert all((secret[0] or secret[1]) in reason["message"] for reason in found)


@pytest.mark.parametrize(("wrong", "code"), [("gone", "file-gone"), ("memory", "file-in-memory"), ("replaced", "file-replaced")])
def test_a_file_is_told_with_its_remedy(wrong, code):
    files = [
        {"path": "/a.iso", "what": "disk sda", "open": True, "target": "sda"},
        {"path": "/b", "what": "disk vda", "open": True, "target": ""},
    ]
    iso, disk = _needs.reasons({**NOTHING, "files": files}, ALL_THERE, {"/a.iso": wrong, "/b": wrong}, {}, "web1")
    assert (iso["code"], disk["code"]) == (code, code)
    assert "/a.iso, disk sda," in iso["message"] and "virsh change-media web1 sda --eject" in iso["remedy"]
    assert "eject" not in disk["remedy"]


def test_files_are_looked_at(tmp_path, monkeypatch):
    """This process stands for QEMU."""
    monkeypatch.setattr(_after_boot, "_emptied", lambda: ("/nowhere",))
    there, replaced, memory = (tmp_path / name for name in ("there", "replaced", "memory"))
    for path in (there, replaced, memory):
        path.write_text("x")
    seen = os.stat(memory)
    mounts = tmp_path / "mountinfo"
    row = "36 35 {}:{} / {} rw shared:1 - {} none rw\n"
    mounts.write_text(row.format(0, 99, "/run", "tmpfs") + row.format(os.major(seen.st_dev), os.minor(seen.st_dev), "/", "ext4"))

    def look(*paths, is_open=True):
        return _after_boot.paths([{"path": str(path), "open": is_open} for path in paths], os.getpid(), str(mounts))

    with open(there, "rb"), open(replaced, "rb"):
        os.replace(memory, replaced)
        assert look(there, replaced) == {str(replaced): "replaced"}
        assert look(there, replaced, is_open=False) == {}
    assert look(tmp_path / "nowhere", "/dev/null") == {str(tmp_path / "nowhere"): "gone"}
    mounts.write_text(row.format(os.major(seen.st_dev), os.minor(seen.st_dev), "/", "tmpfs"))
    assert look(there, "/dev/null", is_open=False) == {str(there): "memory"}


@pytest.mark.parametrize(
    ("config", "is_emptied"),
    [
        ({"usr/lib/tmpfiles.d/tmp.conf": "# D /tmp\nD /tmp 1777 root root -\n"}, True),
        ({"usr/lib/tmpfiles.d/tmp.conf": "D! /tmp 1777 root root -\n"}, True),
        ({"usr/lib/tmpfiles.d/tmp.conf": "q /tmp 1777 root root 10d\n"}, False),
        ({"usr/lib/tmpfiles.d/tmp.conf": "D /tmp 1777 root root -\n", "etc/tmpfiles.d/tmp.conf": ""}, False),
        ({}, False),
    ],
)
def test_tmp_is_emptied_by_a_boot_where_the_host_says_so(tmp_path, config, is_emptied):
    for path, text in config.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    assert _after_boot._emptied(str(tmp_path)) == ("/dev/shm/", "/run/", *(["/tmp/"] if is_emptied else []))


def test_what_lies_in_a_folder_that_a_boot_empties_is_gone_then(tmp_path, monkeypatch):
    """By where the file lies, not by how it is called."""
    (tmp_path / "emptied").mkdir()
    (tmp_path / "emptied" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "emptied" / "file")
    mounts = tmp_path / "mountinfo"
    mounts.touch()
    monkeypatch.setattr(_after_boot, "_emptied", lambda: (f"{tmp_path}/emptied/",))
    look = [{"path": str(path), "open": False} for path in (tmp_path / "link", mounts)]
    assert _after_boot.paths(look, 0, str(mounts)) == {str(tmp_path / "link"): "memory"}


@pytest.mark.parametrize(
    ("unit", "state", "served"),
    [
        ("swtpm.service", "enabled", "swtpm.service"),
        ("swtpm.service", "static", "swtpm.service"),
        ("swtpm.service", "transient", ""),
        ("swtpm.service", "disabled", ""),
        ("user@1000.service", "static", ""),
        ("session-3.scope", "transient", ""),
        (None, "", ""),
    ],
)
def test_who_serves_a_socket_is_started_by_a_boot_or_not(tmp_path, monkeypatch, unit, state, served):
    path = str(tmp_path / "s")
    monkeypatch.setattr(_processes, "unit_of", lambda pid: unit if pid == os.getpid() else "wrong.service")
    monkeypatch.setattr(_systemd, "show_each", lambda units, key: {one: {key: state} for one in units})
    wanted = [{"path": path, "what": "its TPM (swtpm)"}]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert _after_boot.sockets(wanted) == {path: served}
    assert _after_boot.sockets(wanted) == {path: ""}
    assert _after_boot.sockets([]) == {}


@pytest.mark.parametrize(("unit", "state", "served"), [("nbd.service", "enabled", "nbd.service"), ("session-3.scope", "transient", "")])
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
def test_who_listens_at_a_port_of_this_host_is_started_by_a_boot_or_not(monkeypatch, unit, state, served, bound):
    monkeypatch.setattr(_processes, "unit_of", lambda pid: unit if pid == os.getpid() else "wrong.service")
    monkeypatch.setattr(_systemd, "show_each", lambda units, key: {one: {key: state} for one in units})
    with socket.socket() as listener:
        listener.bind((bound, 0))
        listener.listen()
        port = listener.getsockname()[1]
        for peer in (f"127.0.0.1:{port}", f"localhost:{port}", f":{port}"):
            assert _after_boot.sockets([{"path": peer, "what": "a"}]) == {peer: served}
            assert _after_boot.servers([{"path": peer, "what": "a"}]) == ([served] if served else [])
        wanted = [{"path": f"192.0.2.9:{port}", "what": "<serial>"}, {"path": peer, "what": "a"}, {"path": "/run/s", "what": "a"}]
        assert _after_boot.sockets(wanted)[f"192.0.2.9:{port}"] == "elsewhere"
        assert _after_boot.servers(wanted[:1]) == []
        (warning,) = _after_boot.peer_warnings(wanted)
        assert warning["code"] == "peer-remote" and f"192.0.2.9:{port}" in warning["message"]
        monkeypatch.setattr(_processes, "holders", lambda _link, _root: [])
        assert _after_boot.sockets([{"path": peer, "what": "a"}]) == {peer: "kernel"}
    assert _after_boot.sockets([{"path": peer, "what": "a"}]) == {peer: ""}


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_who_serves_a_connection_that_pid_1_accepted_is_needed_too(tmp_path, monkeypatch, family):
    """A socket unit with Accept=yes starts a service for each connection. Its process does not listen."""
    with socket.socket(family) as listener, socket.socket(family) as qemu:
        listener.bind(str(tmp_path / "s") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen()
        qemu.connect(listener.getsockname())
        path = str(tmp_path / "s") if family == socket.AF_UNIX else f"127.0.0.1:{listener.getsockname()[1]}"
        with listener.accept()[0] as accepted:
            service = subprocess.Popen(["sleep", "60"], stdin=accepted)
        units = {os.getpid(): "init.scope", service.pid: "nbd@1-7-0.service"}
        monkeypatch.setattr(_processes, "unit_of", lambda pid: units.get(pid, "wrong.service"))
        try:
            assert _after_boot.servers([{"path": path, "what": "a"}]) == ["nbd@1-7-0.service"]
        finally:
            service.kill()
            service.wait()
        assert _after_boot.servers([{"path": path, "what": "a"}]) == []


@pytest.mark.parametrize(
    ("xml", "peers"),
    [
        ("<serial type='tcp'><source mode='connect' host='h' service='1'/></serial>", ["h:1"]),
        ("<serial type='tcp'><source mode='bind' host='h' service='1'/></serial>", []),
        ("<serial type='tcp'><source mode='connect' host='h' service='1'><reconnect enabled='yes' timeout='1'/></source></serial>", []),
        ("<disk><source protocol='nbd' name='a'><host name='h'/></source></disk>", ["h:10809"]),
        ("<disk><source protocol='iscsi' name='a'><host name='h' port='7'/></source></disk>", ["h:7"]),
        ("<disk><source protocol='rbd' name='a'><host name='h' port='7'/></source></disk>", []),
        ("<interface type='client'><source address='h' port='7'/></interface>", ["h:7"]),
    ],
)
def test_the_tcp_peers_of_a_domain(xml, peers):
    wanted = _needs.needs(f"<domain><devices>{xml}</devices></domain>")["sockets"]
    assert [entry["path"] for entry in wanted] == peers


def test_a_domains_file_that_does_not_answer_is_a_reason(monkeypatch, tmp_path):
    plain = os.stat
    monkeypatch.setattr(_slow_paths, "PATH_LIMIT_S", 2.0)
    monkeypatch.setattr(os, "stat", lambda path: time.sleep(60) if str(path) == "/srv/nfs/a" else plain(path))
    files = [{"path": path, "what": "disk vda", "open": True, "target": ""} for path in (str(tmp_path), "/srv/nfs/a")]
    wrong = _after_boot.paths(files, 0)
    assert wrong == {"/srv/nfs/a": "silent"}
    (reason,) = _needs.reasons({**NOTHING, "files": files}, ALL_THERE, wrong, {}, "web1")
    assert reason["code"] == "file-silent" and "/srv/nfs/a, disk vda, does not answer" in reason["message"]
    assert _after_boot.paths([], 0) == {}


def test_the_state_of_a_tpm_and_the_secret_of_firmware_variables_are_looked_for():
    tpm = "<devices><tpm><backend type='emulator'><source type='dir' path='/run/swtpm/w'/></backend></tpm></devices>"
    nvram = f"<os><nvram><source file='/v'><encryption><secret type='passphrase' uuid='{LUKS}'/></encryption></source></nvram></os>"
    wanted = _needs.needs(f"<domain>{nvram}{tpm}</domain>")
    assert [file["path"] for file in wanted["files"]] == ["/run/swtpm/w", "/v"] and wanted["secrets"] == [(LUKS, "")]
    assert wanted["sockets"] == []


def test_a_socket_that_no_boot_serves_is_a_reason():
    wanted = {**NOTHING, "sockets": [{"path": "/run/a", "what": "its TPM (swtpm)"}, {"path": "/run/b", "what": "<serial>"}]}
    (reason,) = _needs.reasons(wanted, ALL_THERE, {}, {"/run/a": "", "/run/b": "b.service"}, "web1")
    assert reason["code"] == "socket" and "/run/a" in reason["message"]


def test_files_that_are_given_past_libvirt_are_looked_for_too(tmp_path):
    args = "".join(
        f"<qemu:arg value='{word}'/>" for word in ("-fw_cfg", f"name=opt/a,file={tmp_path}/a", "-acpitable", "file=/b", "-m", "/c")
    )
    xml = f"<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:commandline>{args}</qemu:commandline></domain>"
    files = _needs.needs(xml)["files"]
    assert [file["path"] for file in files] == [f"{tmp_path}/a", "/b"]
    assert _after_boot.paths(files[:1], 0)[f"{tmp_path}/a"] == "gone"


def past(*words):
    """What a domain needs that gives QEMU these words without libvirt."""
    args = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    xml = f"<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:commandline>{args}</qemu:commandline></domain>"
    return _needs.needs(xml)


@pytest.mark.parametrize(
    ("words", "path", "kind"),
    [
        ("-drive file=/tmp/scratch.raw,if=virtio", "/tmp/scratch.raw", "open"),
        ("-blockdev driver=file,node-name=x,filename=/dev/shm/x", "/dev/shm/x", "open"),
        ("-drive file=fat:/tmp/seed", "/tmp/seed", ""),
        ("-plugin file=/srv/p.so", "/srv/p.so", ""),
        ("-netdev bridge,id=n,helper=/srv/h", "/srv/h", ""),
        ("-object input-linux,id=i,evdev=/dev/input/event9", "/dev/input/event9", ""),
        ("-chardev serial,id=s,path=/dev/ttyS7", "/dev/ttyS7", ""),
        ("-chardev pipe,id=p,path=/srv/pipe", "/srv/pipe", "pipe"),
        ("-serial unix:/run/x/s,server=on,wait=off", "/run/x", "folder"),
        ("-vnc unix:/run/x/s", "/run/x", "folder"),
        ("-pidfile /run/x/s", "/run/x", "folder"),
        ("-D /run/x/s", "/run/x", "folder"),
    ],
)
def test_what_is_given_to_qemu_past_libvirt_is_looked_for_as_for_a_unit(words, path, kind):
    (file,) = past(*words.split())["files"]
    assert file["path"] == path and "<qemu:commandline>" in file["what"]
    assert [key for key in ("open", "pipe", "folder") if file.get(key)] == ([kind] if kind else [])


def test_whom_qemu_connects_to_past_libvirt_is_looked_for_as_for_a_unit():
    wanted = past("-chardev", "socket,id=c,path=/run/gone.sock", "-serial", "tcp:127.0.0.1:1", "-drive", "file=nbd://h/a")["sockets"]
    assert [socket["path"] for socket in wanted] == ["/run/gone.sock", "127.0.0.1:1", "h:10809"]
    assert {socket["what"] for socket in wanted} == {"an option of <qemu:commandline>"}


def test_a_pipe_of_a_domain_is_one_or_two(tmp_path, monkeypatch):
    monkeypatch.setattr(_after_boot, "_emptied", lambda: ("/nowhere/",))
    (file,) = _needs.needs(f"<domain><devices><serial type='pipe'><source path='{tmp_path}/p'/></serial></devices></domain>")["files"]
    assert _after_boot.paths([file], 0, "/dev/null") == {f"{tmp_path}/p": "gone"}
    os.mkfifo(tmp_path / "p.in")
    assert _after_boot.paths([file], 0, "/dev/null") == {}


@pytest.mark.parametrize(
    "xml",
    [
        "<channel type='unix'><source mode='bind' path='/run/x/s'/></channel>",
        "<serial type='unix'><source mode='bind' path='/run/x/s'/></serial>",
        "<serial type='file'><source path='/run/x/s'/></serial>",
        "<serial type='pty'><log file='/run/x/s'/></serial>",
        "<console type='file'><source path='/run/x/s'/></console><serial type='file'><source path='/run/x/s'/></serial>",
        "<graphics type='vnc' socket='/run/x/s'/>",
        "<graphics type='spice'><listen type='socket' socket='/run/x/s'/></graphics>",
        "<audio type='file' path='/run/x/s'/>",
        "<interface type='user'><backend type='passt' logFile='/run/x/s'/></interface>",
    ],
)
def test_the_folder_of_what_qemu_creates_has_to_be_there_after_a_boot(tmp_path, xml, monkeypatch):
    (file,) = _needs.needs(f"<domain><devices>{xml}</devices></domain>")["files"]
    assert file["path"] == "/run/x" and file["folder"] and "/run/x/s" in file["what"]
    (reason,) = _needs.reasons({**NOTHING, "files": [file]}, ALL_THERE, {"/run/x": "memory"}, {}, "u")
    assert reason["code"] == "file-volatile" and "/run/x" in reason["message"] and "tmpfiles.d" in reason["remedy"]
    (own,) = _needs.needs(f"<domain><devices>{xml.replace('/run/x/', '/run/libvirt/qemu/')}</devices></domain>")["files"] or [None]
    assert own is None  # libvirt creates these
    monkeypatch.setattr(_systemd, "runtime_directories", lambda _states: ["y"])
    folder = {**file, "path": str(tmp_path)}
    monkeypatch.setattr(_after_boot, "_emptied", lambda: (f"{tmp_path}/", f"{tmp_path}"))
    assert _after_boot.paths([folder], 0, "/dev/null") == {str(tmp_path): "memory"}
    with monkeypatch.context() as mounted:  # a boot mounts it again
        mounted.setattr(os.path, "ismount", lambda path: path == str(tmp_path))
        assert _after_boot.paths([folder], 0, "/dev/null") == {}
    monkeypatch.setattr(_after_boot, "_tmpfiles", lambda _root: [("d", f"{tmp_path}/deeper")])
    assert _after_boot.paths([folder], 0, "/dev/null") == {}


@pytest.mark.parametrize(
    ("folder", "is_made"),
    [
        ("/run", True),
        ("/tmp", True),
        ("/run/qemu", True),
        ("/var/run/qemu", True),
        ("/run/a", True),
        ("/run/a/b", True),
        ("/run/a/b/c", False),
        ("/run/file", False),
        ("/run/files", True),
        ("/run/of-unit", True),
        ("/run/of-service", True),
        ("/run/of-service/deeper", False),
        ("/run/x", False),
    ],
)
def test_which_folders_in_memory_a_boot_creates(tmp_path, monkeypatch, folder, is_made):
    (tmp_path / "usr/lib/tmpfiles.d").mkdir(parents=True)
    (tmp_path / "usr/lib/tmpfiles.d/a.conf").write_text(
        "# d /run/x\nd /run/qemu 0755 -\nD! %t/a/b\nf /var/run/file\nL /run/files/f - - - -\ne /run/x\n"
    )
    monkeypatch.setattr(_systemd, "runtime_directories", lambda states: ["of-service"] if "enabled" in states else [])
    monkeypatch.setattr(os.path, "realpath", lambda path: path.replace("/var/run", "/run"))
    assert _after_boot.makes([folder], ["/run/of-unit"], str(tmp_path)) == ({folder} if is_made else set())


def test_the_folder_of_a_fat_disk_is_looked_for_and_not_held_open():
    xml = "<disk type='dir'><source dir='/tmp/seed'/><target dev='vda'/></disk>"
    (file,) = _needs.needs(f"<domain><devices>{xml}</devices></domain>")["files"]
    assert file["path"] == "/tmp/seed" and not file["open"]


def test_the_file_of_a_volume_is_asked_for_and_looked_at_like_any_other(libvirt, monkeypatch):
    volume = {"pool": "scratch", "volume": "web1.qcow2"}
    (asked,) = _needs.needs(DOMAIN)["volumes"]
    assert {key: asked[key] for key in volume} == volume and asked["file"]["what"] == "disk vda"
    libvirt.says["vol-path --pool scratch -- web1.qcow2"] = "/gone/web1.qcow2\n\n"
    libvirt.keep()
    (file,) = _guests._volumes([asked])
    assert file["path"] == "/gone/web1.qcow2" and file["open"]
    libvirt.says["vol-path --pool scratch -- web1.qcow2"] = "error: the pool is not active"
    libvirt.keep()
    assert _guests._volumes([asked]) == []


def test_a_block_device_of_a_domain_is_known_by_more_than_its_name_and_one_made_by_hand_is_a_reason(monkeypatch):
    files = [{"path": path, "what": "disk vda", "open": True, "target": ""} for path in ("/dev/sdb", "/dev/sdc", "/srv/a")]
    monkeypatch.setattr(_block, "identity", lambda path: [f"wwid {path}"])
    assert _needs.devices(files, {"/dev/sdc": "gone"}) == {"/dev/sdb": ["wwid /dev/sdb"]}
    names = {1: "loop0", 2: "nbd3p1", 3: "sda", 4: "dm-0"}
    monkeypatch.setattr(_block, "kernel_name", names.get)
    assert [number for number in names if _block.is_by_hand(number)] == [1, 2]
    seen = SimpleNamespace(st_mode=stat.S_IFBLK, st_rdev=1, st_dev=1, st_ino=1)
    monkeypatch.setattr(os, "stat", lambda _path: seen)
    assert _after_boot._wrong(files[:1], 0, "/proc/self/mountinfo", lambda _path: None) == {"/dev/sdb": "by-hand"}
    why = _needs._file_reason(files[0], "by-hand", "web")
    assert why["code"] == "file-volatile" and "/dev/sdb" in why["message"] and why["code"] in _needs.OF_A_BOOT


@pytest.fixture(name="disks")
def files_of_a_domain(tmp_path, monkeypatch):
    """What is known of its files: a disk behind a link, a medium, one that QEMU got without libvirt, and what QEMU does not keep open."""
    for name in ("a.qcow2", "seed.iso", "kernel", "gone", "past"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a.qcow2")
    monkeypatch.setattr(_virsh, "HOOK", str(tmp_path / "qemu.d/kvm-liveupdate"))
    (tmp_path / "qemu.d").mkdir()
    (tmp_path / "qemu.d/kvm-liveupdate").touch()
    monkeypatch.setattr(
        _reopened, "mounts", lambda _pid: [(os.path.realpath(tmp_path), "/", "xfs", "rw", "/dev/a"), ("/", "/", "fuse", "rw", "x")]
    )
    files = [
        {"path": str(tmp_path / name), "what": "", "open": name != "kernel", "target": "sda" if "iso" in name else ""}
        for name in ("link", "seed.iso", "kernel", "gone")
    ]

    def look(wrong=None):
        past = ["-drive", f"file={tmp_path}/past,if=none,id=d"]
        return _needs.disks(files, {str(tmp_path / "gone"): "gone"} if wrong is None else wrong, past)

    return look


def test_a_domains_disks_are_known_by_more_than_their_paths(disks, tmp_path):
    found = disks()
    assert set(found) == {str(tmp_path / name) for name in ("link", "seed.iso", "past")}
    assert found[str(tmp_path / "link")]["inode"] == os.stat(tmp_path / "a.qcow2").st_ino
    assert all(own["mount"] == os.path.realpath(tmp_path) and "inode" in own for own in found.values())
    assert disks({str(tmp_path / "seed.iso"): "silent"}) == {}  # nothing of it is accessed again


@pytest.mark.parametrize("hook", ["qemu", "qemu.d/seed"])
def test_only_the_owners_hooks_of_libvirt_may_make_a_medium_again(disks, tmp_path, hook):
    (tmp_path / hook).touch()
    assert {os.path.basename(path): "inode" in own for path, own in disks().items()} == {"link": True, "seed.iso": False, "past": True}


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("<model type='virtio'/><alias name='net1'/>", ["-device", "virtio-net"]),
        ("<model type='virtio-transitional'/><alias name='net1'/><rom bar='on'/>", ["-device", "virtio-net"]),
        ("<model type='e1000e'/><alias name='net1'/><rom enabled='no'/>", ["-device", "e1000e,romfile="]),
        ("<model type='e1000e'/><alias name='net1'/><rom file='/srv/a,b'/>", ["-device", "e1000e,romfile=/srv/a,,b"]),
        ("<model type='virtio'/><alias name='net0'/>", []),  # it is on the command line
        ("<model type='virtio'/>", []),
        ("<alias name='net1'/>", []),
    ],
)
def test_the_roms_of_cards_that_were_plugged_in_later_are_looked_at_too(card, words):
    argv = ["qemu", "-netdev", "tap,id=net1", "-device", '{"driver":"virtio-net-pci","id":"net0"}']
    assert _needs.cards_since(f"<domain><devices><interface>{card}</interface></devices></domain>", argv) == words


@pytest.mark.parametrize("silent", [False, True])
def test_the_examination_of_a_domain_leaves_what_identifies_its_disks_in_its_record(libvirt, monkeypatch, tmp_path, silent):
    """So nothing is looked up once guests are paused."""
    monkeypatch.setattr(_guests, "confinement", lambda _pid: "")
    monkeypatch.setattr(_after_boot, "_emptied", lambda: ("/nowhere",))
    monkeypatch.setattr(_after_boot, "_memory_devices", lambda _mounts: set())  # /tmp may be a tmpfs
    image = tmp_path / "a.qcow2"
    image.touch()
    if silent:
        monkeypatch.setattr(_disk_files, "identity", lambda *_words: time.sleep(60))
        monkeypatch.setattr(_slow_paths, "PATH_LIMIT_S", 1.0)
    disk = f"<disk type='file'><source file='{image}'/><target dev='vda'/></disk>"
    record = libvirt.add("web1", 1, dumpxml=f"<domain><devices>{disk}</devices></domain>")
    record["backends"] = [{"kind": "memory-backend-file", "id": "pc.ram", "path": "/x", "size": 1}]
    with open(image, "rb"):
        codes = {reason["code"] for reason in _guests.inspect(record)}
    assert ("file-silent" in codes) is silent
    assert silent or record["disks"][str(image)]["inode"] == os.stat(image).st_ino


def test_what_a_domain_needs_is_looked_at_before_it_is_held(libvirt, monkeypatch, tmp_path):
    monkeypatch.setattr(_guests, "confinement", lambda _pid: "")
    monkeypatch.setattr(_block, "identity", lambda path: [f"wwid {path}"])
    monkeypatch.setattr(_processes, "started_at", lambda _pid: 1.0)
    rom = tmp_path / "bios.bin"
    rom.touch()
    monkeypatch.setattr(_processes, "argv_of", lambda _pid: ["qemu", "-nodefaults", "-bios", str(rom)])
    card = tmp_path / "card,1.rom"
    card.touch()
    plugged = f"<interface type='bridge'><model type='e1000'/><rom file='{card}'/><alias name='net9'/></interface></devices>"
    words = ("-device", "vfio-pci,host=1", "-drive", "file=/gone.raw", "-chardev", "socket,id=c,path=/gone.sock")
    args = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    disk = "<disk type='block'><source dev='/dev/null'/><target dev='vde'/></disk></devices>"
    xml = (
        DOMAIN.replace("<qemu:arg value='-set'/><qemu:arg value='device.x=y'/>", args)
        .replace("</devices>", disk)
        .replace("</devices>", plugged)
    )
    record = libvirt.add("web1", 1, dumpxml=xml)
    libvirt.domains[0]["says"]["query-block"] = json.dumps({"return": [{"inserted": {"file": "/srv/hand.qcow2"}}]})
    libvirt.says["vol-path --pool scratch -- web1.qcow2"] = "/gone/volume.qcow2\n"
    libvirt.keep()
    record["backends"] = [{"kind": "memory-backend-file", "id": "pc.ram", "path": "/x", "size": 1}]
    monkeypatch.setattr(_after_boot, "servers", lambda wanted: [socket["path"] for socket in wanted if socket["path"] == "/gone.sock"])
    reasons = _guests.inspect(record)
    assert record["servers"] == ["/gone.sock"]
    codes = {reason["code"] for reason in reasons}
    assert {"network-transient", "pool-transient", "secret-gone", "file-gone", "socket", "ram-elsewhere"} <= codes
    assert {"hostdev", "rom-replaced", "disk-changed"} <= codes
    told = [reason["message"].split()[0] for reason in reasons if reason["code"] == "rom-replaced"]
    assert told == [str(rom), str(card)]
    assert record["devices"] == {"/dev/null": ["wwid /dev/null"]}
    assert any(f"virsh change-media {record['uuid']} sda --eject" in reason["remedy"] for reason in reasons)
    told = " ".join(reason["message"] for reason in reasons)
    assert "/gone/volume.qcow2, disk vda," in told and "/gone.raw, an option of" in told and "needs /gone.sock" in told


@pytest.mark.parametrize(
    "xml",
    [
        "<sysinfo type='fwcfg'><entry name='opt/a' file='/x'/><entry name='opt/b'>text</entry></sysinfo>",
        "<os><varstore path='/x' template='/gone'/></os>",
        "<os><loader>/x</loader><nvram template='/gone'/></os>",  # libvirt reads the template only where the variables are not there
        "<devices><smartcard mode='host-certificates'><certificate>a</certificate><database>/x</database></smartcard></devices>",
        "<devices><rng model='virtio'><backend model='random'>/x</backend></rng></devices>",
        "<devices><interface type='user'><rom file='/x'/></interface></devices>",
        "<devices><interface type='ethernet'><script path='/x'/></interface></devices>",
        "<devices><disk type='network'><source protocol='rbd' name='p/i'><config file='/x'/></source></disk></devices>",
        "<devices><disk type='network'><source protocol='ssh' name='i'><identity username='u' keyfile='/x'/></source></disk></devices>",
        "<devices><disk type='network'><source protocol='ssh' name='i'><knownHosts path='/x'/></source></disk></devices>",
        "<devices><input type='evdev'><source dev='/x'/></input></devices>",
        "<devices><input type='passthrough' bus='virtio'><source evdev='/x'/></input></devices>",
    ],
)
def test_what_qemu_reads_at_its_start_is_looked_for(xml):
    assert [file["path"] for file in _needs.needs(f"<domain>{xml}</domain>")["files"]] == ["/x"]
