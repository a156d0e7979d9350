"""The JSON Schema of graph files, for editors, made of the declarations of all installed types.

Editors that know it complete keys and types and mark what is wrong. It says less than the reader,
which also knows how nodes are connected: a file that it refuses is refused by the reader, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from streamflow.codecs.formats import Format
from streamflow.graph.graph import GraphDeclaration, Settings
from streamflow.graph.structure import SECTIONS
from streamflow.models.model import Model
from streamflow.nodes.declarations import Declaration
from streamflow.nodes.plugins import FORMATS, GROUPS, registered

Schema = dict[str, Any]

SCHEMA_FILE: Final = "streamflow.schema.json"

SCHEMA_LINE: Final = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
"""What a graph file begins with, for editors, where the schema lies beside it."""

VARIABLE: Schema = {"type": "string", "pattern": r"\$\{", "description": "A variable: ${NAME}."}


def schema_text() -> str:
    """Return the schema as JSON."""
    return json.dumps(graph_schema(), indent=2) + "\n"


def write_schema(folder: Path) -> None:
    """Write the schema beside the graphs of a folder, which `SCHEMA_LINE` points to."""
    (folder / SCHEMA_FILE).write_text(schema_text(), encoding="utf-8")


def graph_schema() -> Schema:
    """Return the schema of a whole graph file."""
    definitions: Schema = {"variable": VARIABLE}
    definitions["format"] = _format(definitions)
    definitions["model"] = _own(Model, definitions)
    properties = _settings(definitions)
    for section, (noun, group) in GROUPS.items():
        for name, point in registered(group).items():
            definitions[f"{noun}.{name}"] = _of_type(point.load(), name, definitions)
        definitions[noun] = _any_of(noun, list(registered(group)))
        properties[section] |= _by_name(noun)
    properties["models"] |= _by_name("model")
    properties["dead_letter"] |= _to("sink")
    order = ["version", "name", *SECTIONS, "dead_letter"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streamflow graph",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "sources", "sinks"],
        "properties": {name: properties[name] for name in dict.fromkeys([*order, *properties])},
        "$defs": dict(sorted(definitions.items())),
    }


def _settings(definitions: Schema) -> Schema:
    """Return the schemas of all keys of a file, those of the sections without their nodes."""
    sections = {
        name: {"description": field.description or ""}
        for name, field in GraphDeclaration.model_fields.items()
        if name not in Settings.model_fields
    }
    properties: Schema = _own(Settings, definitions)["properties"]
    return properties | sections


def _own(declared: type[Declaration], definitions: Schema) -> Schema:
    """Return a declaration's schema in the terms of a file, and define what it refers to."""
    prefix = f"{declared.__module__}.{declared.__name__}"
    made = declared.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    schema: Schema = {"properties": {}} | _cleaned(made)
    for name, definition in schema.pop("$defs", {}).items():
        if name != Format.__name__:
            definitions[f"{prefix}.{name}"] = definition
    return schema


def _of_type(declared: type[Declaration], name: str, definitions: Schema) -> Schema:
    schema = _own(declared, definitions)
    schema["properties"]["type"] = {"const": name}
    return schema | {"required": ["type", *schema.get("required", [])]}


def _any_of(noun: str, names: list[str]) -> Schema:
    """Return the schema of a node of any type; which one decides what else it may say."""
    chosen = [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": _to(f"{noun}.{name}"),
        }
        for name in names
    ]
    return {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": names}},
        "allOf": chosen,
    }


def _format(definitions: Schema) -> Schema:
    """Return the schema of a format: its name, or its name with its options."""
    points = registered(FORMATS)
    named = {name: _own(point.load(), definitions) for name, point in points.items()}
    with_options = {
        "type": "object",
        "properties": named,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [{"enum": list(points)}, with_options]}


def _by_name(noun: str) -> Schema:
    return {"type": "object", "additionalProperties": _to(noun)}


def _to(definition: str) -> Schema:
    return {"$ref": f"#/$defs/{definition}"}


def _cleaned(schema: Any) -> Any:
    """Return a schema of pydantic's without titles, with formats and variables as files have."""
    if isinstance(schema, list):
        return [_cleaned(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("$ref", "").endswith(f".{Format.__name__}"):
        return schema | _to("format")
    cleaned = {
        key: value if key in ("default", "const", "enum", "required") else _members(key, value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }
    is_scalar = cleaned.get("type") in ("integer", "number", "boolean") or "enum" in cleaned
    if not is_scalar:
        return cleaned
    kept = {key: cleaned.pop(key) for key in ("description", "default") if key in cleaned}
    return kept | {"anyOf": [cleaned, _to("variable")]}


def _members(key: str, value: Any) -> Any:
    """Return a part of a schema; what lies under these keys is schemas by name."""
    if key in ("properties", "$defs"):
        return {name: _cleaned(item) for name, item in value.items()}
    return _cleaned(value)
