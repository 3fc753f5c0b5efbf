# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bare primitive, on the real device: any service's memory, and every error that the kernel gives."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from kvmlab.machines.host import Host
from kvmlab.story.controller import Controller

SERVICE = """
import hashlib, os, time
fds = [os.memfd_create(name) for name in ("index", "pages")]
for fd in fds:
    os.write(fd, os.urandom(1 << 20))
time.sleep(3600)
"""

# Runs on the host with the deployed module; each line of its output is one answer.
ERRORS = """
import json, os, sys
sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")
from kvm_liveupdate.kernel import _luo
from kvm_liveupdate._errors import LiveUpdateError

def said(call, *arguments):
    try:
        call(*arguments)
    except LiveUpdateError as err:
        return err.details.get("errno")
    return "taken"

session, other = _luo.create_session("errors-1"), _luo.create_session("errors-2")
memory = os.memfd_create("m"); os.write(memory, b"x" * 8192)
null = os.open("/dev/null", os.O_RDWR)
answers = {
    "name": _luo.get_name(session),
    "same name again": said(_luo.create_session, "errors-1"),
    "unknown session": said(_luo.retrieve_session, "nobody"),
    "not memory": said(_luo.preserve_fd, session, null, 1),
    "memory": said(_luo.preserve_fd, session, memory, 1),
    "token twice": said(_luo.preserve_fd, session, os.memfd_create("n"), 1),
    "memory twice": said(_luo.preserve_fd, other, memory, 1),
    "retrieve from outgoing": said(_luo.retrieve_fd, session, 1),
    "finish outgoing": said(_luo.finish, session),
    "incoming": _luo.is_incoming(session),
    "hugetlb": said(_luo.preserve_fd, session, os.memfd_create("h", os.MFD_HUGETLB), 2),
    "grow": None,
}
try:
    os.ftruncate(memory, 1 << 20)
except PermissionError:
    answers["grow"] = "EPERM"
holder = os.open("/dev/liveupdate", os.O_RDWR)
_luo.BUSY_LIMIT_S = 0.2
answers["busy"] = said(_luo.create_session, "errors-3")
os.close(holder)
os.close(session)
answers["after closing"] = said(_luo.preserve_fd, other, memory, 1)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module", name="service")
def memory_service(hv1: Host) -> Iterator[str]:
    """A service with two memory files and room in its fd store."""
    hv1.ssh("cat > /root/service.py", stdin=SERVICE)
    options = "-p FileDescriptorStoreMax=4 -p FileDescriptorStorePreserve=yes -p NotifyAccess=all"
    assert hv1.ssh(f"systemd-run --unit cache {options} python3 /root/service.py").returncode == 0
    yield "cache.service"
    hv1.ssh("systemctl stop cache.service")


@pytest.mark.beyond
def test_a_services_memory_is_preserved_and_given_up(controller: Controller, hv1: Host, service: str) -> None:
    arguments = {"name": "cache", "unit": service, "memfds": ["index", "pages"]}
    assert controller.ask("hv1", "session", "--check", **arguments)["changed"]
    assert controller.ask("hv1", "session", **arguments)["changed"]
    assert not controller.ask("hv1", "session", **arguments)["changed"]
    assert hv1.ssh(f"systemd-analyze fdstore {service}").stdout.count("luo_session] cache") == 1
    wrong = controller.ask("hv1", "session", name="cache", unit=service, state="finished")
    assert wrong["failed"] and "use state absent" in wrong["msg"]
    assert controller.ask("hv1", "session", name="cache", unit=service, state="absent")["changed"]
    assert not controller.ask("hv1", "session", name="cache", unit=service, state="absent")["changed"]


@pytest.mark.beyond
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "x" * 39, "memfds": ["index"]}, "39 bytes; use 1 to 38"),
        ({"name": "cache", "memfds": ["nothing"]}, "no memory file named nothing; use these names: index, pages"),
    ],
)
def test_what_cannot_be_preserved_is_refused(controller: Controller, service: str, arguments: dict[str, object], says: str) -> None:
    result = controller.ask("hv1", "session", unit=service, **arguments)
    assert result["failed"] and says in result["msg"]


@pytest.mark.beyond
def test_the_kernels_errors_are_told_apart(hv1: Host) -> None:
    done = hv1.ssh("python3 -", stdin=ERRORS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "name": "errors-1",
        "same name again": "EEXIST",
        "unknown session": "ENOENT",
        "not memory": "ENOENT",
        "memory": "taken",
        "token twice": "EEXIST",
        "memory twice": "EBUSY",
        "retrieve from outgoing": "EINVAL",
        "finish outgoing": "EINVAL",
        "incoming": False,
        "hugetlb": "ENOENT",
        "grow": "EPERM",
        "busy": "EBUSY",
        "after closing": "taken",
    }
