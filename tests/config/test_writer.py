from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.errors import GraphError
from streamflow.graph import Graph
from streamflow.models.model import Model
from streamflow.operators.fields import Select
from streamflow.operators.functions import Filter
from streamflow_connectors.kafka import KafkaSink, KafkaSource

SOURCE = KafkaSource(bootstrap_servers="h:1", topics=("t",), group="g")


def graph_of(**options: Any) -> Graph:
    options = {"bootstrap_servers": "h:1", "topic": "out", "inputs": ("m",)} | options
    model = Model(
        inputs=("r",), network=({"Linear": [2, 1]}, "ReLU"), features=("a", "b"), target="c"
    )
    return Graph(
        name="g", sources={"r": SOURCE}, models={"m": model}, sinks={"s": KafkaSink(**options)}
    )


def read_back(graph: Graph, folder: Path) -> Graph:
    path = folder / "graph.yaml"
    path.write_text(graph.to_yaml(), encoding="utf-8")
    return Graph.from_yaml(path)


def test_a_graph_is_written_as_a_person_would(tmp_path: Path) -> None:
    graph = graph_of()
    assert graph.to_yaml() == (
        "version: 1\nname: g\nsources:\n  r:\n    type: kafka\n    bootstrap_servers: h:1\n"
        "    topics: [t]\n    group: g\n"
        "models:\n  m:\n    inputs: [r]\n    network: [{Linear: [2, 1]}, ReLU]\n"
        "    features: [a, b]\n    target: c\n"
        "sinks:\n  s:\n    type: kafka\n    inputs: [m]\n    bootstrap_servers: h:1\n"
        "    topic: out\n"
    ).replace("h:1", '"h:1"')
    assert read_back(graph, tmp_path) == graph


@given(
    name=st.text(min_size=1),
    fields=st.lists(
        st.text(min_size=1) | st.sampled_from(["no", "1", "null", "a: b", "${X}", "-"])
    ),
    rate=st.floats(allow_nan=False) | st.integers() | st.text() | st.booleans() | st.none(),
)
@settings(max_examples=60, deadline=None)
def test_graphs_survive_the_way_to_yaml_and_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, fields: list[str], rate: object
) -> None:
    model = Model(
        inputs=("pick",),
        network=({"Linear": {"x": rate, "${y}": [rate]}},),
        features="f",
        target="t",
    )
    graph = Graph(
        name=name,
        sources={"r": SOURCE},
        operators={"pick": Select(inputs=("r",), fields=tuple(dict.fromkeys([*fields, "f"])))},
        models={"m": model},
        sinks={"s": KafkaSink(bootstrap_servers="h:1", topic="o", inputs=("m",))},
    )
    assert read_back(graph, tmp_path_factory.mktemp("yaml")) == graph


def test_a_lambda_cannot_be_written() -> None:
    keep = Filter(inputs=("r",), function=lambda value: True)
    sink = KafkaSink(bootstrap_servers="h:1", topic="o", inputs=("keep",))
    graph = Graph(name="g", sources={"r": SOURCE}, operators={"keep": keep}, sinks={"s": sink})
    with pytest.raises(
        GraphError, match=r"^operators\.keep\.function: expected a callable that a name"
    ):
        graph.to_yaml()


def test_secrets_are_written_as_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(username="me", password="hunter2", security_protocol="SASL_SSL")
    assert "hunter2" not in graph.to_yaml()
    assert "${S_PASSWORD:?set the password of sinks.s}" in graph.to_yaml()
    monkeypatch.setenv("S_PASSWORD", "hunter2")
    assert read_back(graph, tmp_path) == graph
