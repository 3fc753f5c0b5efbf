# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._rendered_html."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _rendered_html
short_description: "Internal - an HTML page from its template, with autoescaping"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Escapes every value. M(ansible.builtin.template) cannot do that. Its Jinja2 environment ignores C({% autoescape true %}) since
    ansible-core 2.19.
positional: _input, template
options:
  _input:
    description: The variables of the template.
    type: dict
    required: true
  template:
    description: The text of the template.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show a page
  ansible.builtin.debug:
    msg: "{{ {'name': '<script>'} | kvm.liveupdate._rendered_html('<h1>{{ name }}</h1>') }}"
"""

RETURN = r"""
_value:
  description: The page.
  type: str
  sample: "<h1>&lt;script&gt;</h1>"
"""

import typing as t

import jinja2


def rendered_html(variables: dict[str, t.Any], template: str) -> str:
    """The page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return str(environment.from_string(str(template)).render(variables))


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., str]]:
        """The filters of this file."""
        return {"_rendered_html": rendered_html}
