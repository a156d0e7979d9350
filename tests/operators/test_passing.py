"""Operators that let some records pass: each against its definition in plain Python."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.errors import GraphError
from streamflow.operators.deduplication import Deduplicate
from streamflow.operators.keys import KeyedOperator
from streamflow.operators.sampling import Sample
from streamflow.operators.throttling import Throttle
from streamflow.records import Record
from streamflow.testing import check_operator
from tests.operators.samples import run

keys = st.sampled_from(["a", "b", 1, None])
halves = st.integers(0, 18).map(lambda n: 500 * n)
records = st.lists(
    st.builds(
        Record,
        st.fixed_dictionaries({"a": st.integers(0, 3)}),
        keys,
        halves,
    ),
    max_size=14,
)
cuts = st.lists(st.integers(0, 14), max_size=4)
limits = st.integers(1, 3)
ttls = st.none() | st.integers(1, 5)


class Remembered:
    """What is known of keys, by definition: nothing is removed but what must be."""

    def __init__(self, max_keys: int, ttl: float | None) -> None:
        self.max_keys, self.ttl = max_keys, ttl
        self.states: dict[Any, Any] = {}
        self.seen: dict[Any, tuple[int, int]] = {}  # the clock, and the number of the record
        self.clock = -1
        self.number = self.given_up = 0

    def at(self, key: Any, time_ms: int) -> Any:
        self.clock = max(self.clock, time_ms)
        for other, (clock, _) in list(self.seen.items()):
            if self.ttl is not None and self.clock - clock > 1000 * self.ttl:
                del self.states[other], self.seen[other]
        return self.states.get(key)

    def put(self, key: Any, state: Any) -> None:
        self.number += 1
        self.states[key], self.seen[key] = state, (self.clock, self.number)
        if len(self.states) > self.max_keys:
            oldest = min(self.seen, key=lambda other: self.seen[other][1])
            del self.states[oldest], self.seen[oldest]
            self.given_up += 1


def check(
    operator: KeyedOperator,
    stream: list[Record],
    places: list[int],
    in_columns: bool,
    passes: Any,
) -> None:
    """Check an operator against whether a record passes, given and returning a key's state."""
    known = Remembered(operator.max_keys, operator.ttl)
    expected = []
    for record in stream:
        passing, state = passes(known.at(record.key, record.timestamp_ms or 0), record)
        known.put(record.key, state)
        if passing:
            expected.append((record.value, record.key, record.timestamp_ms))
    found = run(operator, stream, places, in_columns=in_columns)
    assert [(one.value, one.key, one.timestamp_ms) for one in found.records] == expected
    assert found.causes == {}
    assert found.report == {
        "keys": len(known.states),
        "keys given up": known.given_up,
        "records left out": len(stream) - len(expected),
    }
    check_operator(lambda: operator, stream)


@settings(max_examples=50, deadline=None)
@given(records, cuts, st.booleans(), limits, ttls)
def test_deduplicate_is_its_definition(
    stream: list[Record], places: list[int], in_columns: bool, max_keys: int, ttl: float | None
) -> None:
    operator = Deduplicate(inputs=("in",), max_keys=max_keys, ttl=ttl)
    check(operator, stream, places, in_columns, lambda state, record: (state is None, True))


@settings(max_examples=50, deadline=None)
@given(records, cuts, st.booleans(), limits, ttls, limits, st.integers(1, 4))
def test_throttle_is_its_definition(
    stream: list[Record],
    places: list[int],
    in_columns: bool,
    max_keys: int,
    ttl: float | None,
    count: int,
    per: int,
) -> None:
    def passes(passed: list[int] | None, record: Record) -> tuple[bool, list[int]]:
        assert record.timestamp_ms is not None
        passed = passed or []
        too_near = [time for time in passed if record.timestamp_ms - time < 1000 * per]
        passing = not passed[-count:] or len(passed) < count or min(passed[-count:]) not in too_near
        return passing, passed + [record.timestamp_ms] * passing

    operator = Throttle(inputs=("in",), max_keys=max_keys, ttl=ttl, records=count, per=per)
    check(operator, stream, places, in_columns, passes)


def test_throttle_lets_so_many_pass_in_any_span() -> None:
    stream = [Record({"n": n}, timestamp_ms=500 * n) for n in range(10)]
    found = run(Throttle(inputs=("in",), records=2, per="2s"), stream)
    assert [value["n"] for value in found.values] == [0, 1, 4, 5, 8, 9]


@settings(max_examples=50, deadline=None)
@given(records, cuts, st.booleans(), limits, ttls, st.integers(1, 4))
def test_sampling_every_is_its_definition(
    stream: list[Record],
    places: list[int],
    in_columns: bool,
    max_keys: int,
    ttl: float | None,
    every: int,
) -> None:
    def passes(count: int | None, record: Record) -> tuple[bool, int]:
        return (count or 0) % every == 0, (count or 0) + 1

    operator = Sample(inputs=("in",), max_keys=max_keys, ttl=ttl, every=every)
    check(operator, stream, places, in_columns, passes)


def kept(count: int, **options: Any) -> list[int]:
    stream = [{"n": n, "k": n % 100} for n in range(count)]
    found = run(Sample(inputs=("in",), **options), stream, [7, 1000])
    return [value["n"] for value in found.values]


def test_a_fraction_is_random_and_the_same_in_every_run() -> None:
    some = kept(4000, fraction=0.25)
    assert 850 < len(some) < 1150
    assert some == kept(4000, fraction=0.25)
    assert some != kept(4000, fraction=0.25, seed=1)
    assert set(some) < set(kept(4000, fraction=0.5))
    assert kept(50, fraction=1.0) == list(range(50))
    parts = [sum(n < 2000 for n in some), sum(n % 2 for n in some)]
    assert all(350 < half < 650 for half in parts)


def test_a_fraction_of_keys_keeps_whole_keys() -> None:
    some = kept(4000, fraction=0.25, by="k")
    chosen = {n % 100 for n in some}
    assert some == [n for n in range(4000) if n % 100 in chosen]
    assert 12 < len(chosen) < 38


def test_a_fraction_goes_on() -> None:
    stream = [{"n": n, "k": n % 3} for n in range(12)]
    check_operator(lambda: Sample(inputs=("in",), fraction=0.5), stream)
    check_operator(lambda: Sample(inputs=("in",), fraction=0.5, by=("k",)), stream)


@pytest.mark.parametrize("by", ["k", ("k", "n")])
def test_fields_are_the_key(by: Any) -> None:
    stream = [
        {"k": "x", "n": 1},
        {"k": "y", "n": 1},
        {"k": "x", "n": 2},
        {"n": 1},
        {"k": [1], "n": 1},
        7,
        {"k": float("nan"), "n": 1},
        {"k": "x", "n": 1},
        {"k": 1.5, "n": 1},
        {"k": 1.5, "n": 1},
    ]
    found = run(Deduplicate(inputs=("in",), by=by), stream, [3])
    fields = (by,) if isinstance(by, str) else by
    expected: list[Any] = []
    for value in (stream[index] for index in (0, 1, 2, 7, 8, 9)):
        assert isinstance(value, dict)
        identity = [value[name] for name in fields]
        if identity not in [[other[name] for name in fields] for other in expected]:
            expected.append(value)
    assert found.values == expected
    assert found.causes == {
        3: "expected the field k, found none",
        4: "k: expected a number or text as key, found [1]",
        5: "expected the field k, found a int without fields",
        6: "k: expected a number or text as key, found nan",
    }


@pytest.fixture
def _far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the machine be where it is never the time of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX+05:30")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_far_away")
def test_times_come_from_a_field() -> None:
    stream = [
        {"at": 0.0},
        {"at": 0.9},
        {"at": "1970-01-01T00:00:01Z"},
        {"at": "1970-01-01T01:00:01.900+01:00"},
        {"at": "1970-01-01 00:00:02"},
        {"at": "yesterday"},
        {"at": True},
        {"at": None},
        {},
        {"at": float("inf")},
    ]
    throttle = Throttle(inputs=("in",), per="1s", time="at")
    found = run(throttle, stream, [4])
    assert found.values == [stream[0], stream[2], stream[4]]
    assert found.causes == {
        5: "at: expected a time, found 'yesterday'",
        6: "at: expected a time, found True",
        7: "at: expected a time, found None",
        8: "expected the field at, found none",
        9: "at: expected a time, found inf",
    }
    near = [{"at": "1970-01-01 00:00:02"}, {"at": 3.1}]
    assert run(throttle, near).values == near
    cause = "expected a time, found none; name the field that holds it in time"
    assert run(Throttle(inputs=("in",), per="1s"), [{"a": 1}]).causes == {0: cause}


@pytest.mark.parametrize(("unit", "span"), [("s", 1), ("ms", 1000), ("us", 1_000_000)])
def test_numbers_have_a_unit(unit: Any, span: int) -> None:
    stream = [{"at": 0}, {"at": int(0.99 * span)}, {"at": span}]
    throttle = Throttle(inputs=("in",), per="1s", time="at", time_unit=unit)
    assert run(throttle, stream).values == [stream[0], stream[2]]


@pytest.mark.parametrize(
    ("operator", "options", "message"),
    [
        (Deduplicate, {"by": ()}, "by: expected a list of 1 or more"),
        (Deduplicate, {"by": ("a", "a")}, "by: expected each field once"),
        (Deduplicate, {"max_keys": 0}, "max_keys: expected a number of at least 1"),
        (Deduplicate, {"ttl": 0}, "ttl: expected a number of at least 0.001"),
        (
            Deduplicate,
            {"ttl": "5"},
            "ttl: expected a span of time, found '5'; write one with a unit of ms",
        ),
        (Deduplicate, {"ttl": "5 weeks"}, "ttl: expected a span of time"),
        (Deduplicate, {"time": "at"}, "expected ttl beside time, found none; time is of no use"),
        (Throttle, {"per": 1, "time_unit": "ms"}, "expected time beside time_unit, found none"),
        (Throttle, {"per": 1, "records": 0}, "records: expected a number of at least 1"),
        (Sample, {}, "expected every or fraction, found neither; write one of them"),
        (Sample, {"every": 2, "fraction": 0.5}, "expected every or fraction, found both"),
        (Sample, {"every": 2, "seed": 0}, "expected fraction beside seed, found every"),
        (Sample, {"fraction": 0.5, "ttl": 1}, "expected every beside ttl, found fraction"),
        (Sample, {"fraction": 0}, "fraction: expected a number greater than 0"),
        (Sample, {"every": 0}, "every: expected a number of at least 1"),
    ],
)
def test_options_are_checked(
    operator: type[KeyedOperator], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        operator(inputs=("in",), **options)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("90s", 90),
        ("1.5h", 5400),
        (" 2 m ", 120),
        ("1d", 86400),
        (3, 3),
        (0.5, 0.5),
    ],
)
def test_spans_of_time(text: Any, seconds: float) -> None:
    assert Deduplicate(inputs=("in",), ttl=text).ttl == seconds
