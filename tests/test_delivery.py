from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from streamflow import Graph, GraphError, Model
from streamflow.nodes import Sink, Source
from streamflow.operators.fields import Select
from streamflow.operators.functions import FlatMap
from streamflow.operators.joins import Join
from streamflow.operators.windows import Window
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.kafka import KafkaSink, KafkaSource
from streamflow_connectors.memory import MemorySink, MemorySource

FILE = FileSource(path="in.csv")
PIPE = FileSource(path="-", format="jsonl")
MEMORY = MemorySource(records=[1])
GROUP = KafkaSource(bootstrap_servers="a:1", topics=("t",), group="g")
MANUAL = KafkaSource(bootstrap_servers="a:1", topics=("t",), group="g", partitions=(0,))
ALONE = KafkaSource(bootstrap_servers="a:1", topics=("t",))

TO_FILE = FileSink(inputs=("m",), path="out.jsonl")
TO_STDOUT = FileSink(inputs=("m",), path="-", format="jsonl")
TO_MEMORY = MemorySink(inputs=("m",))
TO_KAFKA = KafkaSink(inputs=("m",), bootstrap_servers="a:1", topic="o")
ONCE = KafkaSink(inputs=("m",), bootstrap_servers="a:1", topic="o", delivery="exactly_once")


class ToNobody(Sink):
    """Sends records off and never hears of them again."""

    type: Literal["to_nobody"] = "to_nobody"

    @property
    def confirms(self) -> bool:
        return False


UNHEARD = ToNobody(inputs=("m",))
AFRESH, ONCE_ONLY, LOSSY = "afresh in every run", "exactly once", "at most once"


def graph(source: Source, sink: Sink, *, is_checkpointed: bool = False, **options: Any) -> Graph:
    model = {"inputs": ("in",), "network": [{"Linear": [1, 1]}], "features": ("x",), "target": "y"}
    return Graph(
        name="g",
        checkpoint={"path": "c"} if is_checkpointed else None,
        sources={"in": source},
        models={"m": Model(**{**model, **options})},
        sinks={"out": sink},
    )


@pytest.mark.parametrize(
    ("source", "sink", "is_checkpointed", "learned", "delivered"),
    [
        (FILE, TO_FILE, False, AFRESH, "once in every run"),
        (FILE, TO_FILE, True, ONCE_ONLY, ONCE_ONLY),
        (FILE, TO_STDOUT, True, ONCE_ONLY, "at least once"),
        (FILE, TO_KAFKA, True, ONCE_ONLY, "at least once"),
        (FILE, TO_MEMORY, True, ONCE_ONLY, "at least once"),
        (PIPE, TO_FILE, False, AFRESH, LOSSY),
        (PIPE, TO_FILE, True, LOSSY, LOSSY),
        (MEMORY, TO_KAFKA, True, LOSSY, LOSSY),
        (GROUP, TO_KAFKA, False, AFRESH, "at least once"),
        (GROUP, TO_FILE, True, ONCE_ONLY, ONCE_ONLY),
        (ALONE, TO_KAFKA, False, AFRESH, "once in every run"),
        (ALONE, TO_KAFKA, True, ONCE_ONLY, "at least once"),
        (MANUAL, ONCE, False, AFRESH, ONCE_ONLY),
        (MANUAL, ONCE, True, ONCE_ONLY, ONCE_ONLY),
        (FILE, UNHEARD, False, AFRESH, LOSSY),
        (FILE, UNHEARD, True, ONCE_ONLY, LOSSY),
        (GROUP, UNHEARD, False, AFRESH, LOSSY),
        (PIPE, UNHEARD, True, LOSSY, LOSSY),
    ],
)
def test_what_is_promised(
    source: Source, sink: Sink, is_checkpointed: bool, learned: str, delivered: str
) -> None:
    [promise] = graph(source, sink, is_checkpointed=is_checkpointed).promises()
    assert (promise.learned, promise.delivered) == (learned, delivered)
    assert str(promise).startswith(f"in -> out: learned {learned}, delivered {delivered}")


def test_a_model_that_does_not_learn_promises_nothing_about_it() -> None:
    [promise] = graph(FILE, TO_FILE, learn=False, is_checkpointed=True).promises()
    assert promise.learned is None
    assert str(promise) == "in -> out: delivered exactly once"


@pytest.mark.parametrize(
    ("source", "sink", "is_checkpointed", "note"),
    [
        (FILE, TO_FILE, False, "every run begins anew"),
        (GROUP, TO_KAFKA, False, "what came since the last positions committed comes again"),
        (FILE, TO_KAFKA, True, "what came since the last checkpoint comes again"),
        (PIPE, TO_FILE, True, "what is in flight is lost in a crash"),
        (GROUP, TO_FILE, True, "a partition that moves to another instance is learned"),
        (PIPE, UNHEARD, False, "the sink does not hear what arrives"),
        (FILE, UNHEARD, True, "the sink does not hear what arrives"),
        (FILE, UNHEARD, True, "but after a crash what came since the last checkpoint is sent aga"),
        (GROUP, UNHEARD, False, "what came since the last positions committed is sent again"),
    ],
)
def test_what_a_crash_does_is_told(
    source: Source, sink: Sink, is_checkpointed: bool, note: str
) -> None:
    [promise] = graph(source, sink, is_checkpointed=is_checkpointed).promises()
    assert note in str(promise)


def test_partitions_that_do_not_move_have_no_note() -> None:
    assert graph(MANUAL, TO_FILE, is_checkpointed=True).promises()[0].notes == ()


@pytest.mark.parametrize(
    ("source", "is_checkpointed", "is_lost"),
    [
        (GROUP, False, True),
        (PIPE, False, True),
        (FILE, False, False),  # is read anew
        (GROUP, True, False),
        (PIPE, True, False),
    ],
)
def test_what_a_crash_takes_of_what_is_held_is_told(
    source: Source, is_checkpointed: bool, is_lost: bool
) -> None:
    for horizon in (None, 3):
        made = graph(source, TO_FILE, is_checkpointed=is_checkpointed, horizon=horizon)
        lost = "but for what m holds, which is lost in a crash"
        assert (lost in made.promises()[0].notes) == (is_lost and horizon is not None)


def test_windows_and_joins_hold_records() -> None:
    told = Graph(
        name="g",
        sources={"a": GROUP, "b": FILE},
        operators={
            "level": Window(inputs=("a",), size=3, fields={"n": "count()"}),
            "both": Join(inputs=("level", "b"), delay=2),
        },
        sinks={"out": FileSink(inputs=("both",), path="out.jsonl")},
    ).promises()
    held = {promise.source: [note for note in promise.notes if "holds" in note] for promise in told}
    lost = "but for what {} holds, which is lost in a crash"
    assert held == {"a": [lost.format("level"), lost.format("both")], "b": []}


def test_each_way_is_told_with_what_it_drops() -> None:
    branching = Graph(
        name="g",
        checkpoint={"path": "c"},
        sources={"a": FILE, "b": PIPE},
        operators={
            "left": Select(inputs=("a",), fields=("x",), overflow="latest"),
            "right": Select(inputs=("a", "b"), fields=("x",), overflow={"a": "drop_oldest"}),
        },
        sinks={
            "x": FileSink(inputs=("left", "right"), path="x.jsonl"),
            "y": FileSink(inputs=("right",), path="y.jsonl", overflow="fail"),
        },
    )
    told = {(promise.source, promise.sink): promise.notes for promise in branching.promises()}
    assert told.keys() == {("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")}
    dropping = "but for records that a -> {} drops ({})"
    left, right = dropping.format("left", "latest"), dropping.format("right", "drop_oldest")
    assert told["a", "x"] == (left, right)
    assert told["a", "y"] == (right,)
    assert [note for note in told["b", "x"] if "drops" in note] == []


def test_a_graph_that_cannot_keep_its_promise_is_refused_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    path.write_text(
        """\
name: g
sources:
  in: {type: kafka, bootstrap_servers: 'a:1', topics: [t], group: g, partitions: [0]}
operators:
  left: {type: select, inputs: [in], fields: [x]}
  right: {type: select, inputs: [in], fields: [x]}
sinks:
  out:
    type: kafka
    inputs: [left, right]
    bootstrap_servers: 'a:1'
    topic: o
    delivery: exactly_once
"""
    )
    with pytest.raises(GraphError) as caught:
        Graph.from_yaml(path)
    [problem] = caught.value.problems
    assert str(problem).startswith(f"{path}:13:15: expected outputs in the order of the source")
    with pytest.raises(GraphError, match=r"^sinks\.out\.delivery: expected a source of type kafka"):
        graph(FILE, ONCE)


def test_letters_wait_for_no_transaction_so_a_checkpoint_must_keep_them(tmp_path: Path) -> None:
    def declare(**options: Any) -> Graph:
        sinks = {"out": ONCE.model_copy(update={"inputs": ("in",)})}
        return Graph(name="g", sources={"in": MANUAL}, sinks=sinks, **options)

    letters = FileSink(path=str(tmp_path / "dead.jsonl"))
    declare(dead_letter=letters, checkpoint={"path": "c"})
    lost = r"^sinks\.out\.delivery: .*a crash loses what dead_letter has not written"
    with pytest.raises(GraphError, match=lost):
        declare(dead_letter=letters)
    refused = r"^dead_letter\.delivery: .*found the one of the dead letters"
    with pytest.raises(GraphError, match=refused) as caught:
        declare(dead_letter=ONCE.model_copy(update={"inputs": ()}), checkpoint={"path": "c"})
    assert len(caught.value.problems) == 1


def test_graphs_with_very_many_ways_are_told_soon() -> None:
    names = ["in", *(f"s{index}" for index in range(300))]
    operators: dict[str, Any] = {}
    for before, name in pairwise(names):
        for side in "ab":
            inputs = (before,) if before == "in" else (f"{before}a", f"{before}b")
            operators[f"{name}{side}"] = Select(inputs=inputs, fields=("x",))
    last = names[-1]
    sink = FileSink(inputs=(f"{last}a", f"{last}b"), path="x.jsonl")
    many = Graph(name="g", sources={"in": FILE}, operators=operators, sinks={"out": sink})
    assert len(many.promises()) == 1


def test_an_operator_that_gives_several_records_for_one_is_not_written_exactly_once() -> None:
    def declare(**operators: Any) -> Graph:
        sinks = {"out": ONCE.model_copy(update={"inputs": ("last",)})}
        return Graph(name="g", sources={"in": MANUAL}, operators=operators, sinks=sinks)

    selected = Select(inputs=("first",), fields=("x",))
    declare(first=Select(inputs=("in",), fields=("x",)), last=selected)
    with pytest.raises(GraphError, match="an operator that does not keep the order"):
        declare(first=FlatMap(inputs=("in",), function="math:sqrt"), last=selected)
