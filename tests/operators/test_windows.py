"""Windows against their definition in plain Python, which keeps all and looks at all each time."""

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.contracts import Context
from streamflow.errors import GraphError
from streamflow.operators.aggregates import Quantile
from streamflow.operators.windows import Window
from streamflow.records import Record
from streamflow.testing import check_operator
from streamflow.testing.connectors import make_batch
from tests.operators.samples import run

FIELDS = {
    "n": "count()",
    "total": "sum(a)",
    "low": "min(a)",
    "high": "max(a * 2)",
    "mean": "mean(a)",
    "spread": "std(a)",
    "median": "quantile(a, 0.5)",
    "most": "quantile(a, 0.9)",
}


def window(**options: Any) -> Window:
    return Window(**{"inputs": ("in",), "fields": FIELDS} | options)


def computed(values: list[float]) -> dict[str, float]:
    """Do what `FIELDS` say."""
    return {
        "n": len(values),
        "total": sum(values),
        "low": min(values),
        "high": max(2 * value for value in values),
        "mean": statistics.fmean(values),
        "spread": statistics.pstdev(values),
        "median": statistics.median(values),
        "most": float(np.quantile(values, 0.9)),
    }


@dataclass
class One:
    """A window, by definition."""

    start: int
    end: int
    number: int
    values: list[float] = field(default_factory=list)
    last: int = 0
    revision: int = 0
    is_given: bool = False


class Definition:
    """All that windows are, without any thought of speed."""

    def __init__(self, operator: Window) -> None:
        self.operator = operator
        self.size, self.every, self.gap, self.ttl = (
            None if span is None else round(1000 * span)
            for span in (operator.size, operator.every, operator.gap, operator.ttl)
        )
        self.delay, self.lateness = round(1000 * operator.delay), round(1000 * operator.lateness)
        self.windows: dict[Any, list[One]] = {}
        self.newest: dict[Any, int] = {}
        self.clock = 0
        self.number = self.num_late = self.given_up = 0
        self.rows: list[Any] = []

    def watermark(self, key: Any) -> int:
        own = self.newest[key] - self.delay
        return own if self.ttl is None else max(own, self.clock - self.ttl)

    def take(self, index: int, key: Any, time: int, value: float) -> None:
        self.clock = max(self.clock, time)
        windows = self.windows.pop(key, [])  # the key is now the last one
        self.windows[key] = windows
        self.newest[key] = max(self.newest.get(key, time), time)
        horizon = self.watermark(key) - self.lateness
        find = self.fixed if self.size else self.session
        taking = find(windows, time, horizon)
        self.num_late += not taking
        for one in taking:
            one.values.append(value)
            one.last, one.is_given = index, False
        due = []
        if len(self.windows) > self.operator.max_keys:
            oldest = next(iter(self.windows))
            due = [(one, oldest) for one in self.windows.pop(oldest) if not one.is_given]
            del self.newest[oldest]
            self.given_up += 1
        for other, others in self.windows.items():
            due += [
                (one, other)
                for one in others
                if one.end <= self.watermark(other) and not one.is_given
            ]
        self.give(due)
        for other, others in list(self.windows.items()):
            watermark = self.watermark(other)
            others[:] = [one for one in others if one.end + self.lateness > watermark]
            silence = self.clock - self.ttl if self.ttl is not None else -(10**12)
            if not others and self.newest[other] - self.delay <= silence:
                del self.windows[other], self.newest[other]

    def fixed(self, windows: list[One], time: int, horizon: int) -> list[One]:
        assert self.size
        every = self.every or self.size
        taking = []
        for start in range(-20 * every, time + 1, every):
            if start <= time < start + self.size and start + self.size > horizon:
                [one] = [one for one in windows if one.start == start] or [self.new(windows, start)]
                taking.append(one)
        return taking

    def new(self, windows: list[One], start: int) -> One:
        self.number += 1
        windows.append(One(start, start + (self.size or self.gap or 0), self.number))
        return windows[-1]

    def session(self, windows: list[One], time: int, horizon: int) -> list[One]:
        assert self.gap
        met = [one for one in windows if one.start - self.gap < time < one.end]
        if not met:
            return [self.new(windows, time)] if time + self.gap > horizon else []
        first = min(met, key=lambda one: one.start)
        for other in sorted(met, key=lambda one: one.start):
            if other is not first:
                windows.remove(other)
                first.values += other.values
                first.revision = max(first.revision, other.revision)
        first.end = max([time + self.gap, *(one.end for one in met)])
        first.start = min(time, first.start)
        return [first]

    def give(self, due: list[tuple[One, Any]]) -> None:
        for one, key in sorted(due, key=lambda pair: (pair[0].end, pair[0].number)):
            value: dict[str, Any] = {"start_ms": one.start, "end_ms": one.end}
            value |= computed(one.values)
            if self.lateness:
                value["revision"] = one.revision
            self.rows.append((value, key, one.end, {"index": one.last}))
            one.revision += 1
            one.is_given = True

    def end(self) -> None:
        self.give(
            [(one, key) for key, found in self.windows.items() for one in found if not one.is_given]
        )


def approx(rows: list[Any]) -> list[Any]:
    return [(pytest.approx(value), *others) for value, *others in rows]


numbers = st.integers(-9, 9) | st.floats(-100, 100).map(lambda number: round(number, 2))
records = st.lists(
    st.builds(
        Record,
        st.fixed_dictionaries({"a": numbers}),
        st.sampled_from(["x", "y", "z"]),
        st.integers(0, 40).map(lambda n: 250 * n),
    ),
    max_size=16,
)
cuts = st.lists(st.integers(0, 16), max_size=4)
spans = st.sampled_from(
    [
        {"size": 1},
        {"size": "3s"},
        {"size": 3, "every": 1},
        {"size": 1, "every": 0.75},
        {"gap": 1},
        {"gap": "2s"},
    ]
)
options = st.fixed_dictionaries(
    {
        "delay": st.sampled_from([0, 0.5, 2]),
        "lateness": st.sampled_from([0, 1, 3]),
        "max_keys": st.integers(1, 3),
        "ttl": st.sampled_from([None, 2, 4]),
    }
)


@settings(max_examples=250, deadline=None)
@given(records, cuts, st.booleans(), spans, options)
def test_windows_are_their_definition(
    stream: list[Record],
    places: list[int],
    in_columns: bool,
    span: dict[str, Any],
    others: dict[str, Any],
) -> None:
    operator = window(**span, **others)
    definition = Definition(operator)
    for index, record in enumerate(stream):
        assert record.timestamp_ms is not None
        definition.take(index, record.key, record.timestamp_ms, record.value["a"])
    report = {
        "keys": len(definition.windows),
        "keys given up": definition.given_up,
        "records left out": definition.num_late,
        "windows": 0,
    }
    num_windows = sum(map(len, definition.windows.values()))
    definition.end()
    found = run(operator, stream, places, in_columns=in_columns)
    assert found.before["windows"] == num_windows
    rows = [(one.value, one.key, one.timestamp_ms, one.position) for one in found.records]
    assert rows == approx(definition.rows)
    assert found.causes == {}
    assert found.report == report


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(numbers, st.integers(0, 14).map(lambda n: 500 * n)), max_size=9),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1, 20]),
    st.sampled_from([0, 3]),
)
def test_sessions_that_meet_are_one(
    pairs: list[tuple[float, int]], gap: int, delay: int, lateness: int
) -> None:
    operator = window(gap=gap, delay=delay, lateness=lateness)
    definition = Definition(operator)
    for index, (number, time) in enumerate(pairs):
        definition.take(index, "x", time, number)
    definition.end()
    stream = [Record({"a": number}, "x", time) for number, time in pairs]
    found = run(operator, stream).records
    rows = [(one.value, one.key, one.timestamp_ms, one.position) for one in found]
    assert rows == approx(definition.rows)


@settings(max_examples=60, deadline=None)
@given(records, spans, options)
def test_windows_go_on(stream: list[Record], span: dict[str, Any], others: dict[str, Any]) -> None:
    operator = window(**span, **others, max_values=2, late="reject")
    check_operator(lambda: operator, stream)


def stream_of(*times: float) -> list[Record]:
    return [Record({"a": 1.0}, timestamp_ms=round(1000 * time)) for time in times]


def starts(operator: Window, *times: float) -> list[tuple[float, ...]]:
    """Return start, count and revision of windows, in seconds."""
    return [
        (value["start_ms"] / 1000, value["n"], value.get("revision", 0))
        for value in run(operator, stream_of(*times)).values
    ]


def test_the_drawing_is_right() -> None:
    operator = window(size=10, delay=2, lateness=5, late="reject")
    found = run(operator, stream_of(1, 9, 11, 8, 12, 3, 17, 4))
    spans = [(one["start_ms"], one["n"], one["revision"]) for one in found.values]
    assert spans == [(0, 3, 0), (0, 4, 1), (10_000, 3, 0)]
    assert found.causes == {7: "expected a record of an open window, found a late one"}


def test_late_records_are_counted_or_rejected() -> None:
    stream = stream_of(0, 12, 3)
    dropped = run(window(size=10), stream)
    assert (dropped.causes, dropped.report["records left out"]) == ({}, 1)
    rejected = run(window(size=10, late="reject"), stream)
    assert rejected.causes == {2: "expected a record of an open window, found a late one"}
    assert rejected.report["records left out"] == 0


def test_a_silent_key_ends_by_the_others() -> None:
    stream = [
        Record({"a": 1}, "x", 0),
        Record({"a": 2}, "y", 11_000),
        Record({"a": 3}, "y", 12_000),
        Record({"a": 4}, "y", 13_000),
    ]
    with window(size=10, ttl=2).open(Context("node")) as processor:
        batches = [make_batch([record], n) for n, record in enumerate(stream)]
        given = [processor.process(batch).batch for batch in batches]
        assert [batch is not None for batch in given] == [False, False, True, False]
        assert processor.report()["keys"] == 1
    assert [one["start_ms"] for one in run(window(size=10), stream).values] == [0, 10_000]


def test_sessions_meet() -> None:
    assert starts(window(gap=2), 0, 1, 2.5, 4.5, 6.4) == [(0, 3, 0), (4.5, 2, 0)]
    late = window(gap=2, delay=9, lateness=0)
    assert starts(late, 0, 3, 1.5) == [(0, 3, 0)]


def test_a_session_counts_on_from_the_part_that_was_given_most() -> None:
    operator = window(gap=6, lateness=100)
    found = run(operator, stream_of(0, 10, 30, 10.5, 5)).values
    assert [(one["start_ms"], one["n"], one["revision"]) for one in found] == [
        (0, 1, 0),
        (10_000, 1, 0),
        (10_000, 2, 1),
        (0, 4, 2),
        (30_000, 1, 0),
    ]


def test_over_a_stop_windows_stay_open_and_the_end_closes_them_once() -> None:
    with window(size=10).open(Context("node")) as processor:
        processor.process(make_batch(stream_of(1, 2)))
        state = processor.state()
    with window(size=10).open(Context("node")) as processor:
        processor.restore(state)
        ended = processor.end().batch
        assert ended is not None
        assert ended.column("n") == [2]
        state = processor.state()
    with window(size=10).open(Context("node")) as processor:
        processor.restore(state)
        assert processor.report()["windows"] == 0
        assert processor.end().batch is None


def test_fields_of_by_are_in_the_window() -> None:
    stream = [Record({"a": 1, "site": "s", "unit": u}, "k", 1000 * n) for n, u in enumerate("uvu")]
    found = run(window(size=10, by=("site", "unit"), fields={"n": "count()"}), stream)
    assert [(one.value, one.key) for one in found.records] == [
        ({"site": "s", "unit": "u", "start_ms": 0, "end_ms": 10_000, "n": 2}, "k"),
        ({"site": "s", "unit": "v", "start_ms": 0, "end_ms": 10_000, "n": 1}, "k"),
    ]
    single = run(window(size=10, by="unit", fields={"n": "count()"}), stream)
    assert [one["unit"] for one in single.values] == ["u", "v"]


def test_times_of_a_field_have_a_unit() -> None:
    stream = [{"a": 1, "at": 3}, {"a": 2, "at": 9}]
    found = run(window(size="5ms", time="at", time_unit="ms"), stream)
    assert [one["start_ms"] for one in found.values] == [0, 5]


def test_what_cannot_be_computed_is_rejected_and_moves_no_clock() -> None:
    stream = [
        Record({"a": 1}, timestamp_ms=0),
        Record({"a": "x"}, timestamp_ms=90_000),
        Record({"a": float("nan")}, timestamp_ms=90_000),
        Record({}, timestamp_ms=90_000),
        Record({"a": True}, timestamp_ms=1),
        Record({"a": 1}),
        Record({"a": 10**400}, timestamp_ms=1),
    ]
    found = run(window(size=10, fields={"n": "count()", "total": "sum(a)"}), stream)
    assert [value["total"] for value in found.values] == [2]
    assert found.causes == {
        1: "total: TypeError: expected a number, found a str",
        2: "total: ValueError: expected a finite number, found nan",
        3: "total: expected the field a, found none",
        5: "expected a time, found none; name the field that holds it in time",
        6: "total: OverflowError: int too large to convert to float",
    }


def test_sums_of_integers_are_exact() -> None:
    stream = [Record({"a": a}, timestamp_ms=0) for a in (2**60, 1, 2**60)]
    [value] = run(window(size=10, fields={"total": "sum(a)"}), stream).values
    assert value["total"] == 2**61 + 1


def test_quantiles_of_many_values_are_those_of_a_sample() -> None:
    values = [float(n * 7919 % 10007) for n in range(10_007)]
    stream = [Record({"a": a}, timestamp_ms=n) for n, a in enumerate(values)]
    exact = run(window(size=100, fields={"q": "quantile(a, 0.3)"}, max_values=20_000), stream)
    [value] = exact.values
    assert value["q"] == pytest.approx(np.quantile(values, 0.3))
    sampled = run(window(size=100, fields={"q": "quantile(a, 0.3)"}, max_values=400), stream)
    [value] = sampled.values
    assert abs(value["q"] - 3002) < 5 * 10_007 * np.sqrt(0.3 * 0.7 / 400)


def test_samples_of_two_sessions_make_one_of_both() -> None:
    ordered = [*range(4000), *range(8000, 16_000), *range(4000, 8000)]
    stream = [Record({"a": float(n)}, timestamp_ms=n) for n in ordered]
    fields = {"q": "quantile(a, 0.5)", "n": "count()"}
    operator = window(gap=3, delay=20, max_values=500, fields=fields)
    [value] = run(operator, stream).values
    assert value["n"] == 16_000
    assert abs(value["q"] - 8000) < 5 * 16_000 * 0.5 / np.sqrt(500)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-9, 9), max_size=30), st.lists(st.floats(-9, 9), max_size=30))
def test_a_sample_is_that_of_all_values_whatever_came_together(
    one: list[float], other: list[float]
) -> None:
    def taken(most: int) -> Quantile:
        first, second = Quantile(0.5, most, 1), Quantile(0.5, most, 2)
        for quantile, numbers in ((first, one), (second, other)):
            for number in numbers:
                quantile.add(number)
        first.absorb(second)
        return first

    (count, kept), (_, everything) = taken(5).save(), taken(100).save()
    assert count == len(one) + len(other) == len(everything)
    assert sorted(kept) == sorted(everything)[-5:]  # by priority, of which all differ


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": {}, "size": 1}, r"found none; write \{n: count\(\)\}"),
        ({}, "expected size or gap, found neither; write one of them"),
        ({"size": 1, "gap": 1}, "expected size or gap, found both; write one of them"),
        ({"gap": 1, "every": 1}, "expected size beside every, found gap"),
        ({"size": 1, "every": 2}, "expected every to be at most the size"),
        ({"size": "1h", "every": "1s"}, "at least a 1000th of it, found 1 and a size of 3600"),
        ({"size": 1, "delay": 5, "ttl": 4}, "expected a ttl of at least delay, 5 seconds, found 4"),
        ({"size": 1, "fields": {"end_ms": "count()"}}, "names of their own, found end_ms"),
        ({"size": 1, "by": "n"}, "names of their own, found n"),
        ({"size": 0}, "size: expected a number of at least 0.001"),
        ({"size": 1, "delay": -1}, "delay: expected a number of at least 0"),
        ({"size": 1, "max_values": 0}, "max_values: expected a number of at least 1"),
        ({"size": 1, "late": "keep"}, "late: expected"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        window(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean", r"expected an aggregate such as mean\(price\), found 'mean'"),
        ("mean(", "expected an aggregate such as mean"),
        ("median(a)", "expected one of count, max, mean, min, std, sum, quantile, found median"),
        ("mean(a, b)", r"expected an aggregate such as mean\(price\), found 'mean\(a, b\)'"),
        ("mean(x=a)", "expected an aggregate such as mean"),
        ("count(a)", r"expected an aggregate such as count\(\), found 'count\(a\)'"),
        ("quantile(a)", r"expected an aggregate such as quantile\(price, 0.9\), found"),
        ("quantile(a, 2)", "with a number from 0 to 1, found"),
        ("quantile(a, b)", "with a number from 0 to 1, found"),
        ("mean(a.b)", "expected what expressions can do, found 'a.b'"),
    ],
)
def test_aggregates_are_checked(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        window(size=1, fields={"x": text})
