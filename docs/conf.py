"""Sphinx configuration; see https://www.sphinx-doc.org/en/master/usage/configuration.html."""

from collections.abc import Sequence
from importlib.metadata import version as installed_version

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from streamflow.config.catalog import Entry, Option, entries
from streamflow.nodes import Receiver

project = "streamflow"
author = "The streamflow authors"
release = installed_version("streamflow-online")
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


class Operator(SphinxDirective):
    """Describes one operator with the options of its own, those of every node left out."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return what stands on the page."""
        name = self.arguments[0]
        [entry] = (one for one in entries() if (one.kind, one.name) == ("operator", name))
        own = [option for option in entry.options if option.name not in Receiver.model_fields]
        return self.parse_text_to_nodes("\n".join([_text(entry), "", *_table(own), ""]))


def _described(entry: Entry) -> str:
    """Return a section about a type, in Markdown."""
    return "\n".join([f"### `{entry.name}`", "", _text(entry), "", *_table(entry.options), ""])


def _text(entry: Entry) -> str:
    return "\n\n".join((entry.summary, *entry.details)).replace("``", "`")


def _table(options: Sequence[Option]) -> list[str]:
    """Return the lines of a table of options; none if there are none."""
    lines = ["| option | value | default | |", "|---|---|---|---|"] if options else []
    for option in options:
        default = "required" if option.default is None else f"`{option.default}`"
        cells = (f"`{option.name}`", option.type, default, option.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def setup(app: Sphinx) -> None:
    """Make the directives known."""
    app.add_directive("types", Types)
    app.add_directive("operator", Operator)
