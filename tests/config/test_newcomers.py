"""Mistakes that somebody new makes, each with the message that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamflow import Graph, GraphError

HEAD = """\
name: g
sources:
  readings: {type: file, path: in.jsonl}
"""
TAIL = """
sinks:
  out: {type: file, inputs: [node], path: out.jsonl}
"""
MODEL = "inputs: [readings], network: [{Linear: [1, 1]}], features: [x], target: y"

OPERATORS = [
    (
        "{type: window, inputs: [readings], fields: {m: mean(x)}}",
        "5:9: expected size or gap, found neither; write one of them",
    ),
    (
        "{type: window, inputs: [readings], size: 10s, fields: {m: avg(x)}}",
        "found avg; choose one of: count, max, mean",
    ),
    (
        "{type: window, inputs: [readings], size: 10 minutes, fields: {m: mean(x)}}",
        "found '10 minutes'; write one with a unit of ms, s, m, h or d, as in 90s",
    ),
    (
        "{type: join, inputs: [readings], by: id}",
        "5:30: expected two inputs, found 1",
    ),
    (
        "{type: filter, inputs: [readings], where: price = 3}",
        "5:51: expected an expression, found 'price = 3'; write == to compare",
    ),
    (
        "{type: history, inputs: [readings], fields: [x], length: 0}",
        "expected a number of at least 1, found 0; choose a larger one",
    ),
    (
        "{type: throttle, inputs: [readings], records: 5}",
        "expected the option per, found none; add per",
    ),
]

MODELS = [
    (
        "class_weights: balanced",
        "expected class_weights with a target of classes, found regression; remove it",
    ),
    ("on_drift: reset", "expected a detector in drift with an action, found none; name one"),
    ("nan: ignore", "expected one of error, skip, impute, found 'ignore'; choose one of them"),
]

ENDS = [
    ("{type: file, path: in.jsonl, pace: fast}", "found fast; write one of these"),
    ("{type: file, path: in.jsonl, end_after: 3}", "expected it with follow: true"),
    (
        "{type: kafka, bootstrap_servers: 'a:1', topics: [t], pattern: 'x.*'}",
        "expected either topics or a pattern, found both",
    ),
]


def said_of(text: str, folder: Path) -> str:
    path = folder / "graph.yaml"
    path.write_text(text)
    with pytest.raises(GraphError) as caught:
        Graph.from_yaml(path)
    return str(caught.value)


@pytest.mark.parametrize(("declared", "message"), OPERATORS)
def test_operators(declared: str, message: str, tmp_path: Path) -> None:
    assert message in said_of(f"{HEAD}operators:\n  node: {declared}{TAIL}", tmp_path)


@pytest.mark.parametrize(("declared", "message"), MODELS)
def test_models(declared: str, message: str, tmp_path: Path) -> None:
    text = f"{HEAD}models:\n  node: {{{MODEL}, {declared}}}{TAIL}"
    assert message in said_of(text, tmp_path)


@pytest.mark.parametrize(("declared", "message"), ENDS)
def test_sources(declared: str, message: str, tmp_path: Path) -> None:
    text = f"name: g\nsources:\n  node: {declared}{TAIL}"
    assert message in said_of(text, tmp_path)


def test_an_output_that_is_misspelt(tmp_path: Path) -> None:
    routes = "{type: route, inputs: [readings], outputs: {high: x > 1}}"
    text = f"{HEAD}operators:\n  level: {routes}{TAIL.replace('[node]', '[level.hihg]')}"
    assert "found level.hihg; did you mean level.high?" in said_of(text, tmp_path)
