"""Sphinx configuration; see https://www.sphinx-doc.org/en/master/usage/configuration.html."""

from importlib.metadata import version as installed_version

project = "streamflow"
author = "The streamflow authors"
release = installed_version("streamflow")
version = release

extensions = ["myst_parser", "sphinx.ext.doctest"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"streamflow {release}"
html_static_path = ["_static"]
