"""Sphinx configuration; see https://www.sphinx-doc.org/en/master/usage/configuration.html."""

from importlib.metadata import version as installed_version

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from streamflow.config.catalog import Entry, entries

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


class Types(SphinxDirective):
    """Describes all installed types of a kind, from their declarations."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return what stands on the page."""
        kind = self.arguments[0]
        text = "\n".join(_described(entry) for entry in entries() if entry.kind == kind)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _described(entry: Entry) -> str:
    """Return a section about a type, in Markdown."""
    text = "\n\n".join((entry.summary, *entry.details)).replace("``", "`")
    lines = [f"### `{entry.name}`", "", text, ""]
    if entry.options:
        lines += ["| option | value | default | |", "|---|---|---|---|"]
        for option in entry.options:
            default = "required" if option.default is None else f"`{option.default}`"
            cells = (f"`{option.name}`", option.type, default, option.description)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def setup(app: Sphinx) -> None:
    """Make the directive known."""
    app.add_directive("types", Types)
