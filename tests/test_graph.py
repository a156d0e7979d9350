from pathlib import Path
from typing import Any

import pytest

from streamflow.errors import GraphError, Problem
from streamflow.graph import Graph, structure_problems
from streamflow.models.model import Model
from streamflow.nodes import Operator, Source
from streamflow.operators.fields import Select, Standardize
from streamflow.operators.functions import Filter, Map
from streamflow.testing import ListSink, ListSource
from streamflow_connectors.files import FileSource

SOURCE = ListSource(values=())


def table(**inputs: tuple[str, ...]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the inputs of nodes whose section is the first letter of their names."""
    sections = {"s": "sources", "o": "operators", "m": "models", "k": "sinks"}
    found: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in sections.values()}
    for name, senders in inputs.items():
        found[sections[name[0]]][name] = senders
    return found


def shown(problems: list[Problem]) -> list[str]:
    return [str(problem) for problem in problems]


GOOD = table(s=(), o=("s",), m=("o", "s"), k=("m",))


def test_a_good_graph_has_no_problems() -> None:
    assert structure_problems(GOOD) == []
    assert structure_problems(GOOD, in_turn=["k", "o"]) == []


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (
            table(k=("s",)),
            ["sources: expected at least one node", "sinks.k.inputs.0: expected the"],
        ),
        (table(s=()), ["sinks: expected at least one node", "sources.s: expected a node that rec"]),
        (table(s=(), k=()), ["sinks.k.inputs: expected inputs, found none"]),
        (table(s=(), k=("s", "s")), ["sinks.k.inputs.1: expected each input once, found s again"]),
        (table(s=(), k=("s",), kk=("k",)), ["sinks.kk.inputs.0: expected a node that sends"]),
        (table(s1=(), k=("s2",)), ["sinks.k.inputs.0: expected the name of a source, operator o"]),
        (table(s=(), s2=(), k=("s",)), ["sources.s2: expected a node that receives from s2"]),
        (
            table(s=(), o1=("s", "o2"), o2=("o1",), k=("o2",)),
            ["operators.o1.inputs: expected no cycle, found o1 -> o2 -> o1"],
        ),
        (
            {**GOOD, "sources": {"s": (), "a b": ()}, "models": {"s": ("s",)}},
            ["sources.a b: expected a name of letters", "models.s: expected a name of its own"],
        ),
    ],
)
def test_problems_of_structure(nodes: Any, expected: list[str]) -> None:
    found = shown(structure_problems(nodes))
    for message in expected:
        assert any(problem.startswith(message) for problem in found), found


def test_the_dead_letter_sink_has_no_inputs() -> None:
    (problem,) = structure_problems(GOOD, ("s",))
    assert str(problem).startswith("dead_letter.inputs: expected no inputs, found some")


def test_all_problems_are_found_at_once() -> None:
    with pytest.raises(GraphError) as caught:
        Graph(name="g", sources={"a b": SOURCE}, sinks={"k": ListSink(inputs=("x", "x"))})
    assert [problem.location for problem in caught.value.problems] == [
        ("sources", "a b"),
        ("sinks", "k", "inputs", 0),
        ("sinks", "k", "inputs", 1),
        ("sources", "a b"),
    ]


SHARED = "expected inputs of different sources to take in turn, found {}; use merge: arrival"


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        (table(s=(), o=("s",), k=("o", "s")), "o and s, both of s"),
        (table(s=(), o1=("s",), o2=("s",), k=("o1", "o2")), "o1 and o2, both of s"),
        (table(s=(), s2=(), o=("s", "s2"), k=("s2", "o")), "s2 and o, both of s2"),
        (table(s=(), o1=("s",), o2=("o1",), m=("o2",), k=("o1", "m")), "o1 and m, both of s"),
    ],
)
def test_inputs_of_one_source_cannot_be_taken_in_turn(nodes: Any, found: str) -> None:
    assert shown(structure_problems(nodes, in_turn={"k"})) == [
        f"sinks.k.merge: {SHARED.format(found)}"
    ]
    assert structure_problems(nodes) == []


def test_inputs_of_different_sources_can_be_taken_in_turn() -> None:
    nodes = table(s1=(), s2=(), o1=("s1",), o2=("s2",), m=("s2",), k=("o1", "o2"), k2=("m",))
    assert structure_problems(nodes, in_turn={"k"}) == []


def test_a_cycle_is_no_endless_search() -> None:
    nodes = table(s=(), o1=("s", "o2"), o2=("o1",), k=("o2", "s"))
    found = shown(structure_problems(nodes, in_turn={"k"}))
    assert any("expected no cycle" in problem for problem in found)
    assert any("to take in turn" in problem for problem in found)


def test_merges_are_checked_in_both_notations(tmp_path: Path) -> None:
    half = Select(inputs=("s",), fields=("a",))
    sink = ListSink(inputs=("o", "s"), merge="round_robin")
    message = SHARED.format("o and s, both of s")
    with pytest.raises(GraphError) as caught:
        Graph(name="g", sources={"s": SOURCE}, operators={"o": half}, sinks={"k": sink})
    assert str(caught.value) == f"sinks.k.merge: {message}"
    (tmp_path / "g.yaml").write_text(
        "name: g\n"
        "sources: {s: {type: file, path: a.csv}}\n"
        "operators: {o: {type: select, inputs: [s], fields: [a]}}\n"
        "sinks:\n"
        "  k: {type: file, inputs: [o, s], path: o.jsonl, merge: round_robin}\n"
    )
    with pytest.raises(GraphError) as caught:
        Graph.from_yaml(tmp_path / "g.yaml")
    assert str(caught.value) == f"{tmp_path / 'g.yaml'}:5:57: {message}"


def keep(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("source", "operators", "only_scalars"),
    [
        (FileSource(path="a.csv"), [], True),
        (FileSource(path="a", format="csv"), [], True),
        (FileSource(path="a.jsonl"), [], False),
        (SOURCE, [], False),
        (FileSource(path="a.csv"), [Select(inputs=("s",), fields=("a",))], True),
        (FileSource(path="a.csv"), [Standardize(inputs=("s",), fields=("a",))], True),
        (FileSource(path="a.csv"), [Filter(inputs=("s",), function=keep)], True),
        (FileSource(path="a.csv"), [Map(inputs=("s",), function=keep)], False),
        (
            FileSource(path="a.csv"),
            [Map(inputs=("s",), function=keep), Filter(inputs=("o0",), function=keep)],
            False,
        ),
        (FileSource(path="a.jsonl"), [Select(inputs=("s",), fields=("a",))], False),
    ],
)
def test_too_few_features_are_a_problem_where_no_field_is_an_array(
    source: Source, operators: list[Operator], only_scalars: bool
) -> None:
    names = [f"o{index}" for index in range(len(operators))]
    model = Model(
        inputs=(names[-1] if names else "s",),
        network=({"Linear": [2, 1]},),
        features=("a",),
        target="y",
    )
    graph = Graph(
        name="g",
        sources={"s": source},
        operators=dict(zip(names, operators, strict=True)),
        models={"m": model},
        sinks={"k": ListSink(inputs=("m",))},
    )
    found = shown(graph.deep_problems())
    fits = "models.m.features: expected 2 features to fit Linear(in_features=2, out_features=1"
    assert [problem[: len(fits)] for problem in found] == ([fits] if only_scalars else [])


def test_one_source_of_arrays_is_enough() -> None:
    sources = {"s": FileSource(path="a.csv"), "s2": FileSource(path="a.jsonl")}
    model = Model(inputs=("s", "s2"), network=({"Linear": [2, 1]},), features="a", target="y")
    few = model.model_copy(update={"features": ("a",)})
    sinks = {"k": ListSink(inputs=("m",))}
    assert Graph(name="g", sources=sources, models={"m": few}, sinks=sinks).deep_problems() == []


def test_graphs_are_equal_by_what_they_declare() -> None:
    one, other = (
        Graph(name=name, sources={"s": SOURCE}, sinks={"k": ListSink(inputs=("s",))})
        for name in ("g", "h")
    )
    assert one != other
    assert one == one.model_copy()
    assert one.inputs() == {
        "sources": {"s": ()},
        "operators": {},
        "models": {},
        "sinks": {"k": ("s",)},
    }
