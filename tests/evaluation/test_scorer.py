import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.evaluation import Scorer, make_scorer
from streamflow.evaluation import scorer as scorer_module

metrics: Any = import_module("river.metrics")  # an independent implementation, without types

CLASSES = ("up", "down", "flat")


def labels(count: int, seed: int) -> list[str]:
    return random.Random(seed).choices(CLASSES, weights=[5, 3, 1], k=count)


def probabilities(count: int, seed: int) -> list[list[float]]:
    source = random.Random(seed)
    rows = [[source.random() + 0.01 for _ in CLASSES] for _ in range(count)]
    return [[entry / sum(row) for entry in row] for row in rows]


def walk(count: int, seed: int, offset: float = 0.0) -> list[float]:
    source = random.Random(seed)
    return [offset + source.gauss(0, 1) + index / 50 for index in range(count)]


def river_classification(
    predictions: Sequence[Any], targets: Sequence[Any]
) -> dict[str, float | None]:
    accuracy, kappa = metrics.Accuracy(), metrics.CohenKappa()
    for prediction, target in zip(predictions, targets, strict=True):
        accuracy.update(target, prediction)
        kappa.update(target, prediction)
    return {"accuracy": accuracy.get(), "kappa": kappa.get()}


def river_regression(
    predictions: Sequence[float], targets: Sequence[float]
) -> dict[str, float | None]:
    found = {"mae": metrics.MAE(), "rmse": metrics.RMSE(), "r2": metrics.R2()}
    for prediction, target in zip(predictions, targets, strict=True):
        for metric in found.values():
            metric.update(target, prediction)
    return {name: metric.get() for name, metric in found.items()}


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize("window", [7, 100, 1000])
def test_classification_is_rivers(window: int) -> None:
    targets, predictions = labels(300, seed=1), labels(300, seed=2)
    scorer = make_scorer("classification", classes=CLASSES, window=window)
    scorer.update(predictions, targets)
    report = scorer.report()
    majority = [targets[0]]
    for seen in range(2, 300):  # of equals the one that got there first
        counts = Counter(targets[:seen])
        is_overtaken = counts[targets[seen - 1]] > counts[majority[-1]]
        majority.append(targets[seen - 1] if is_overtaken else majority[-1])
    for name, guesses in (
        ("model", predictions[1:]),
        ("no_change", targets[:-1]),
        ("majority", majority),
    ):
        found = without(report["cumulative"][name], "log_loss")
        assert found == pytest.approx(river_classification(guesses, targets[1:]), abs=1e-12)
        found = without(report["windowed"][name], "log_loss")
        expected = river_classification(guesses[-window:], targets[1:][-window:])
        assert found == pytest.approx(expected, abs=1e-12)
    assert report["scored"] == 299


def test_binary_log_loss_is_rivers() -> None:
    targets = [bool(index % 3) for index in range(50)]
    scores = [[1 - share, share] for share in map(random.Random(3).uniform, [0] * 50, [1] * 50)]
    scorer = make_scorer("binary", window=10)
    scorer.update([row[1] > 0.5 for row in scores], targets, scores)
    report = scorer.report()
    for part, start in (("cumulative", 1), ("windowed", 40)):
        expected = metrics.LogLoss()
        for target, row in zip(targets[start:], scores[start:], strict=True):
            expected.update(target, row[1])
        found = report[part]["model"]["log_loss"]
        assert found == pytest.approx(expected.get(), abs=1e-12)


def test_baselines_log_losses_are_those_of_their_frequencies() -> None:
    targets = labels(40, seed=4)
    scorer = make_scorer("classification", classes=CLASSES)
    scorer.update(targets, targets)
    majority, no_change, hits = [], [], 0
    for seen in range(1, 40):
        target, previous = targets[seen], targets[seen - 1]
        majority.append((targets[:seen].count(target) + 1) / (seen + 3))
        share = (hits + 1) / (seen - 1 + 2)
        no_change.append(share if target == previous else (1 - share) / 2)
        hits += target == previous
    report = scorer.report()["cumulative"]
    for name, shares in (("majority", majority), ("no_change", no_change)):
        expected = sum(-math.log(share) for share in shares) / 39
        assert report[name]["log_loss"] == pytest.approx(expected, abs=1e-12)
    assert report["model"]["log_loss"] is None  # it gave no probabilities


@pytest.mark.parametrize("window", [7, 100, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_regression_is_rivers(window: int, offset: float) -> None:
    targets, predictions = walk(300, seed=1, offset=offset), walk(300, seed=2, offset=offset)
    scorer = make_scorer("regression", window=window)
    scorer.update(predictions, targets)
    report = scorer.report()
    means = [math.fsum(targets[:stop]) / stop for stop in range(1, 300)]
    for name, guesses in (
        ("model", predictions[1:]),
        ("no_change", targets[:-1]),
        ("running_mean", means),
    ):
        expected = river_regression(guesses, targets[1:])
        assert report["cumulative"][name] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        expected = river_regression(guesses[-window:], targets[1:][-window:])
        assert report["windowed"][name] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_arrays_are_averaged_over_their_elements() -> None:
    source = np.random.default_rng(5)
    targets, predictions = source.normal(size=(2, 20, 3))
    scorer = make_scorer("regression")
    scorer.update(list(predictions), [None, *targets[1:]])
    found = scorer.report()["cumulative"]["model"]
    errors, scored = predictions[2:] - targets[2:], targets[2:]
    squares = ((scored - scored.mean(axis=0)) ** 2).sum()
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-12)
    assert found["rmse"] == pytest.approx(math.sqrt((errors**2).mean()), rel=1e-12)
    assert found["r2"] == pytest.approx(1 - (errors**2).sum() / squares, rel=1e-12)


def test_a_number_alone_in_a_list_is_that_number() -> None:
    mixed, plain = make_scorer("regression"), make_scorer("regression")
    mixed.update([0.5, 0.5, 0.5], [1.0, [2.0], np.array([[4.0]])])
    plain.update([0.5, 0.5, 0.5], [1.0, 2.0, 4.0])
    assert mixed.report() == plain.report()


def test_no_change_is_the_last_target_of_the_key() -> None:
    targets = [10.0, 20.0, 10.5, 20.5, 99.0, 10.0]
    scorer = make_scorer("regression", window=1)
    errors = []
    for index, target in enumerate(targets):
        scorer.update([0.0], [target], keys=["abababcab"[index]] if index != 4 else ["c"])
        errors.append(scorer.report()["windowed"]["no_change"]["mae"])
    # b's first and c's first are compared with the last target of any key
    assert errors == [None, 10.0, 0.5, 0.5, 78.5, 10.5]


def test_keys_beyond_the_limit_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "MOST_KEYS", 2)
    scorer = make_scorer("regression", window=1)
    scorer.update([0.0] * 4, [1.0, 2.0, 1.0, 3.0], keys=["a", "b", "a", "c"])  # drops b
    scorer.update([0.0], [1.0], keys=["a"])
    assert scorer.report()["windowed"]["no_change"]["mae"] == 0
    scorer.update([0.0], [2.0], keys=["b"])
    assert scorer.report()["windowed"]["no_change"]["mae"] == 1


def test_a_forecast_is_compared_with_what_was_known_then() -> None:
    scorer = make_scorer("regression")
    scorer.update([0.0] * 3, [1.0, 2.0, 4.0], previous=[None, 0.0, None])
    assert scorer.report()["cumulative"]["no_change"]["mae"] == 2  # |0 - 2| and |2 - 4|


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_what_has_no_target_is_not_scored(unknown: float | None) -> None:
    scorer = make_scorer("regression")
    scorer.update([1.0, 1.0, 1.0, 9.0], [unknown, 1.0, 2.0, unknown])
    scorer.update([5.0], [unknown])
    report = scorer.report()
    assert report["scored"] == 1
    assert report["cumulative"]["model"] == {"mae": 1.0, "rmse": 1.0, "r2": None}


def test_labels_without_a_target_keep_their_scores_apart() -> None:
    scorer = make_scorer("classification", classes=["a", "b"])
    scores = [[0.5, 0.5], [0.1, 0.9], [0.25, 0.75]]
    scorer.update(["a", "b", "b"], ["a", None, "b"], scores)
    model = scorer.report()["cumulative"]["model"]
    assert model == {"accuracy": 1.0, "kappa": None, "log_loss": pytest.approx(-math.log(0.75))}


def test_a_network_that_diverged_has_no_score_but_recovers_in_the_window() -> None:
    scorer = make_scorer("regression", window=2)
    scorer.update([0.0, math.nan, 1e300, 1.0, 1.0], [1.0, 1.0, 1.0, 2.0, 1.0])
    report = json.loads(json.dumps(scorer.report(), allow_nan=False))
    assert report["cumulative"]["model"] == {"mae": None, "rmse": None, "r2": None}
    assert report["cumulative"]["no_change"]["mae"] == 0.5
    assert report["windowed"]["model"]["mae"] == 0.5


@pytest.mark.parametrize("scorer", [make_scorer("regression"), make_scorer("binary")])
def test_nothing_is_defined_before_the_second_target(scorer: Scorer) -> None:
    for _ in range(2):
        report = scorer.report()
        values = [
            value
            for part in ("cumulative", "windowed")
            for row in report[part].values()
            for value in row.values()
        ]
        assert set(values) == {None}
        assert report["scored"] == 0
        scorer.update([1], [1])


@pytest.mark.parametrize("constant", [0.1, 1e9 + 0.1])
def test_constant_targets_have_no_r2(constant: float) -> None:
    scorer = make_scorer("regression")
    scorer.update([0.0] * 50, [constant] * 50)
    report = scorer.report()
    assert report["cumulative"]["running_mean"] == {"mae": 0, "rmse": 0, "r2": None}
    assert report["windowed"]["model"]["r2"] is None


def test_classes_must_be_known() -> None:
    with pytest.raises(ValueError, match="expected at least two, found"):
        make_scorer("classification")
    scorer = make_scorer("classification", classes=["a", "b"])
    with pytest.raises(ValueError, match=r"expected one of .*, found 'c'; list all classes"):
        scorer.update(["a"], ["c"])
    assert repr(scorer) == "<Scorer of classification after 0 samples>"


def fed_in_parts(
    task: str, columns: Sequence[Sequence[Any] | None], cuts: Sequence[int]
) -> tuple[Any, Any]:
    assert columns[0] is not None
    num_samples = len(columns[0])
    scorer = make_scorer(task, classes=CLASSES, window=16)  # type: ignore[arg-type]
    for start, stop in pairwise([0, *cuts, num_samples]):
        parts = [None if column is None else column[start:stop] for column in columns]
        scorer.update(*parts)  # type: ignore[arg-type]
    return scorer.report(), scorer.history()


some_cuts = st.lists(st.integers(0, 200), max_size=20).map(sorted)
seeds = st.integers(0, 1000)


@settings(deadline=None)
@given(cuts=some_cuts, seed=seeds, has_keys=st.booleans())
def test_classification_does_not_depend_on_batches(
    cuts: list[int], seed: int, has_keys: bool
) -> None:
    targets = [None if random.Random(i).random() < 0.1 else t for i, t in enumerate(labels(200, 7))]
    keys = random.Random(seed).choices("abc", k=200) if has_keys else None
    columns: list[Any] = [labels(200, seed), targets, probabilities(200, seed), keys]
    whole = fed_in_parts("classification", columns, [])
    assert fed_in_parts("classification", columns, cuts) == whole


@settings(deadline=None)
@given(cuts=some_cuts, seed=seeds, has_keys=st.booleans(), width=st.sampled_from([0, 1, 9]))
def test_regression_does_not_depend_on_batches(
    cuts: list[int], seed: int, has_keys: bool, width: int
) -> None:
    source = np.random.default_rng(seed)
    shape = (200, width) if width else 200
    targets: list[Any] = list(source.normal(1e6, 1, size=shape))
    targets[5] = targets[150] = None
    keys = source.integers(3, size=200).tolist() if has_keys else None
    columns: list[Any] = [source.normal(1e6, 1, size=shape), targets, None, keys]
    assert fed_in_parts("regression", columns, cuts) == fed_in_parts("regression", columns, [])


def test_large_updates_are_the_same_as_small_ones() -> None:
    targets, predictions = walk(5000, seed=1), walk(5000, seed=2)
    columns = [predictions, targets]
    cuts = list(range(0, 5000, 100))
    assert fed_in_parts("regression", columns, cuts) == fed_in_parts("regression", columns, [])


def test_history_thins_out_as_it_grows() -> None:
    targets = walk(20_001, seed=1)
    predictions = [0.0] * 20_001
    scorer = make_scorer("regression", window=100)
    scorer.update(predictions, targets)
    history = scorer.history()
    assert history["metric"] == "mae"
    assert 250 <= len(history["scored"]) < 500
    strides = {later - sooner for sooner, later in pairwise(history["scored"])}
    assert len(strides) == 1
    errors = np.abs(targets[1:])
    for place, point in zip(history["scored"], history["lines"]["model"], strict=True):
        assert point == pytest.approx(errors[max(place - 100, 0) : place].mean(), rel=1e-12)
    assert list(history["lines"]) == ["model", "no_change", "running_mean"]


def test_history_of_few_samples() -> None:
    scorer = make_scorer("binary")
    scorer.update([0] * 21, [0] * 21)
    assert scorer.history() == {
        "metric": "accuracy",
        "scored": [10, 20],
        "lines": {"model": [1.0, 1.0], "no_change": [1.0, 1.0], "majority": [1.0, 1.0]},
    }
