from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import Graph
from streamflow.checkpoints.identity import identify
from streamflow.contracts import Context
from streamflow.errors import GraphError
from streamflow.graph.promises import promises
from streamflow.observe.drawing import as_mermaid, as_svg, as_text
from streamflow.operators.routing import Route
from streamflow.testing import ListSink, ListSource, check_operator
from tests.operators.samples import batch_of, cut, outputs, process

CONDITIONS = {"high": "a > 3", "even": "a % 2 == 0", "ten": "a == 10"}
numbers = st.integers(-9, 9) | st.none()
rows = st.lists(st.fixed_dictionaries({"a": numbers}), max_size=12)
cuts = st.lists(st.integers(0, 12), max_size=4)


def route(**options: Any) -> Route:
    return Route(**{"inputs": ("in",), "outputs": CONDITIONS} | options)


def output_of(number: int, otherwise: str | None) -> str | None:
    """Do what `CONDITIONS` say."""
    if number > 3:
        return "high"
    return "even" if number % 2 == 0 else otherwise


@settings(max_examples=60, deadline=None)
@given(rows, cuts, st.booleans(), st.sampled_from([None, "rest"]))
def test_route_is_its_definition(
    values: list[Any], places: list[int], in_columns: bool, otherwise: str | None
) -> None:
    batches = cut(values, [min(place, len(values)) for place in places], in_columns=in_columns)
    expected: dict[str, list[Any]] = {}
    for row in values:
        if row["a"] is not None and (name := output_of(row["a"], otherwise)):
            expected.setdefault(name, []).append(row)
    operator = route(otherwise=otherwise)
    assert outputs(operator, batches) == expected
    _, causes = process(operator, batches)
    assert causes.keys() == {index for index, row in enumerate(values) if row["a"] is None}
    check_operator(lambda: operator, values, cuts=[len(values) // 2])


def test_a_record_is_rejected_by_the_first_condition_that_raises() -> None:
    operator = route(outputs={"one": "a == 1", "two": "b == 2"})
    with operator.open(Context("node")) as processor:
        processed = processor.process(batch_of([{"a": 1}, {"a": 2}, {"a": 2, "b": 2}]))
    assert processed.outputs == ["one", "two"]
    assert processed.rejected is not None
    assert processed.rejected.indices == [1]
    assert processed.rejected.causes == ["expected the field b, found none"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": {}}, r"found none; write \{name: a > 1\}"),
        ({"outputs": {"a b": "a"}}, "expected outputs named by letters, digits, _ and -, found"),
        ({"otherwise": "a.b"}, "expected outputs named by letters, digits, _ and -, found 'a.b'"),
        ({"otherwise": "high"}, "expected another name than that of a condition, found high"),
        ({"outputs": {"high": "a >"}}, r"outputs\.high: expected an expression, found 'a >'"),
    ],
)
def test_outputs_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        route(**options)


GRAPH = """\
name: levels
sources:
  in: {type: file, path: in.jsonl}
operators:
  level: {type: route, inputs: [in], outputs: {high: a > 3, low: a < 0}, otherwise: rest}
sinks:
  urgent: {type: file, inputs: [level.high], path: urgent.jsonl}
  out: {type: file, inputs: [level.low, level.rest], path: out.jsonl}
"""


def read(folder: Path, text: str) -> Graph:
    (folder / "graph.yaml").write_text(text)
    return Graph.from_yaml(folder / "graph.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[level.high]",
            "[level.hig]",
            ":7:33: expected one of the outputs of level, found level.hig; did you mean level.high",
        ),
        ("[level.high]", "[level]", ":7:33: expected one of the outputs of level, found level; "),
        (
            "[level.low, level.rest]",
            "[level.low]",
            ":5:3: expected a node that receives from level.rest, found none; add it to",
        ),
        (
            "[level.high]",
            "[in.high]",
            ":7:33: expected in, which has one output without a name, found in.high; write in",
        ),
        ("a > 3", "a >", ":5:54: expected an expression, found 'a >'"),
    ],
)
def test_problems_of_outputs(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(GraphError) as caught:
        read(tmp_path, GRAPH.replace(old, new))
    assert f"graph.yaml{message}" in str(caught.value)


def test_pictures_show_outputs(tmp_path: Path) -> None:
    graph = read(tmp_path, GRAPH)
    assert as_text(graph) == (
        "source    in      file\n"
        "operator  level   route  <- in\n"
        "sink      urgent  file   <- level.high\n"
        "sink      out     file   <- level.low, level.rest\n"
    )
    arrows = [line.strip() for line in as_mermaid(graph).splitlines() if "--" in line]
    assert arrows == ["n0 --> n1", "n1 -- high --> n2", "n1 -- low --> n3", "n1 -- rest --> n3"]
    assert as_svg(graph).count("<path") == 4


def test_promises_and_identity_know_outputs(tmp_path: Path) -> None:
    graph = read(tmp_path, GRAPH)
    receivers = {**graph.operators, **graph.sinks}
    found = promises(graph.sources, receivers, is_checkpointed=False)
    assert [(one.source, one.sink) for one in found] == [("in", "urgent"), ("in", "out")]
    other = read(tmp_path, GRAPH.replace("a > 3", "a > 4"))
    assert identify(graph).hash != identify(other).hash
    assert identify(graph).hash == identify(read(tmp_path, GRAPH)).hash


async def run(graph: Graph) -> None:
    async with graph.open() as opened:
        await opened.wait()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-5, 9), max_size=20), st.integers(1, 7))
def test_records_arrive_where_they_belong(values: list[int], batch_size: int) -> None:
    source = ListSource(values=tuple({"a": value} for value in values), batch_size=batch_size)
    urgent, rest = ListSink(inputs=("level.high",)), ListSink(inputs=("level.low",))
    conditions = {"high": "a > 3", "low": "a < 0"}
    graph = Graph(
        name="levels",
        sources={"in": source},
        operators={"level": Route(inputs=("in",), outputs=conditions)},
        sinks={"urgent": urgent, "rest": rest},
    )
    anyio.run(run, graph)
    assert urgent.probe.values == [{"a": value} for value in values if value > 3]
    assert rest.probe.values == [{"a": value} for value in values if value < 0]
    assert list(source.probe.committed.values()) == [len(values)] * bool(values)
