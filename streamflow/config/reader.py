"""Reads a graph from a YAML file, and says everything that is wrong with it at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from streamflow.config.document import Document, Location, flatten
from streamflow.config.overrides import override
from streamflow.config.tree import compose
from streamflow.errors import GraphError, Place, Problem, suggestion
from streamflow.graph.graph import GraphDeclaration, Settings
from streamflow.graph.structure import SECTIONS, Outputs, structure_problems
from streamflow.models.model import Model
from streamflow.nodes.declarations import Node, Operator, Sink, Source
from streamflow.nodes.plugins import GROUPS, missing_packages, registered
from streamflow.nodes.problems import kind, secret_options

LARGEST_BYTES = 256 * 1024

PARENTS: Mapping[str, type[Node]] = {"sources": Source, "operators": Operator, "sinks": Sink}
"""What the nodes of a section are."""

_Graph = TypeVar("_Graph", bound=GraphDeclaration)


def read_graph(declared: type[_Graph], path: Path, *, overrides: Mapping[str, str]) -> _Graph:
    """Return the graph in the file ``path`` as one of that class.

    Args:
        declared: The class.
        path: The file.
        overrides: Values in place of those of the file, by dotted path.

    Raises:
        GraphError: With every problem, located in the file.
    """
    document, problems = _read_document(path, overrides)
    graph = _Reading(document, problems).graph(declared)
    graph._folder = path.parent
    graph._locate = document.locate
    return graph


def _read_document(path: Path, overrides: Mapping[str, str]) -> tuple[Document, list[Problem]]:
    file = os.fspath(path)
    tree, problems = compose(_read_text(path), lambda line, column: Place(file, line, column))
    if tree is None:
        _fail(path, "expected a graph, found an empty file; begin with name, sources and sinks")
    for dotted, text in overrides.items():
        try:
            tree = override(tree, dotted, text)
        except GraphError as error:
            problems += error.problems
    document = flatten(tree, os.environ)
    return document, problems + document.problems


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        _fail(path, f"expected a graph file, found none ({reason}); check the path")
    if len(data) > LARGEST_BYTES:
        message = f"expected at most {LARGEST_BYTES} bytes, found {len(data)}; "
        _fail(path, message + "is this the graph, or its data?")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        message = f"expected UTF-8 text, found the byte 0x{data[error.start]:02x}; save it as UTF-8"
        _fail(path, message, line, column)


def _fail(path: Path, message: str, line: int = 1, column: int = 1) -> NoReturn:
    raise GraphError([Problem((), message, place=Place(os.fspath(path), line, column))])


class _Reading:
    """Makes a graph of a document, collecting problems on the way."""

    def __init__(self, document: Document, problems: list[Problem]) -> None:
        self._document = document
        self._problems = problems
        self._unset = {problem.location for problem in document.problems}

    def graph(self, declared: type[_Graph]) -> _Graph:
        data = self._mapping(self._document.data, (), "a mapping with name, sources and sinks")
        if not isinstance(self._document.data, dict):
            self._raise()
        if isinstance(version := data.get("version", 1), int) and version not in (1, True):
            message = f"expected version 1, found {version}; install a streamflow that reads it"
            self._report(("version",), message)
            self._raise()
        settings = self._settings(data)
        sections = {section: self._section(section, data.get(section)) for section in SECTIONS}
        nodes = {
            section: {
                name: self._node(section, (section, name), value) for name, value in named.items()
            }
            for section, named in sections.items()
        }
        dead_letter = None
        if data.get("dead_letter") is not None:
            dead_letter = self._node("sinks", ("dead_letter",), data["dead_letter"])
        outputs = {
            name: node.output_names if isinstance(node, Operator) else None
            for name, node in nodes["operators"].items()
        }
        self._structure(sections, data.get("dead_letter"), outputs)
        if self._problems:
            self._raise()
        options = {**settings, **nodes, "dead_letter": dead_letter}
        graph: _Graph | None = self._declare(declared, options, ())
        return graph or self._raise()

    def _raise(self) -> NoReturn:
        raise GraphError(self._document.locate(self._problems)) from None

    def _report(self, location: Location, message: str, *, is_about_key: bool = False) -> None:
        self._problems.append(Problem(location, message, is_about_key))

    def _mapping(self, value: Any, location: Location, expected: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        if location not in self._unset:
            message = f"expected {expected}, found {kind(value)}; write it as key: value"
            self._report(location, message)
        return {}

    def _settings(self, data: dict[str, Any]) -> dict[str, Any]:
        for name in data:
            if name not in GraphDeclaration.model_fields:
                cure = suggestion(name, list(GraphDeclaration.model_fields))
                self._report(
                    (name,), f"expected a part of a graph, found {name}; {cure}", is_about_key=True
                )
        settings = {name: value for name, value in data.items() if name in Settings.model_fields}
        self._declare(Settings, settings, ())
        return settings

    def _section(self, section: str, value: Any) -> dict[str, Any]:
        return {} if value is None else self._mapping(value, (section,), "nodes by name")

    def _declare(self, declare: Any, options: dict[str, Any], location: Location) -> Any:
        """Return what is declared, or report why it cannot be, but for variables without value."""
        try:
            return declare(**options)
        except GraphError as error:
            problems = [problem.within(*location) for problem in error.problems]
            self._problems += [item for item in problems if item.location not in self._unset]
        return None

    def _node(self, section: str, location: Location, value: Any) -> Node | None:
        options = self._mapping(value, location, "options of a node")
        if not options:
            if isinstance(value, dict):
                self._report(location, "expected options of a node, found none; add its type")
            return None
        declare = Model if section == "models" else self._class(section, location, options)
        if declare is None:
            return None
        for name in secret_options(declare):
            self._document.conceal((*location, name))
        for message in missing_packages(declare.requires):
            self._report((*location, "type"), message)
        node: Node | None = self._declare(declare, options, location)
        return node

    def _class(self, section: str, location: Location, options: dict[str, Any]) -> Any:
        """Return the class that ``type`` names."""
        noun, group = GROUPS[section]
        known = registered(group)
        where, name = (*location, "type"), options.get("type")
        if where in self._unset:
            return None
        if name is None:
            self._report(
                where, f"expected the option type, found none; {suggestion('', list(known))}"
            )
        elif not isinstance(name, str):
            self._report(where, f"expected a type of {noun}, found {kind(name)}; write its name")
        elif name not in known:
            self._report(
                where, f"expected a type of {noun}, found {name}; {_type_cure(name, group)}"
            )
        else:
            try:
                found = known[name].load()
            except Exception as error:  # a stranger's package may raise anything while imported
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                message = f"expected the type {name} to import, found {reason}; mend its package"
                self._report(where, message)
                return None
            if isinstance(found, type) and issubclass(found, PARENTS[section]):
                return found
            message = f"expected a {noun} under the type {name}, found {found!r}; mend its package"
            self._report(where, message)
        return None

    def _structure(
        self, sections: Mapping[str, dict[str, Any]], dead_letter: Any, outputs: Outputs
    ) -> None:
        table = {
            section: {name: _raw_inputs(value) for name, value in named.items()}
            for section, named in sections.items()
        }
        known = {problem.location for problem in self._problems}
        in_turn = {
            name
            for named in sections.values()
            for name, value in named.items()
            if isinstance(value, dict) and value.get("merge") == "round_robin"
        }
        found = structure_problems(table, _raw_inputs(dead_letter), in_turn, outputs)
        for problem in found:
            location = problem.location
            is_known = location in known or location[:2] in known or location[:1] in known
            if location in known or (location[-1:] == ("inputs",) and is_known):
                continue
            self._problems.append(problem)


def _raw_inputs(value: Any) -> tuple[str, ...]:
    inputs = value.get("inputs") if isinstance(value, dict) else None
    if isinstance(inputs, str):
        return (inputs,)
    return tuple(map(str, inputs)) if isinstance(inputs, list) else ()


def _type_cure(name: str, group: str) -> str:
    for section, (noun, other) in GROUPS.items():
        if other != group and name in registered(other):
            return f"{name} is a type of {noun}: declare it under {section}"
    return suggestion(name, list(registered(group)))
