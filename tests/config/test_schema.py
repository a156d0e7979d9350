"""The schema of graph files takes what the reader takes, and refuses much of what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from streamflow.config.catalog import entries
from streamflow.config.schema import graph_schema
from streamflow.graph import Graph
from streamflow.nodes.plugins import OPERATORS, SINKS, SOURCES, registered

ROOT = Path(__file__).parents[2]

WHOLE = """\
version: 1
name: g
shutdown_timeout: ${TIMEOUT:-5}
failure_budget: {fraction: 0.5}
checkpoint: {path: here, every: 30s, keep: 2}
sources:
  a: {type: file, path: a.csv, format: {csv: {delimiter: ;}}}
  b: {type: kafka, bootstrap_servers: h:1, topics: [t], group: g, start: latest, retry_for: 5}
operators:
  s: {type: standardize, inputs: [a], fields: [x], buffer: {records: 5, bytes: 1MiB}}
models:
  m:
    inputs: [s, b]
    merge: round_robin
    network: [{Linear: [1, 4]}, ReLU, {Linear: {in_features: 4, out_features: 1}}]
    features: [x]
    target: y
    optimizer: {SGD: {lr: 0.1}}
    stages: ["1"]
    overflow: {s: block}
sinks:
  out: {type: file, inputs: [m], path: o.jsonl, overflow: {m: latest}}
dead_letter: {type: file, path: d.jsonl}
"""


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """Return what checks data against the schema."""
    schema = graph_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def parsed(text: str) -> Any:
    return YAML(typ="safe").load(text)


def test_a_file_with_all_parts_is_taken(tmp_path: Path, validator: Draft202012Validator) -> None:
    path = tmp_path / "graph.yaml"
    path.write_text(WHOLE)
    Graph.from_yaml(path)
    assert list(validator.iter_errors(parsed(WHOLE))) == []


def test_every_graph_of_the_project_is_taken(validator: Draft202012Validator) -> None:
    graphs = [*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("connectors/**/*.yaml")]
    assert graphs
    for path in graphs:
        assert list(validator.iter_errors(parsed(path.read_text()))) == [], path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: g", "nam: g"),
        ("type: standardize", "type: standardise"),
        ("path: a.csv", "path: 3"),
        ("path: a.csv", "pfad: a.csv"),
        ("topics: [t]", "topics: t"),
        ("start: latest", "start: last"),
        ("retry_for: 5", "retry_for: soon"),
        ("delimiter: ;", "delimeter: ;"),
        ("{csv: {delimiter: ;}}", "xml"),
        ("fields: [x]", "field: [x]"),
        ("keep: 2", "keep: 0"),
        ("bytes: 1MiB", "bytes: much"),
        ("merge: round_robin", "merge: robin"),
        ("overflow: {m: latest}", "overflow: {m: last}"),
        ("dead_letter: {type: file", "dead_letter: {type: fil"),
    ],
)
def test_mistakes_are_marked(validator: Draft202012Validator, old: str, new: str) -> None:
    assert old in WHOLE
    assert list(validator.iter_errors(parsed(WHOLE.replace(old, new, 1))))


def test_every_installed_type_is_in_the_schema_and_in_the_catalog() -> None:
    definitions = graph_schema()["$defs"]
    catalog = {(entry.kind, entry.name): entry for entry in entries()}
    for noun, group in (("source", SOURCES), ("operator", OPERATORS), ("sink", SINKS)):
        for name, point in registered(group).items():
            declared = set(point.load().model_fields)
            assert set(definitions[f"{noun}.{name}"]["properties"]) - {"type"} <= declared
            options = catalog[noun, name].options
            assert {option.name for option in options} == declared - {"type"}
            assert all(option.description for option in options), name


def test_a_reference_leads_to_a_definition() -> None:
    schema = graph_schema()

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(reference := part.get("$ref"), str):
                assert reference.removeprefix("#/$defs/") in schema["$defs"]
            for item in part.values():
                walk(item)
        elif isinstance(part, list):
            for item in part:
                walk(item)

    walk(schema)
