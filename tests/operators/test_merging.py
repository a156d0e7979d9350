from typing import Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import Graph
from streamflow.operators.merging import Merge
from streamflow.operators.routing import Route
from streamflow.records import Record
from streamflow.testing import ListSink, ListSource, check_operator
from tests.operators.samples import run

values = st.fixed_dictionaries({"a": st.integers()}, optional={"from": st.none()}) | st.integers()
records = st.lists(st.builds(Record, values, sender=st.sampled_from(["l", "r"])), max_size=10)
cuts = st.lists(st.integers(0, 10), max_size=3)


@settings(max_examples=60, deadline=None)
@given(records, cuts, st.booleans(), st.sampled_from([None, "from"]))
def test_merge_is_its_definition(
    stream: list[Record], places: list[int], in_columns: bool, origin: str | None
) -> None:
    operator = Merge(inputs=("l", "r"), origin=origin)
    found = run(operator, stream, places, in_columns=in_columns)
    if origin is None:
        assert found.values == [record.value for record in stream]
        return
    good = [record for record in stream if isinstance(record.value, dict)]
    assert found.values == [{**record.value, "from": record.sender} for record in good]
    cause = "expected fields, found a int without"
    assert set(found.causes.values()) <= {cause}
    assert len(found.causes) == len(stream) - len(good)
    check_operator(lambda: operator, stream)


async def run_graph(graph: Graph) -> None:
    async with graph.open() as opened:
        await opened.wait()


def merged(merge: Literal["arrival", "round_robin"], sizes: tuple[int, int]) -> list[Any]:
    """Return what comes out of a graph that merges two sources of so many records."""
    sources = {
        name: ListSource(values=tuple({"n": n} for n in range(size)), batch_size=1 + size // 2)
        for name, size in zip("lr", sizes, strict=True)
    }
    sink = ListSink(inputs=("both",))
    both = Merge(inputs=("l", "r"), merge=merge, origin="from")
    anyio.run(
        run_graph, Graph(name="g", sources=sources, operators={"both": both}, sinks={"k": sink})
    )
    return sink.probe.values


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7))
def test_each_record_tells_the_input_it_came_by(left: int, right: int) -> None:
    expected: list[Any] = []
    for n in range(max(left, right)):
        expected += [{"n": n, "from": "l"}] * (n < left) + [{"n": n, "from": "r"}] * (n < right)
    assert merged("round_robin", (left, right)) == expected
    arrived = merged("arrival", (left, right))
    for name, size in (("l", left), ("r", right)):
        assert [one["n"] for one in arrived if one["from"] == name] == list(range(size))
    assert len(arrived) == left + right


def test_outputs_of_a_route_are_inputs_by_their_full_names() -> None:
    sink = ListSink(inputs=("all",))
    graph = Graph(
        name="g",
        sources={"in": ListSource(values=({"a": 1}, {"a": -1}))},
        operators={
            "sign": Route(inputs=("in",), outputs={"plus": "a > 0"}, otherwise="minus"),
            "all": Merge(inputs=("sign.plus", "sign.minus"), origin="sign"),
        },
        sinks={"out": sink},
    )
    anyio.run(run_graph, graph)
    assert sink.probe.values == [{"a": 1, "sign": "sign.plus"}, {"a": -1, "sign": "sign.minus"}]


def test_senders_go_no_further() -> None:
    sink = ListSink(inputs=("both",))
    graph = Graph(
        name="g",
        sources={"in": ListSource(values=({"a": 1},))},
        operators={"both": Merge(inputs=("in",))},
        sinks={"out": sink},
    )
    anyio.run(run_graph, graph)
    assert [record.sender for record in sink.probe.records] == [None]


def test_an_origin_has_a_name() -> None:
    with pytest.raises(ValueError, match="origin: expected text of 1 or more"):
        Merge(inputs=("l", "r"), origin="")
