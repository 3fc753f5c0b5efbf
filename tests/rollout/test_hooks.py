# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The examples of docs/docsite/rst/hooks.rst, as they are there, each in an update and against the program from Debian.

The host hv1 is updated. The program runs on hv2, which is not.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import COLLECTION, LIMIT_S, NEW, apt, unpacked, until
from .test_rollout import KEPT, said

pytestmark = pytest.mark.beyond

PAGE = COLLECTION / "docs/docsite/rst/hooks.rst"
PACKAGES = ["haproxy", "icinga2-bin", "prometheus-alertmanager", "socat"]
AWAY = "10.99.2.2"  # the address of hv2
# On hv2: the program finds its files where its package puts them. The lists of files of the host itself stay visible.
READY = """set -e
mount -t overlay usr -o lowerdir={daemons}/usr:{sshd}/usr:/usr /usr
for folder in cache log spool; do mount -t tmpfs $folder /var/$folder; done
mkdir -p /run/haproxy
"""
# In the controller's network: one request, and what came back.
ASK = """import sys, urllib.request
url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode() or None, {"Content-Type": "application/json"})
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).read().decode())
"""
HAPROXY = """global
  stats socket /run/haproxy/admin.sock mode 600 level admin
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend all
  bind 127.0.0.1:8080
  default_backend web
backend web
  server web1 127.0.0.1:8001
  server web10 127.0.0.1:8002
"""
ALERTMANAGER = """route: {receiver: nobody}
receivers: [{name: nobody}]
"""
ICINGA = """const NodeName = "icinga.example.org"
include <itl>
object Endpoint NodeName {}
object Zone NodeName { endpoints = [ NodeName ] }
object ApiListener "api" {}
object IcingaApplication "app" {}
object ApiUser "ansible" {
  password = "secret"
  permissions = [ "actions/schedule-downtime", "actions/remove-downtime" ]
}
object ApiUser "test" {
  password = "secret"
  permissions = [ "objects/query/*" ]
}
object Host "hv1" { check_command = "dummy" }
object Host "hv10" { check_command = "dummy" }
object Service "ssh" {
  host_name = "hv1"
  check_command = "dummy"
}
"""
CERTIFICATES = """set -e
folder=/var/lib/icinga2/certs
mkdir -p $folder /run/icinga2 /var/log/icinga2 /var/cache/icinga2 /var/spool/icinga2
icinga2 pki new-ca
icinga2 pki new-cert --cn icinga.example.org --key $folder/icinga.example.org.key --csr $folder/csr
icinga2 pki sign-csr --csr $folder/csr --cert $folder/icinga.example.org.crt
cp /var/lib/icinga2/ca/ca.crt $folder/ca.crt
"""


@pytest.fixture(name="daemons", scope="session")
def programs_of_debian() -> Path:
    """The programs, with all that they need and that this machine does not have."""
    planned = apt("-q", "-s", "install", "--no-install-recommends", *PACKAGES)
    lacking = re.findall(r"^Inst (\S+)", planned, re.MULTILINE)
    return unpacked(f"daemons-{hashlib.sha256(' '.join(lacking).encode()).hexdigest()[:12]}", lacking)


class Stage:
    """A fleet in whose second host a program runs."""

    def __init__(self, fleet, daemons: Path) -> None:
        self.fleet, (self.host, self.away) = fleet, fleet.hosts
        self.there("sh", "-c", READY.format(daemons=daemons, sshd=fleet.sshd))

    def there(self, *command: str, given: str = "") -> str:
        """Run a command on the second host."""
        done = subprocess.run(self.away.inside(*command), input=given, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *command: str) -> None:
        """Start the program on the second host. It ends with that host."""
        with (self.fleet.path / "daemon.log").open("wb") as log:
            subprocess.Popen(self.away.inside(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ask(self, url: str, body: object = None) -> object:
        """What an HTTP server there answers; nothing if it does not."""
        words = [*self.fleet._inside(), sys.executable, "-c", ASK, url, json.dumps(body) if body else ""]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        return json.loads(done.stdout.strip() or "{}") if done.returncode == 0 else None

    def example(self, name: str) -> str:
        """The task file of this name that the page shows."""
        block = re.search(rf"^    (# {re.escape(name)}\b.*\n(?:(?:    .*)?\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        assert block, f"{PAGE} does not show {name}"
        path = self.fleet.path / name
        path.write_text(re.sub(r"^    ", "", block[1].rstrip() + "\n", flags=re.MULTILINE))
        return str(path)

    def update(self, before: str, after: str, meanwhile, *words: str, **variables: object) -> None:
        """Update the first host with these tasks. In the middle of the update look at the program. Then run the same command again."""
        self.host.plan({"guest preserved": "wait"})
        hooks = {"hypervisor_update_before": [self.example(before)], "hypervisor_update_after": [self.example(after)]}
        extra = {"hypervisor_update_hosts": "hv1", **hooks, **variables}
        run = self.fleet.start(*words, **extra)
        until("the run is in the middle of the update, or has ended", lambda: self.host.waits() or run.process.poll() is not None)
        assert self.host.waits(), run.end()[1]
        meanwhile()
        self.host.go_on()
        code, output = run.end()
        assert code == 0 and said(output) == [f"hv1: {KEPT}"], output
        # The host has the kernel already, so only the tasks after the update run.
        code, output = self.fleet.start(*words, **extra).end()
        assert code == 0 and said(output) == [f"hv1: runs {NEW} already"], output


@pytest.fixture(name="stage")
def a_stage(fleet, daemons: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("no_proxy", "*")
    return Stage(fleet(2), daemons)


def test_haproxy(stage):
    (stage.fleet.path / "haproxy.cfg").write_text(HAPROXY)
    stage.start("haproxy", "-db", "-f", f"{stage.fleet.path}/haproxy.cfg")
    socket = ("socat", "stdio", "unix-connect:/run/haproxy/admin.sock")
    until("haproxy", lambda: stage.there("sh", "-c", "ls /run/haproxy").strip() == "admin.sock")

    def states() -> dict[str, str]:
        rows = [line.split(",") for line in stage.there(*socket, given="show stat\n").splitlines() if line.startswith("web,web")]
        return {row[1]: row[17] for row in rows}

    def meanwhile() -> None:
        assert states() == {"web1": "DRAIN", "web10": "no check"}

    assert states() == {"web1": "no check", "web10": "no check"}
    stage.update("haproxy-drain.yml", "haproxy-ready.yml", meanwhile, haproxy_host="hv2", haproxy_servers=["web/web1"])
    assert states() == {"web1": "no check", "web10": "no check"}


def test_alertmanager(stage):
    url = f"http://{AWAY}:9093"
    (stage.fleet.path / "alertmanager.yml").write_text(ALERTMANAGER)
    options = ("--storage.path=/run/alertmanager", f"--web.listen-address={AWAY}:9093", "--cluster.listen-address=")
    stage.start("prometheus-alertmanager", f"--config.file={stage.fleet.path}/alertmanager.yml", *options)
    until("the Alertmanager", lambda: stage.ask(f"{url}/api/v2/status") is not None)
    names = ["hv1", "hv1:9100", "hv10:9100"]
    alerts = [{"labels": {"alertname": "down", "instance": name}, "endsAt": "2999-01-01T00:00:00Z"} for name in names]
    assert stage.ask(f"{url}/api/v2/alerts", alerts) is not None

    def states() -> dict[str, str]:
        return {alert["labels"]["instance"]: alert["status"]["state"] for alert in stage.ask(f"{url}/api/v2/alerts")}

    until("the alerts", lambda: states() == dict.fromkeys(names, "active"))
    silenced = {"hv1": "suppressed", "hv1:9100": "suppressed", "hv10:9100": "active"}
    stage.update(
        "alertmanager-silence.yml",
        "alertmanager-expire.yml",
        lambda: until("the silence", lambda: states() == silenced),
        alertmanager_url=url,
    )
    until("the end of the silence", lambda: states() == dict.fromkeys(names, "active"))


def test_icinga(stage):
    path = stage.fleet.path
    (path / "icinga.conf").write_text(ICINGA)
    user = ("env", "ICINGA2_USER=root", "ICINGA2_GROUP=root")
    stage.there(*user, "sh", "-c", CERTIFICATES)
    (path / "ca.pem").write_text(stage.there("cat", "/var/lib/icinga2/certs/ca.crt"))
    (path / "etc-hosts").write_text(f"127.0.0.1 localhost\n{AWAY} icinga.example.org\n")
    stage.start(*user, "icinga2", "daemon", "--config", f"{path}/icinga.conf")
    # On the host itself: the test asks with a password that the page does not know.
    ask = "import base64, json, ssl, sys, urllib.request as u; c = ssl._create_unverified_context()"
    ask += "; r = u.Request('https://127.0.0.1:5665/v1/objects/' + sys.argv[1], headers={'Accept': 'application/json',"
    ask += " 'Authorization': 'Basic ' + base64.b64encode(b'test:secret').decode()})"
    ask += "; print(u.urlopen(r, context=c, timeout=30).read().decode())"

    def asked(what: str) -> list[dict] | None:
        words = stage.away.inside("env", "no_proxy=*", sys.executable, "-c", ask, what)
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        return json.loads(done.stdout)["results"] if done.returncode == 0 else None

    def downtimes() -> list[tuple[str, str]]:
        return sorted((found["attrs"]["host_name"], found["attrs"]["service_name"]) for found in asked("downtimes"))

    def meanwhile() -> None:
        assert downtimes() == [("hv1", ""), ("hv1", "ssh")]

    until("Icinga", lambda: asked("hosts"))
    known = f"mount --bind {path}/etc-hosts /etc/hosts"
    words = ("unshare", "--mount", "sh", "-c", f'mount --make-rprivate / && {known} && exec "$@"', "sh")
    login = {"icinga_user": "ansible", "icinga_password": "secret", "icinga_ca": f"{path}/ca.pem"}
    assert downtimes() == []
    stage.update("icinga-downtime.yml", "icinga-end.yml", meanwhile, *words, icinga_url="https://icinga.example.org:5665", **login)
    assert downtimes() == []
