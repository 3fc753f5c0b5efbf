# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fake of AWX: the part of its REST API that the modules of awx.awx need to make and remove objects. It runs no job.

It keeps the objects in memory. The fields, their defaults and the refusals are those of AWX 24.6.1 (``awx/api/serializers.py``,
``awx/api/views/__init__.py`` and ``awx/main/models`` there). On one point it is stricter: AWX ignores a field that it does not know, and
this fake refuses it.
"""

from __future__ import annotations

import copy
import http.server
import json
import threading
import types
import typing as t
import urllib.parse

# What the API sets itself, in every object. AWX ignores it in a request.
COMMON = {"id", "type", "url", "related", "summary_fields", "created", "modified"}
RUNS = {"last_job_run", "last_job_failed", "next_job_run", "status"}
PROMPTS = {
    "inventory": None, "scm_branch": None, "job_type": None, "job_tags": None, "skip_tags": None, "limit": None, "diff_mode": None,
    "verbosity": None, "execution_environment": None, "forks": None, "job_slice_count": None, "timeout": None,
}  # fmt: skip
ASK = (
    "scm_branch", "diff_mode", "variables", "limit", "tags", "skip_tags", "job_type", "verbosity", "inventory", "credential",
    "execution_environment", "labels", "forks", "job_slice_count", "timeout", "instance_groups",
)  # fmt: skip
EDGES = ("success_nodes", "failure_nodes", "always_nodes")
# Lists of an object, and of which kind what is in them is.
TOLD = dict.fromkeys([f"notification_templates_{when}" for when in ("started", "success", "error")], "notification_templates")
TOLD_TOO = {**TOLD, "notification_templates_approvals": "notification_templates"}
REQUIRED = object()


class Kind(t.NamedTuple):
    """One kind of object: the fields that a request may set with their defaults, those that only AWX sets, and lists of other objects."""

    type: str
    fields: dict[str, object]
    read_only: frozenset[str] | set[str] = frozenset()
    lists: t.Mapping[str, str] = types.MappingProxyType({})
    deleted: int = 204


NAMED: dict[str, object] = {"name": REQUIRED, "description": ""}
KINDS = {
    "organizations": Kind(
        "organization",
        {**NAMED, "max_hosts": 0, "default_environment": None},
        {"custom_virtualenv"},
        {"galaxy_credentials": "credentials", **TOLD_TOO},
    ),
    "credentials": Kind(
        "credential",
        {**NAMED, "organization": None, "credential_type": REQUIRED, "inputs": {}},
        {"kind", "cloud", "kubernetes", "managed"},
    ),
    "execution_environments": Kind(
        "execution_environment", {**NAMED, "organization": None, "image": REQUIRED, "credential": None, "pull": ""}, {"managed"}
    ),
    "notification_templates": Kind(
        "notification_template",
        {**NAMED, "organization": REQUIRED, "notification_type": REQUIRED, "notification_configuration": {}, "messages": None},
    ),
    "projects": Kind(
        "project",
        {
            **NAMED, "local_path": "", "scm_type": "", "scm_url": "", "scm_branch": "", "scm_refspec": "", "scm_clean": False,
            "scm_track_submodules": False, "scm_delete_on_update": False, "credential": None, "timeout": 0, "organization": None,
            "scm_update_on_launch": False, "scm_update_cache_timeout": 0, "allow_override": False, "default_environment": None,
            "signature_validation_credential": None,
        },
        {*RUNS, "scm_revision", "custom_virtualenv", "last_update_failed", "last_updated"},
        TOLD,
    ),
    "inventories": Kind(
        "inventory",
        {**NAMED, "organization": REQUIRED, "kind": "", "host_filter": None, "variables": "", "prevent_instance_group_fallback": False},
        {
            "has_active_failures", "total_hosts", "hosts_with_active_failures", "total_groups", "has_inventory_sources",
            "total_inventory_sources", "inventory_sources_with_failures", "pending_deletion",
        },
        deleted=202,
    ),
    "job_templates": Kind(
        "job_template",
        {
            **NAMED, "job_type": "run", "inventory": None, "project": None, "playbook": "", "scm_branch": "", "forks": 0, "limit": "",
            "verbosity": 0, "extra_vars": "", "job_tags": "", "force_handlers": False, "skip_tags": "", "start_at_task": "", "timeout": 0,
            "use_fact_cache": False, "execution_environment": None, "host_config_key": "", "survey_enabled": False,
            "become_enabled": False, "diff_mode": False, "allow_simultaneous": False, "job_slice_count": 1, "webhook_service": "",
            "webhook_credential": None, "prevent_instance_group_fallback": False, **{f"ask_{what}_on_launch": False for what in ASK},
        },
        {*RUNS, "organization", "custom_virtualenv"},
        {"credentials": "credentials", **TOLD},
    ),
    "workflow_job_templates": Kind(
        "workflow_job_template",
        {
            **NAMED, "extra_vars": "", "organization": None, "survey_enabled": False, "allow_simultaneous": False, "inventory": None,
            "limit": None, "scm_branch": None, "webhook_service": "", "webhook_credential": None, "skip_tags": None, "job_tags": None,
            **{f"ask_{what}_on_launch": False for what in ("variables", "inventory", "scm_branch", "limit", "labels", "skip_tags", "tags")},
        },
        RUNS,
        TOLD_TOO,
    ),
    "workflow_job_template_nodes": Kind(
        "workflow_job_template_node",
        {
            **PROMPTS, "extra_data": {}, "workflow_job_template": REQUIRED, "unified_job_template": None, "identifier": REQUIRED,
            "all_parents_must_converge": False,
        },
        lists={"credentials": "credentials", **dict.fromkeys(EDGES, "workflow_job_template_nodes")},
    ),
    "workflow_approval_templates": Kind("workflow_approval_template", {**NAMED, "timeout": 0, "execution_environment": None}, RUNS),
    "schedules": Kind(
        "schedule",
        {**NAMED, **PROMPTS, "extra_data": {}, "unified_job_template": REQUIRED, "enabled": True, "rrule": REQUIRED},
        {"dtstart", "dtend", "next_run", "timezone", "until"},
    ),
}  # fmt: skip
TEMPLATES = ("projects", "job_templates", "workflow_job_templates", "workflow_approval_templates")
SURVEY_TYPES: dict[str, t.Any] = {
    "text": str, "textarea": str, "password": str, "multiplechoice": str, "multiselect": str, "integer": int, "float": (int, float),
}  # fmt: skip
EMAIL = {
    "host": str, "port": int, "username": str, "password": str, "use_tls": bool, "use_ssl": bool, "sender": str, "recipients": list,
    "timeout": int,
}  # fmt: skip
# What refers to an object that is removed loses the reference, or is removed too.
REFERENCES = {
    "credential", "default_environment", "execution_environment", "inventory", "organization", "project", "signature_validation_credential",
    "unified_job_template", "webhook_credential", "workflow_job_template",
}  # fmt: skip
CASCADE = {"schedules": ("unified_job_template",), "workflow_job_template_nodes": ("workflow_job_template",)} | dict.fromkeys(
    ("credentials", "execution_environments", "notification_templates"), ("organization",)
)
TOKEN = "token-of-the-fake"


class Refused(Exception):
    def __init__(self, status: int, body: object) -> None:
        super().__init__(str(body))
        self.status, self.body = status, body


class Controller:
    """``playbooks`` are those that AWX lists for any project. ``changes`` counts the requests that changed something."""

    def __init__(self, playbooks: set[str]) -> None:
        self.playbooks = playbooks
        self.objects: dict[str, dict[int, dict]] = {kind: {} for kind in KINDS}
        self.surveys: dict[int, dict] = {}
        self.lists: dict[tuple[int, str], list[int]] = {}
        self.updated: set[int] = set()
        self.changes = 0
        self._last = 0

    def made(self) -> dict[str, list[str]]:
        """The names of all objects by kind, without kinds that have none."""
        names = {kind: [each.get("name", each.get("identifier")) for each in found.values()] for kind, found in self.objects.items()}
        return {kind: sorted(some) for kind, some in names.items() if some}

    def named(self, kind: str, name: str) -> dict:
        (found,) = [each for each in self.objects[kind].values() if name in (each.get("name"), each.get("identifier"))]
        return found

    def add(self, kind: str, fields: dict[str, object]) -> dict:
        """A new object of these fields, if AWX would take them."""
        fields = self._taken(kind, fields)
        wanted = {name for name, default in KINDS[kind].fields.items() if default is REQUIRED}
        if missing := sorted(name for name in wanted if fields.get(name) in (None, "")):
            raise Refused(400, {name: ["This field is required."] for name in missing})
        self._last += 1
        new = {name: copy.copy(default) for name, default in KINDS[kind].fields.items() if default is not REQUIRED} | fields
        new |= {"id": self._last, "type": KINDS[kind].type, "url": f"/api/v2/{kind}/{self._last}/"}
        new = {name: value for name, value in new.items() if name not in KINDS[kind].read_only}
        self._check_values(kind, new)
        self.objects[kind][self._last] = new
        self.changes += 1
        return new

    def change(self, kind: str, old: dict, fields: dict[str, object]) -> dict:
        fields = self._taken(kind, fields)
        ignored = COMMON | KINDS[kind].read_only
        new = {**old, **{name: value for name, value in fields.items() if name not in ignored}}
        if kind == "workflow_job_template_nodes":
            new["workflow_job_template"] = old["workflow_job_template"]
        self._check_values(kind, new)
        self.objects[kind][old["id"]] = new
        self.changes += 1
        return new

    def remove(self, kind: str, number: int) -> None:
        gone = self.objects[kind].pop(number)
        if kind == "workflow_job_template_nodes" and gone["unified_job_template"] in self.objects["workflow_approval_templates"]:
            self.remove("workflow_approval_templates", gone["unified_job_template"])
        for other, found in self.objects.items():
            for each in list(found.values()):
                holders = [name for name in REFERENCES.intersection(each) if each[name] == number]
                if set(holders).intersection(CASCADE.get(other, ())):
                    self.remove(other, each["id"])
                else:
                    each.update(dict.fromkeys(holders))
        self.lists = {key: [each for each in ids if each != number] for key, ids in self.lists.items() if key[0] != number}
        self.surveys.pop(number, None)
        self.changes += 1

    def _taken(self, kind: str, fields: dict[str, object]) -> dict[str, object]:
        """The fields of a request as AWX takes them: null for a text or a boolean is an empty one."""
        known = COMMON | set(KINDS[kind].fields) | KINDS[kind].read_only
        if unknown := sorted(set(fields) - known):
            raise Refused(400, {name: [f"AWX does not know this field of {kind}."] for name in unknown})
        taken = {}
        for name, value in fields.items():
            default = KINDS[kind].fields.get(name)
            taken[name] = type(default)() if value is None and isinstance(default, (bool, str)) else value
            if isinstance(default, (bool, int, str, dict)) and type(taken[name]) is not type(default):
                raise Refused(400, {name: [f"Not a valid {type(default).__name__}: {value!r}."]})
        return taken

    def _check_values(self, kind: str, new: dict) -> None:
        same = ("identifier", "workflow_job_template") if kind == "workflow_job_template_nodes" else ("name", "organization")
        if "unified_job_template" in new and kind == "schedules":
            same = ("name", "unified_job_template")
        for each in self.objects[kind].values():
            if each["id"] != new["id"] and all(each.get(name) == new.get(name) for name in same):
                raise Refused(400, {"__all__": [f"{kind} with this {' and '.join(same)} exists already."]})
        if kind == "notification_templates":
            _check_notification(new)
        if kind == "job_templates":
            self._check_job_template(new)
        if kind in ("schedules", "workflow_job_template_nodes"):
            self._check_prompts(new)
        if kind == "schedules" and not ("DTSTART" in new["rrule"] and "RRULE:" in new["rrule"] and "INTERVAL" in new["rrule"]):
            raise Refused(400, {"rrule": ["DTSTART, RRULE and INTERVAL are required."]})

    def _check_job_template(self, new: dict) -> None:
        project = self.objects["projects"].get(new["project"])
        if project is None:
            raise Refused(400, {"project": ["This field is required."]})
        if new["inventory"] not in self.objects["inventories"] and not new["ask_inventory_on_launch"]:
            raise Refused(400, {"inventory": ["You must either set a default value or ask to prompt on launch."]})
        if project["id"] not in self.updated or new["playbook"] not in self.playbooks:
            raise Refused(400, {"playbook": ["Playbook not found for project."]})
        if (new["scm_branch"] or new["ask_scm_branch_on_launch"]) and not project["allow_override"]:
            raise Refused(400, {"scm_branch": ["Project does not allow overriding branch."]})

    def _check_prompts(self, new: dict) -> None:
        """AWX takes a value for the launch only if the template asks for it."""
        template = self._template(new["unified_job_template"])
        for name in PROMPTS:
            ask = f"ask_{'tags' if name == 'job_tags' else name}_on_launch"
            if template and new[name] is not None and not template.get(ask):
                raise Refused(400, {name: ["Field is not configured to prompt on launch."]})
        survey = self.surveys.get(template["id"], {}) if template.get("survey_enabled") else {}
        questions = {each["variable"] for each in survey.get("spec", [])}
        if rejected := sorted(set(new["extra_data"]) - questions):
            raise Refused(400, {"extra_data": [f"Variables {', '.join(rejected)} are not allowed on launch."]})

    def _template(self, number: int | None) -> dict:
        """The template of any kind with this number; empty if there is none."""
        return next((self.objects[kind][number] for kind in TEMPLATES if number in self.objects[kind]), {})

    def set_survey(self, number: int, spec: dict) -> None:
        for field, kind in (("name", str), ("description", str), ("spec", list)):
            if not isinstance(spec.get(field), kind):
                raise Refused(400, {"error": f"Field '{field}' is missing from survey spec, or has another type."})
        if not spec["spec"]:
            raise Refused(400, {"error": "'spec' doesn't contain any items."})
        if len({each.get("variable") for each in spec["spec"]}) < len(spec["spec"]):
            raise Refused(400, {"error": "'variable' duplicated in survey."})
        for each in spec["spec"]:
            _check_question(each)
        self.surveys[number] = spec
        self.changes += 1

    def link(self, number: int, name: str, wanted: dict) -> None:
        """Add to a list of an object, or take out of it."""
        if unknown := set(wanted) - {"id", "disassociate"}:
            raise Refused(400, {each: ["AWX does not know this field of a list."] for each in unknown})
        ids = self.lists.setdefault((number, name), [])
        if wanted.get("disassociate"):
            ids.remove(wanted["id"])
        else:
            if name.endswith("_nodes"):
                self._check_edge(number, name, wanted["id"])
            if name == "credentials":
                kinds = [self.objects["credentials"][each]["credential_type"] for each in (*ids, wanted["id"])]
                if len(set(kinds)) < len(kinds):
                    raise Refused(400, {"error": "Cannot assign multiple credentials of one type."})
            ids.append(wanted["id"])
        self.changes += 1

    def _check_edge(self, number: int, name: str, child: int) -> None:
        nodes = self.objects["workflow_job_template_nodes"]
        if nodes[number]["workflow_job_template"] != nodes[child]["workflow_job_template"]:
            raise Refused(400, {"Error": "The node is of another workflow."})
        if any(child in self.lists.get((number, edge), []) for edge in EDGES if edge != name):
            raise Refused(400, {"Error": "Relationship not allowed."})
        reached, ahead = set(), [child]
        while ahead:
            reached.add(here := ahead.pop())
            ahead += [each for edge in EDGES for each in self.lists.get((here, edge), []) if each not in reached]
        if number in reached:
            raise Refused(400, {"Error": "Cycle detected."})

    def shown(self, kind: str, item: dict) -> dict:
        """An object as AWX answers it."""
        url, related, summary = item["url"], {}, {}
        answer = {**dict.fromkeys(KINDS[kind].read_only), **item}
        if kind in ("job_templates", "workflow_job_templates"):
            related["survey_spec"] = f"{url}survey_spec/"
        if kind == "job_templates":
            answer["organization"] = self.objects["projects"].get(item["project"], {}).get("organization")
        if kind == "projects":
            answer["scm_revision"] = "0" * 40 if item["id"] in self.updated else ""
            related["update"] = f"{url}update/"
            summary["current_update"] = {"id": item["id"], "status": "running"}
        if kind == "workflow_job_template_nodes":
            answer |= {edge: self.lists.get((item["id"], edge), []) for edge in EDGES}
            related["create_approval_template"] = f"{url}create_approval_template/"
            if template := self._template(item["unified_job_template"]):
                related["unified_job_template"] = template["url"]
        return {**answer, "related": related, "summary_fields": summary}

    def answer(self, method: str, path: str, query: dict[str, str], body: dict) -> tuple[int, object]:
        """The status and the body for one request."""
        parts = path.removeprefix("/api/v2/").strip("/").split("/")
        kind = parts[0]
        if kind == "project_updates" and method == "GET":
            self.updated.add(int(parts[1]))
            return 200, {"id": int(parts[1]), "status": "successful"}
        if kind == "unified_job_templates" and method == "GET":
            return 200, self._list([self.shown(of, each) for of in TEMPLATES for each in self.objects[of].values()], query)
        if kind not in KINDS:
            raise Refused(404, {"detail": f"The fake has no {path}."})
        if len(parts) == 1:
            return self._answer_kind(method, kind, query, body)
        item = self.objects[kind].get(int(parts[1])) if parts[1].isdigit() else None
        if item is None:
            raise Refused(404, {"detail": "Not found."})
        if len(parts) == 2:
            return self._answer_item(method, kind, item, body)
        return self._answer_part(method, kind, item, parts[2], body)

    def _answer_kind(self, method: str, kind: str, query: dict[str, str], body: dict) -> tuple[int, object]:
        if method == "GET":
            known = {"type", "organization"} | COMMON | set(KINDS[kind].fields)
            if unknown := {name.removeprefix("or__") for name in query} - known:
                raise Refused(400, {"detail": f"{kind} has no field named {', '.join(sorted(unknown))}"})
            return 200, self._list([self.shown(kind, each) for each in self.objects[kind].values()], query)
        if method == "POST" and kind != "workflow_approval_templates":
            return 201, self.shown(kind, self.add(kind, body))
        raise Refused(405, {"detail": f'Method "{method}" not allowed.'})

    def _answer_item(self, method: str, kind: str, item: dict, body: dict) -> tuple[int, object]:
        if method == "GET":
            return 200, self.shown(kind, item)
        if method == "PATCH":
            return 200, self.shown(kind, self.change(kind, item, body))
        if method == "DELETE":
            self.remove(kind, item["id"])
            return KINDS[kind].deleted, None
        raise Refused(405, {"detail": f'Method "{method}" not allowed.'})

    def _answer_part(self, method: str, kind: str, item: dict, part: str, body: dict) -> tuple[int, object]:
        number = item["id"]
        if part == "survey_spec" and kind in ("job_templates", "workflow_job_templates"):
            if method == "POST":
                self.set_survey(number, body)
            return 200, self.surveys.get(number, {})
        if part == "create_approval_template" and kind == "workflow_job_template_nodes" and method == "POST":
            if unknown := set(body) - {"name", "description", "timeout"}:
                raise Refused(400, {name: ["AWX does not know this field of an approval."] for name in unknown})
            template = self.add("workflow_approval_templates", body)
            item["unified_job_template"] = template["id"]
            return 201, self.shown("workflow_approval_templates", template)
        if part in KINDS[kind].lists:
            of = self.objects[KINDS[kind].lists[part]]
            if method == "GET":
                return 200, self._list([self.shown(KINDS[kind].lists[part], of[each]) for each in self.lists.get((number, part), [])], {})
            if method == "POST" and body.get("id") in of:
                self.link(number, part, body)
                return 204, None
        raise Refused(404, {"detail": f"The fake has no {method} of {item['url']}{part}/."})

    @staticmethod
    def _list(items: list[dict], query: dict[str, str]) -> dict:
        either = {name.removeprefix("or__"): value for name, value in query.items() if name.startswith("or__")}
        every = {name: value for name, value in query.items() if not name.startswith("or__")}
        found = [
            each
            for each in items
            if all(str(each.get(name)) == value for name, value in every.items())
            and (not either or any(str(each.get(name)) == value for name, value in either.items()))
        ]
        return {"count": len(found), "next": None, "previous": None, "results": found}


def _check_notification(new: dict) -> None:
    if new["notification_type"] != "email":
        raise Refused(400, {"notification_type": ["The fake knows email only."]})
    if wrong := sorted(name for name, kind in EMAIL.items() if type(new["notification_configuration"].get(name)) is not kind):
        raise Refused(400, {"__all__": [f"Missing or of another type: {', '.join(wrong)}."]})


def _check_question(question: dict) -> None:
    for name, kind in (("type", str), ("question_name", str), ("variable", str), ("required", bool)):
        if not isinstance(question.get(name), kind):
            raise Refused(400, {"error": f"'{name}' missing from survey question, or of another type."})
    if question["type"] not in SURVEY_TYPES:
        raise Refused(400, {"error": f"'{question['type']}' is not an allowed question type."})
    if question.get("default", "") != "" and not isinstance(question["default"], SURVEY_TYPES[question["type"]]):
        raise Refused(400, {"error": f"Default value {question['default']!r} has another type."})
    for name in ("min", "max"):
        if not isinstance(question.get(name, 0), int):
            raise Refused(400, {"error": f"The {name} limit is expected to be integer."})
    if question["type"] in ("multiplechoice", "multiselect"):
        if "choices" not in question:
            raise Refused(400, {"error": "Must specify choices."})
        if any(each not in question["choices"] for each in question.get("default", "").splitlines()):
            raise Refused(400, {"error": "Default choice must be answered from the choices listed."})


class FakeController:
    """The fake behind a port of this machine: ``with FakeController(playbooks) as fake`` has ``fake.url`` and ``fake.controller``."""

    def __init__(self, playbooks: set[str]) -> None:
        self.controller = controller = Controller(playbooks)
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        raise Refused(401, {"detail": "Authentication credentials were not provided."})
                    query = dict(urllib.parse.parse_qsl(url.query))
                    with lock:
                        status, body = controller.answer(self.command, url.path, query, json.loads(text or b"{}"))
                except Refused as error:
                    status, body = error.status, error.body
                data = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("X-API-Product-Name", "AWX")
                self.send_header("X-API-Product-Version", "24.6.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeController:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.server.server_close()
