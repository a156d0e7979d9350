"""Joins against their definition in plain Python, which keeps all and looks at all each time."""

from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import Graph
from streamflow.contracts import Context
from streamflow.errors import GraphError
from streamflow.operators.joins import Join
from streamflow.records import Record
from streamflow.testing import ListSink, ListSource, check_operator
from streamflow.testing.connectors import make_batch
from tests.operators.samples import run


def join(**options: Any) -> Join:
    return Join(**{"inputs": ("l", "r")} | options)


@dataclass
class One:
    """A record that a key remembers, by definition."""

    index: int
    time: int
    value: dict[str, Any]
    is_matched: bool = False


class Definition:
    """All that joins are, without any thought of speed."""

    def __init__(self, operator: Join) -> None:
        self.operator = operator
        self.ttl = None if operator.ttl is None else round(1000 * operator.ttl)
        self.delay = round(1000 * operator.delay)
        self.within = 10**9 if operator.within is None else round(1000 * operator.within)
        self.left: dict[Any, list[One]] = {}
        self.right: dict[Any, list[One]] = {}
        self.newest: dict[Any, int] = {}
        self.clock = 0
        self.num_left_out = self.given_up = self.forgotten = 0
        self.rows: list[Any] = []

    def watermark(self, key: Any) -> int:
        own = self.newest[key] - self.delay
        return own if self.ttl is None else max(own, self.clock - self.ttl)

    def take(self, index: int, record: Record) -> None:
        assert record.timestamp_ms is not None
        key, time = record.key, record.timestamp_ms
        one = One(index, time, record.value)
        self.clock = max(self.clock, time)
        self.newest[key] = max(self.newest.pop(key, time), time)  # the key is now the last one
        left, right = self.left.setdefault(key, []), self.right.setdefault(key, [])
        is_all = self.operator.match == "all"
        if record.sender == "l":
            if is_all:
                self.give([(one, other) for other in in_time(right) if self.is_near(one, other)])
            left.append(one)
            lost = in_time(left)[: max(0, len(left) - self.operator.max_records)]
            left[:] = [other for other in left if other not in lost]
            self.forgotten += len(lost)
            self.give(self.settled(key, lost))
        else:
            if is_all:
                self.give([(other, one) for other in in_time(left) if self.is_near(other, one)])
            right.append(one)
            lost = in_time(right)[: max(0, len(right) - self.operator.max_records)]
            right[:] = [other for other in right if other not in lost]
            self.forgotten += len(lost) * is_all
        gone = []
        if len(self.newest) > self.operator.max_keys:
            oldest = next(iter(self.newest))
            gone = self.settled(oldest, self.left[oldest])
            del self.newest[oldest], self.left[oldest], self.right[oldest]
            self.given_up += 1
        for other in list(self.newest):
            watermark = self.watermark(other)
            span = self.within if is_all else -1
            due = [one for one in self.left[other] if one.time + span < watermark]
            gone += self.settled(other, due)
            self.left[other] = [one for one in self.left[other] if one not in due]
            if is_all:
                self.right[other] = [
                    one for one in self.right[other] if one.time + span >= watermark
                ]
            held = self.left[other] + self.right[other] * is_all
            silence = -(10**12) if self.ttl is None else self.clock - self.ttl
            if not held and self.newest[other] - self.delay <= silence:
                del self.newest[other], self.left[other], self.right[other]
        self.give(sorted(gone, key=lambda pair: (pair[0].time, pair[0].index)))

    def is_near(self, one: One, other: One) -> bool:
        return abs(one.time - other.time) <= self.within

    def settled(self, key: Any, lefts: list[One]) -> list[tuple[One, One | None]]:
        """Return what becomes of records that wait no longer."""
        if self.operator.match == "all":
            return [(one, None) for one in lefts if not one.is_matched]
        pairs: list[tuple[One, One | None]] = []
        for one in lefts:
            before = [other for other in self.right[key] if other.time <= one.time]
            last = max(before, key=lambda other: (other.time, other.index), default=None)
            is_near = last is not None and self.is_near(one, last)
            pairs.append((one, last if is_near else None))
        return pairs

    def give(self, pairs: Any) -> None:
        for one, other in pairs:
            one.is_matched = other is not None
            names = self.operator.fields
            if other is None and self.operator.unmatched == "drop":
                self.num_left_out += 1
                continue
            added = dict.fromkeys(names or ()) if other is None else other.value
            chosen = {n: c for n, c in added.items() if names is None or n in names}
            prefixed = {self.operator.prefix + n: c for n, c in chosen.items()}
            self.rows.append(({**prefixed, **one.value}, {"index": one.index}))

    def end(self) -> None:
        pairs = [pair for key in self.newest for pair in self.settled(key, self.left[key])]
        self.give(sorted(pairs, key=lambda pair: (pair[0].time, pair[0].index)))


def in_time(some: list[One]) -> list[One]:
    return sorted(some, key=lambda one: (one.time, one.index))


times = st.integers(0, 20).map(lambda n: 500 * n)
keys = st.sampled_from(["x", "y", "z"])
lefts = st.builds(
    Record, st.fixed_dictionaries({"a": st.integers(0, 9)}), keys, times, sender=st.just("l")
)
rights = st.builds(
    Record,
    st.fixed_dictionaries({"b": st.integers(0, 9), "a": st.just("other")}),
    keys,
    times,
    sender=st.just("r"),
)
records = st.lists(lefts | rights, max_size=16)
cuts = st.lists(st.integers(0, 16), max_size=4)
options: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "delay": st.sampled_from([0, 0.5, 2]),
        "max_keys": st.integers(1, 3),
        "ttl": st.sampled_from([None, 2, 4]),
        "max_records": st.sampled_from([1, 2, 100]),
        "unmatched": st.sampled_from(["keep", "drop"]),
        "prefix": st.sampled_from(["", "r_"]),
        "fields": st.sampled_from([None, ("b",)]),
    }
) | st.just({})
matches = st.sampled_from(
    [
        {"match": "last"},
        {"match": "last", "within": 1},
        {"match": "all", "within": "1s"},
        {"match": "all", "within": 3},
    ]
)


@settings(max_examples=250, deadline=None)
@given(records, cuts, st.booleans(), matches, options)
def test_join_is_its_definition(
    stream: list[Record],
    places: list[int],
    in_columns: bool,
    match: dict[str, Any],
    others: dict[str, Any],
) -> None:
    operator = join(**match, **others)
    definition = Definition(operator)
    for index, record in enumerate(stream):
        definition.take(index, record)
    num_keys, num_held = len(definition.newest), sum(map(len, definition.left.values()))
    definition.end()
    found = run(operator, stream, places, in_columns=in_columns)
    assert found.before["records held"] == num_held
    assert [(one.value, one.position) for one in found.records] == definition.rows
    assert found.causes == {}
    assert found.report == {
        "keys": num_keys,
        "keys given up": definition.given_up,
        "records left out": definition.num_left_out,
        "records held": 0,
        "records given up": definition.forgotten,
    }


@settings(max_examples=60, deadline=None)
@given(records, matches, options)
def test_join_goes_on(stream: list[Record], match: dict[str, Any], others: dict[str, Any]) -> None:
    operator = join(**match, **others)
    check_operator(lambda: operator, stream)


@settings(max_examples=60, deadline=None)
@given(records, st.randoms(use_true_random=False), matches)
def test_with_delay_it_does_not_matter_which_input_is_ahead(
    stream: list[Record], random: Any, match: dict[str, Any]
) -> None:
    operator = join(**match, delay=100)
    sides = [[one for one in stream if one.sender == sender] for sender in "lr"]
    numbered = [
        Record({**one.value, "n": (one.sender, n)}, one.key, one.timestamp_ms, sender=one.sender)
        for side in sides
        for n, one in enumerate(side)
    ]

    def outcome(mixed: list[Record]) -> list[str]:
        return sorted(str(value) for value in run(operator, mixed).values)

    mixed = list(numbered)
    places = sorted(range(len(numbered)), key=lambda place: random.random())
    mixed = [numbered[place] for place in places]
    for sender in "lr":  # each input stays in its order
        own = iter([one for one in numbered if one.sender == sender])
        mixed = [next(own) if one.sender == sender else one for one in mixed]
    assert outcome(mixed) == outcome(numbered)


def test_key_time_headers_and_position_are_those_of_the_first_input() -> None:
    headers = (("h", b"1"),)
    stream = [
        Record({"b": 1, "k": "k"}, "key r", 1000, sender="r"),
        Record({"a": 2, "k": "k"}, "key l", 2000, headers, sender="l"),
    ]
    [found] = run(join(by="k"), stream).records
    assert found == Record({"a": 2, "k": "k", "b": 1}, "key l", 2000, headers, {"index": 1})


def test_what_has_no_fields_or_lacks_one_is_rejected() -> None:
    stream = [
        Record(5, None, 0, sender="l"),
        Record({"c": 1}, None, 0, sender="r"),
        Record({"a": 1}, None, 0, sender="l"),
        Record({"a": 1}, sender="l"),
    ]
    found = run(join(fields=("b",)), stream)
    assert found.causes == {
        0: "expected fields, found a int without",
        1: "expected the field b, found none",
        3: "expected a time, found none; name the field that holds it in time",
    }
    assert found.values == [{"a": 1, "b": None}]


def test_over_a_stop_records_stay_held_and_the_end_gives_them_once() -> None:
    operator = join(delay=5)
    stream = [
        Record({"b": 1}, None, 0, sender="r"),
        Record({"a": 1}, None, 1000, sender="l"),
    ]
    with operator.open(Context("node")) as processor:
        assert processor.process(make_batch(stream)).batch is None
        assert processor.report()["records held"] == 1
        state = processor.state()
    for expected in ([{"a": 1, "b": 1}], None):
        with operator.open(Context("node")) as processor:
            processor.restore(state)
            ended = processor.end().batch
            assert (ended.rows() if ended else None) == expected
            state = processor.state()


async def run_graph(graph: Graph) -> None:
    async with graph.open() as opened:
        await opened.wait()


def test_inputs_are_told_apart_in_a_graph() -> None:
    sink = ListSink(inputs=("both",))
    trades = [Record({"price": n}, None, 1000 * n) for n in range(4)]
    quotes = [Record({"bid": n}, None, 1500 * n) for n in range(4)]
    graph = Graph(
        name="g",
        sources={
            "trades": ListSource(values=tuple(trades), batch_size=3),
            "quotes": ListSource(values=tuple(quotes), batch_size=2),
        },
        operators={"both": Join(inputs=("trades", "quotes"), delay=60)},
        sinks={"out": sink},
    )
    anyio.run(run_graph, graph)
    assert sink.probe.values == [
        {"price": 0, "bid": 0},
        {"price": 1, "bid": 0},
        {"price": 2, "bid": 1},
        {"price": 3, "bid": 2},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ("l",)}, "inputs: expected two inputs, found 1; join others one by one"),
        ({"inputs": ("l", "r", "s")}, "inputs: expected two inputs, found 3"),
        ({"match": "all"}, "within: expected a time beside match: all, found none; write within"),
        ({"match": "first"}, "match: expected"),
        ({"delay": 5, "ttl": 4}, "ttl: expected at least delay, 5 seconds, found 4"),
        ({"max_records": 0}, "max_records: expected a number of at least 1"),
        ({"unmatched": "reject"}, "unmatched: expected"),
        ({"fields": ()}, "fields: expected a list of 1 or more"),
        ({"within": 0}, "within: expected a number of at least 0.001"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        join(**options)
