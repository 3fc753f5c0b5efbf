# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sphinx's configuration for docs/build."""

from __future__ import annotations

from docutils import nodes

project = "kvm.liveupdate"
project_copyright = "kvm.liveupdate contributors"
title = "Live updates of KVM hypervisors"
html_short_title = title

extensions = ["sphinx_antsibull_ext"]
default_role = "any"
nitpicky = True
pygments_style = "ansible"
highlight_language = "text"

html_theme = "sphinx_ansible_theme"
html_theme_options = {"documentation_home_url": "index.html", "topbar_links": {}, "vcs_pageview_mode": ""}
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_use_index = False

# What the reference refers to in Ansible's own documentation. Intersphinx would ask the network for it.
ANSIBLE = "https://docs.ansible.com/projects/ansible-core/devel/"
LABELS = {
    "action_plugins": "plugins/action.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}


def to_ansible(_app, _env, node, content):
    """A link to one of :data:`LABELS`; None for any other label, which is a warning."""
    page = LABELS.get(node.get("reftarget"))
    return nodes.reference("", "", content, refuri=ANSIBLE + page, internal=False) if page else None


def setup(app):
    """Called by Sphinx."""
    app.connect("missing-reference", to_ansible)
