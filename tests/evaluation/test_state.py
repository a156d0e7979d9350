"""A restored scorer goes on giving the very same reports and histories."""

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamflow.evaluation import Scorer, make_scorer
from streamflow.evaluation import scorer as scorer_module
from tests.state_trees import pack, unpack

CLASSES = ("up", "down", "flat")
KEYS = ("a", b"a", 7, 7.5, True, None, "", -1)

Columns = list[Any]
"""Predictions, targets, scores, keys and previous targets, as `Scorer.update` takes them."""


def numbers(source: random.Random, count: int) -> Columns:
    values = [[source.gauss(1e3, 1) for _ in range(count)] for _ in range(3)]
    return [values[0], values[1], None, None, [source.choice([None, x]) for x in values[2]]]


def arrays(source: random.Random, count: int) -> Columns:
    values = np.random.default_rng(source.randrange(1000)).normal(size=(2, count, 3))
    return [list(values[0]), list(values[1]), None, None, None]


def labels(source: random.Random, count: int) -> Columns:
    values = [source.choices(CLASSES, weights=[5, 3, 1], k=count) for _ in range(3)]
    rows = [[source.random() + 0.01 for _ in CLASSES] for _ in range(count)]
    return [*values[:2], [[entry / sum(row) for entry in row] for row in rows], None, values[2]]


def bits(source: random.Random, count: int) -> Columns:
    values = [[source.random() < 0.3 for _ in range(count)] for _ in range(2)]
    return [*values, None, None, None]


KINDS: dict[str, tuple[Any, Callable[[random.Random, int], Columns]]] = {
    "regression": ("regression", numbers),
    "arrays": ("regression", arrays),
    "binary": ("binary", bits),
    "classification": ("classification", labels),
}


def made(task: Any, window: int) -> Scorer:
    classes = CLASSES if task == "classification" else None
    return make_scorer(task, classes=classes, window=window)


def stream(kind: str, count: int, seed: int, *, has_keys: bool) -> Columns:
    source = random.Random(seed)
    columns = KINDS[kind][1](source, count)
    columns[1] = [None if source.random() < 0.1 else target for target in columns[1]]
    if has_keys:
        columns[3] = source.choices(KEYS, k=count)
    return columns


def feed(scorer: Scorer, columns: Columns, start: int, stop: int) -> str:
    parts: list[Any] = [None if column is None else column[start:stop] for column in columns]
    scorer.update(*parts)
    return json.dumps([scorer.report(), scorer.history()])  # tells every bit of a number


def goes_on(kind: str, window: int, columns: Columns, cuts: Sequence[int]) -> None:
    """Compare a scorer with others that are restored from it at the first cut."""
    count = len(columns[1])
    task = KINDS[kind][0]
    whole, resumed = made(task, window), made(task, window)
    feed(whole, columns, 0, cuts[0])
    state = whole.state()
    packed = pack(state)
    resumed.restore(unpack(packed))
    assert json.dumps([resumed.report(), resumed.history()]) == feed(whole, columns, 0, 0)
    places = [*cuts, count]
    for start, stop in pairwise(places):
        assert feed(resumed, columns, start, stop) == feed(whole, columns, start, stop)
    assert pack(state) == packed
    assert pack(resumed.state()) == pack(whole.state())


some_cuts = st.lists(st.integers(0, 150), min_size=1, max_size=4).map(sorted)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    window=st.sampled_from([1, 7, 40, 1000]),
    cuts=some_cuts,
    seed=st.integers(0, 1000),
    has_keys=st.booleans(),
)
@example(kind="arrays", window=7, cuts=[0], seed=0, has_keys=False)
@example(kind="classification", window=40, cuts=[1], seed=0, has_keys=True)
def test_a_restored_scorer_gives_the_same_reports(
    kind: str, window: int, cuts: list[int], seed: int, has_keys: bool
) -> None:
    goes_on(kind, window, stream(kind, 150, seed, has_keys=has_keys), cuts)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("cut", [4990, 6500])
def test_a_long_stream_goes_on(kind: str, cut: int) -> None:
    """The window is full and has moved several times, and the history has thinned out."""
    columns = stream(kind, 9000, seed=1, has_keys=False)
    goes_on(kind, 1000, columns, [cut, cut + 1, cut + 2000])


def test_the_order_in_which_keys_are_forgotten_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "MOST_KEYS", 2)
    whole = made("regression", 1)
    whole.update([0.0] * 3, [1.0, 2.0, 1.0], keys=["a", "b", "a"])
    resumed = made("regression", 1)
    resumed.restore(unpack(pack(whole.state())))
    for scorer in (whole, resumed):
        scorer.update([0.0] * 2, [3.0, 1.5], keys=["c", "a"])  # drops b
        assert scorer.report()["windowed"]["no_change"]["mae"] == 0.5


def test_a_window_that_has_become_smaller_holds_the_newest() -> None:
    columns = stream("regression", 1500, seed=2, has_keys=False)
    large, small, resumed = (made("regression", window) for window in (2000, 5, 5))
    for scorer in (large, small):
        feed(scorer, columns, 0, 1500)
    resumed.restore(large.state())
    assert resumed.report() == small.report()


def test_restoring_replaces_what_was_there_even_by_nothing() -> None:
    used = made("regression", 7)
    feed(used, stream("regression", 90, seed=3, has_keys=True), 0, 90)
    used.restore(made("regression", 7).state())
    fresh = made("regression", 7)
    columns = stream("regression", 30, seed=4, has_keys=True)
    assert feed(used, columns, 0, 3) == feed(fresh, columns, 0, 3)
    assert feed(used, columns, 3, 30) == feed(fresh, columns, 3, 30)
