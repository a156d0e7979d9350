"""Writes a graph as YAML that reads back as an equal graph."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import SecretBytes, SecretStr
from pydantic_core import PydanticSerializationError

from streamflow.config.scalars import resolve
from streamflow.errors import GraphError, Problem
from streamflow.graph.graph import GraphDeclaration, Settings
from streamflow.graph.structure import SECTIONS
from streamflow.nodes.declarations import Node

WIDTH = 88
"""Lists and mappings that fit are written on one line."""

PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*(?::[A-Za-z_][\w.]*)?(?: [\w./+-]+)*", re.ASCII)
"""Text that needs no quotes anywhere, unless it means something else without."""

UNPRINTABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def write_graph(graph: GraphDeclaration) -> str:
    """Return the graph as YAML: options that have their default are left out.

    A secret becomes a reference to an environment variable.

    Raises:
        GraphError: Something in it cannot be written, such as a lambda or an iterator.
    """
    problems: list[Problem] = []
    data: dict[str, Any] = {"version": graph.version, "name": _escape(graph.name)}
    for section in SECTIONS:
        nodes = getattr(graph, section)
        if nodes:
            data[section] = {
                name: _options(node, (section, name), problems) for name, node in nodes.items()
            }
    if graph.dead_letter is not None:
        data["dead_letter"] = _options(graph.dead_letter, ("dead_letter",), problems)
    settings = graph.model_dump(
        mode="json", include=set(Settings.model_fields) - data.keys(), exclude_defaults=True
    )
    data |= {name: _escape(value) for name, value in settings.items()}
    if graph.checkpoint is not None:
        data["checkpoint"] = graph.checkpoint.model_dump(mode="json", exclude_defaults=True)
    if problems:
        raise GraphError(problems)
    return "\n".join(_lines(data)) + "\n"


def _options(node: Node, location: tuple[str, ...], problems: list[Problem]) -> dict[str, Any]:
    """Return the options of a node that differ from their defaults, its type and inputs first."""
    options: dict[str, Any] = {}
    fields = type(node).model_fields
    first = [name for name in ("type", "inputs") if name in fields]
    for name in dict.fromkeys([*first, *fields]):
        field, value = fields[name], getattr(node, name)
        is_default = value == field.get_default(call_default_factory=True, validated_data={})
        if is_default and not (name == "type" and location[0] != "models"):
            continue
        if isinstance(value, SecretStr | SecretBytes):
            options[name] = _secret((*location, name))
            continue
        try:
            written = node.model_dump(mode="json", include={name})[name]
        except PydanticSerializationError as error:
            problems.append(Problem((*location, name), _unwritable(value, error)))
        else:
            options[name] = _escape(written)
    return options


def _secret(location: tuple[str, ...]) -> str:
    variable = re.sub(r"\W", "_", "_".join(location[-2:]), flags=re.ASCII).upper()
    variable = variable if variable[0].isalpha() else f"_{variable}"
    return f"${{{variable}:?set the {location[-1]} of {'.'.join(location[:-1])}}}"


def _unwritable(value: object, error: Exception) -> str:
    said = str(error).removeprefix("Error calling function `_name`: ValueError: ")
    if said.startswith("expected"):
        return said
    return f"expected a value that YAML can hold, found a {type(value).__name__}; keep it in Python"


def _escape(value: Any) -> Any:
    """Return a value in which no text means a variable."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, Mapping):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escape(item) for item in value]
    return value


def _lines(data: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield the lines of a block mapping; sections and nodes are always blocks."""
    for key, value in data.items():
        start = f"{'  ' * depth}{_scalar(str(key))}:"
        inline = f"{start} {_flow(value)}"
        is_short = len(inline) <= WIDTH or not isinstance(value, dict | list) or not value
        if is_short and not (isinstance(value, dict) and value and depth < 2):
            yield inline
        elif isinstance(value, dict):
            yield start
            yield from _lines(value, depth + 1)
        else:
            yield start
            yield from (f"{'  ' * (depth + 1)}- {_flow(item)}" for item in value)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return (
            f"{{{', '.join(f'{_scalar(str(key))}: {_flow(item)}' for key, item in value.items())}}}"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, str):
        if (
            PLAIN.fullmatch(value)
            and isinstance(resolve(value), str)
            and value not in ("---", "...")
        ):
            return value
        return UNPRINTABLE.sub(_code, json.dumps(value, ensure_ascii=False))
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return ".nan" if value != value else f"{'-' if value < 0 else ''}.inf"
    return json.dumps(value)


def _code(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
