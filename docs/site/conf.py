# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sphinx's configuration for docs/build. No intersphinx: the site is built without a network."""

from __future__ import annotations

project = "kvm.liveupdate"
copyright = "kvm.liveupdate contributors"
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
