"""What there is to declare: every installed type with its options, as commands and docs show it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamflow.graph.graph import Checkpoints, FailureBudget, Settings
from streamflow.models.feature import Feature
from streamflow.models.model import Model
from streamflow.nodes.declarations import Buffer, Declaration, Receiver
from streamflow.nodes.plugins import FORMATS, GROUPS, missing_packages, registered
from streamflow.nodes.problems import secret_options

TYPES = {
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
    "null": "nothing",
}
"""JSON's types in the words of messages."""

PARTS: dict[str, type[Declaration]] = {
    "graph": Settings,
    "checkpoint": Checkpoints,
    "failure_budget": FailureBudget,
    "buffer": Buffer,
    "feature": Feature,
}
"""What is declared besides nodes and formats."""

REFERENCES = {declared.__name__: name for name, declared in PARTS.items()} | {"Format": "format"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a type.

    Attributes:
        name: In the file.
        type: What its value is, in words.
        default: As it would stand in a file; ``None`` if the option is required.
        description: What it is for.
    """

    name: str
    type: str
    default: str | None
    description: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One type of node, format or part.

    Attributes:
        kind: ``source``, ``operator``, ``model``, ``sink``, ``format`` or ``part``.
        name: As in ``type: name``.
        summary: One line.
        details: The other paragraphs about it.
        options: Those that are required, then the others in the order of the declaration, those of
            all nodes of the kind last.
        missing: For each package that it lacks, what to do.
    """

    kind: str
    name: str
    summary: str
    details: tuple[str, ...]
    options: tuple[Option, ...]
    missing: tuple[str, ...]


def entries() -> Iterator[Entry]:
    """Yield all that is installed, by kind and name."""
    for noun, group in (*list(GROUPS.values())[:2], ("model", ""), GROUPS["sinks"]):
        if not group:
            yield _entry("model", "model", Model)
        for name, point in registered(group).items() if group else ():
            yield _entry(noun, name, point.load())
    for name, point in registered(FORMATS).items():
        yield _entry("format", name, point.load())
    for name, declared in PARTS.items():
        yield _entry("part", name, declared)


def _entry(kind: str, name: str, declared: type[Declaration]) -> Entry:
    summary, _, details = inspect.cleandoc(declared.__doc__ or "").partition("\n\n")
    return Entry(
        kind,
        name,
        " ".join(summary.split()),
        _paragraphs(details),
        tuple(_options(declared)),
        tuple(missing_packages(getattr(declared, "requires", {}))),
    )


def _paragraphs(details: str) -> tuple[str, ...]:
    """Return paragraphs, a line each, without what a docstring says to those who write Python."""
    text = re.split(r"^(?:Attributes|Args|Raises):$", details, maxsplit=1, flags=re.MULTILINE)[0]
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def _options(declared: type[Declaration]) -> Iterator[Option]:
    schema = declared.model_json_schema()
    required, secret = schema.get("required", ()), secret_options(declared)
    properties: dict[str, Any] = schema.get("properties", {})
    shared = [name for name in Receiver.model_fields if name in properties]
    own = [name for name in properties if name not in ("type", *shared)]
    for name in [*sorted(own, key=lambda name: name not in required), *shared]:
        found = properties[name]
        text = "secret text" if name in secret else _type(found)
        default = None if name in required else _default(declared, name)
        yield Option(name, text, default, found.get("description", ""))


def _default(declared: type[Declaration], name: str) -> str:
    """Return the default as it would stand in a file."""
    field = declared.model_fields[name]
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Declaration):
        shown = value.model_dump(mode="json")
        return getattr(value, "name", "") or (_flow(shown) if shown else "its defaults")
    return _flow(value)


def _flow(value: Any) -> str:
    """Return plain data in YAML's short notation."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(schema: dict[str, Any]) -> str:
    """Return what a JSON Schema takes, in words."""
    if "const" in schema:
        return _flow(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(_flow, schema['enum']))}"
    if several := schema.get("anyOf") or schema.get("oneOf"):
        kinds = [_type(item) for item in several if item.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return REFERENCES.get(schema["$ref"].rpartition("/")[2], "mapping")
    kind, items = schema.get("type", ""), schema.get("items")
    if kind == "array" and items:
        return (
            f"list of ({_type(items)})"
            if {"anyOf", "oneOf"} & items.keys()
            else f"list of {_type(items)}"
        )
    return TYPES.get(kind, "anything")
