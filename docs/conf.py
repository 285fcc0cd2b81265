"""Sphinx configuration: ``make docs`` builds the pages into build/docs, with warnings as errors."""

from __future__ import annotations

import fcos_fast

project = "fcos_fast"
copyright = "the fcos_fast authors"
release = version = fcos_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
html_theme = "pydata_sphinx_theme"
html_title = "fcos_fast"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "header_links_before_dropdown": 6}
html_sidebars = {"*": [], "api/*": ["sidebar-nav-bs"]}

default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
