"""``overflow``, ``buffer`` and ``failure_budget`` in both notations."""

from pathlib import Path
from typing import Any

import pytest

from streamflow.errors import GraphError
from streamflow.graph import FailureBudget, Graph
from streamflow.nodes import Buffer
from streamflow.nodes.units import read_size
from streamflow_connectors.files import FileSink, FileSource

SOURCES = {"a": FileSource(path="a.csv"), "b": FileSource(path="b.csv")}


def yaml(sink: str = "", top: str = "") -> str:
    comma = ", " if sink else ""
    return (
        "name: g\nsources: {a: {type: file, path: a.csv}, b: {type: file, path: b.csv}}\n"
        f"sinks:\n  k: {{type: file, inputs: [a, b], path: o.jsonl{comma}{sink}}}\n{top}\n"
    )


def read(path: Path, text: str) -> Graph:
    (path / "g.yaml").write_text(text, encoding="utf-8")
    return Graph.from_yaml(path / "g.yaml")


def graph_of(top: dict[str, Any] | None = None, **options: Any) -> Graph:
    sink = FileSink(path="o.jsonl", inputs=("a", "b"), **options)
    return Graph(name="g", sources=SOURCES, sinks={"k": sink}, **(top or {}))


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ("overflow: drop_oldest", {"overflow": "drop_oldest"}),
        ("overflow: {a: latest, b: fail}", {"overflow": {"a": "latest", "b": "fail"}}),
        ("buffer: {records: 7}", {"buffer": Buffer(records=7)}),
        ("buffer: {bytes: 1.5 MiB}", {"buffer": Buffer(bytes=3 * 2**19)}),
        (
            "merge: round_robin, buffer: {bytes: 9}",
            {"merge": "round_robin", "buffer": {"bytes": 9}},
        ),
    ],
)
def test_edges_are_declared_in_both_notations(tmp_path: Path, written: str, options: Any) -> None:
    graph = graph_of(**options)
    assert read(tmp_path, yaml(written)) == graph
    assert read(tmp_path, graph.to_yaml()) == graph


@pytest.mark.parametrize(
    ("written", "budget"),
    [
        ("none", "none"),
        ("{fraction: 0.5}", FailureBudget(fraction=0.5)),
        ("{fraction: 0, after: 1, in_a_row: 3}", FailureBudget(fraction=0, after=1, in_a_row=3)),
    ],
)
def test_the_budget_is_declared_in_both_notations(
    tmp_path: Path, written: str, budget: Any
) -> None:
    graph = graph_of({"failure_budget": budget})
    assert read(tmp_path, yaml(top=f"failure_budget: {written}")) == graph
    assert read(tmp_path, graph.to_yaml()) == graph


def test_what_is_not_said_blocks_in_a_buffer_of_1024_records() -> None:
    graph = graph_of(overflow={"a": "latest"})
    sink = graph.sinks["k"]
    assert [sink.overflow_of(sender) for sender in sink.inputs] == ["latest", "block"]
    assert sink.buffer == Buffer(records=1024, bytes=16 * 2**20)
    assert graph.failure_budget == FailureBudget(fraction=0.01, after=100, in_a_row=1000)
    assert "overflow" not in graph_of().to_yaml()
    assert "failure_budget" not in graph.to_yaml()


TURN = (
    "4:60: expected block where inputs are taken in turn, since one that is ahead is full until "
    "the others catch up, found {}; use merge: arrival"
)


@pytest.mark.parametrize(
    ("sink", "top", "expected"),
    [
        ("overflow: drop_oldst", "", "4:60: expected one of block, drop_oldest, drop_newest, l"),
        ("overflow: drop_oldst", "", "'drop_oldst'; did you mean drop_oldest?"),
        ("overflow: {a: lates}", "", "4:64: expected one of block, drop_oldest, drop_newest, l"),
        ("overflow: {c: latest}", "", "4:61: expected one of the inputs, found c; choose one of:"),
        ("overflow: latest, merge: round_robin", "", TURN.format("latest")),
        ("overflow: {b: fail}, merge: round_robin", "", TURN.format("fail")),
        ("buffer: 5", "", "expected records and bytes, found 5; write {records: 1024, bytes: 16"),
        ("buffer: {records: 0}", "", "4:68: expected a number of at least 1, found 0"),
        ("buffer: {bytes: 16 megs}", "", "expected a number of bytes, found '16 megs'; write one"),
        ("", "failure_budget: non", "5:17: expected a FailureBudget or none, found 'non'; did you"),
        ("", "failure_budget: {fraction: 1.5}", "5:28: expected a number of at most 1, found 1.5"),
        ("", "failure_budget: {in_row: 9}", "5:18: expected an option of FailureBudget, found in_"),
        (
            "",
            "dead_letter: {type: file, path: d.jsonl, overflow: latest}",
            "5:52: expected block, found latest; remove it: dead letters are never dropped",
        ),
    ],
)
def test_mistakes_are_explained_at_their_place(
    tmp_path: Path, sink: str, top: str, expected: str
) -> None:
    with pytest.raises(GraphError) as caught:
        read(tmp_path, yaml(sink, top))
    (message,) = str(caught.value).splitlines()
    assert expected in message


def test_the_dead_letter_sink_may_have_a_buffer(tmp_path: Path) -> None:
    graph = read(tmp_path, yaml(top="dead_letter: {type: file, path: d.csv, buffer: {}}"))
    assert graph.dead_letter is not None
    assert graph.dead_letter.buffer == Buffer()


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("16MiB", 2**24), ("1.5 kB", 1500), ("2gib", 2**31), ("12", 12), (" 3 B ", 3), (7, 7)],
)
def test_sizes_are_numbers_with_units(text: object, size_bytes: int) -> None:
    assert read_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "1.5.2 kB", "-3", "3 Mi B", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of bytes; write one with a unit of B"):
        read_size(text)
