"""River's metrics and detectors within models, against River itself and by hand."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift, metrics

from streamflow.checkpoints.trees import decode, encode, without_tensors
from streamflow.errors import GraphError
from streamflow.evaluation.river import RiverScores, fill, tree_of
from streamflow.models.deep import model_problems
from streamflow.observe.report import report_tables
from streamflow.runtime.stats import NodeStats, Stats
from tests.models.streams import line, model, numbers, readings, run
from tests.models.test_state import goes_on

METRICS = ["F1", "MCC", {"FBeta": {"beta": 2}}, "ROCAUC", "BalancedAccuracy", "LogLoss"]


def test_metrics_are_rivers_of_predictions_before_learning() -> None:
    outcome = run(model(metrics=METRICS), readings(200), cuts=[7, 50])
    known: Any = metrics
    expected = {name: getattr(known, name)() for name in ("F1", "MCC", "ROCAUC", "LogLoss")}
    expected |= {"FBeta(beta=2)": known.FBeta(2), "BalancedAccuracy": known.BalancedAccuracy()}
    true_positives = actual = found = 0
    for record in outcome.records:
        value = record.value
        for metric in expected.values():
            given = (
                value["prediction"] if metric.requires_labels else dict(enumerate(value["scores"]))
            )
            metric.update(value["target"], given)
        true_positives += value["prediction"] == value["target"] == 1
        actual += value["target"] == 1
        found += value["prediction"] == 1
    said = outcome.report["river"]["metrics"]
    assert said == {name: metric.get() for name, metric in expected.items()}
    assert said["F1"] == pytest.approx(2 * true_positives / (actual + found))


def test_metrics_of_numbers() -> None:
    outcome = run(line(metrics=["SMAPE", "MAE"]), numbers(60))
    errors = [abs(r.value["prediction"] - r.value["target"]) for r in outcome.records]
    said = outcome.report["river"]["metrics"]
    assert said["MAE"] == pytest.approx(sum(errors) / len(errors))
    assert 0 < said["SMAPE"] < 200


@pytest.mark.parametrize("detector", ["ADWIN", {"PageHinkley": {"threshold": 5}}, "KSWIN"])
def test_a_drift_is_found_after_the_stream_has_changed(detector: Any) -> None:
    draw = Random(2)
    scores = RiverScores("regression", None, [], detector)
    for number in range(2000):
        scores.update([draw.gauss(0, 1)], [0.0 if number < 1000 else 5.0], None)
    said = scores.report()["drift"]
    assert said["found"] >= 1
    assert min(place for place in said["at"] if place > 1000) < 1200


def test_mistakes_are_what_detectors_of_classes_see() -> None:
    outcome = run(model(learn=False, drift="DDM"), readings(600))
    detector: Any = drift.binary.DDM()
    at = []
    for place, record in enumerate(outcome.records, 1):
        detector.update(record.value["prediction"] != record.value["target"])
        if detector.drift_detected:
            at.append(place)
    assert outcome.report["river"]["drift"] == {"detector": "DDM", "found": len(at), "at": at}


@pytest.mark.parametrize("horizon", [None, 2])
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), min_size=1, max_size=3).map(sorted))
def test_a_restored_model_goes_on(horizon: int | None, cuts: list[int]) -> None:
    rows = [row if i % 5 else {**row, "class": None} for i, row in enumerate(readings(60))]
    goes_on(model(metrics=METRICS, drift="ADWIN", horizon=horizon), rows, cuts)


KNOWN = {
    name: getattr(metrics, name)
    for name in dir(metrics)
    if isinstance(getattr(metrics, name), type)
    and issubclass(getattr(metrics, name), metrics.base.Metric)
}


def take(made: Any, task: str, draw: Random, count: int) -> None:
    for _ in range(count):
        if task == "regression":
            made.update(draw.uniform(1, 2), draw.uniform(1, 2))
        elif made.requires_labels:
            made.update(draw.randrange(2), draw.randrange(2))
        else:
            chance = draw.random()
            made.update(draw.randrange(2), {0: 1 - chance, 1: chance})


def stored(tree: Any) -> Any:
    """Return a tree as a checkpoint gives it back."""
    return decode(encode({"tree": tree}, where="t").json, without_tensors)["tree"]


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_metric_that_is_accepted_goes_on_from_its_state(name: str) -> None:
    for task in ("regression", "classification"):
        try:
            made, again = (RiverScores(task, [0, 1], [name], None)._metrics[name] for _ in range(2))
        except GraphError:
            continue
        source, same = Random(1), Random(1)
        take(made, task, source, 40)
        take(again, task, same, 40)
        resumed = RiverScores(task, [0, 1], [name], None)._metrics[name]
        fill(resumed, stored(tree_of(made)))
        take(resumed, task, source, 40)
        take(again, task, same, 40)
        assert repr(resumed.get()) == repr(again.get())
        assert tree_of(resumed) == tree_of(again)


DETECTORS = ["ADWIN", "PageHinkley", {"KSWIN": {"seed": 3}}, "DDM", "EDDM", "HDDMA", "HDDMW"]


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("stop", [0, 1, 333])
def test_a_detector_goes_on_from_its_state(detector: Any, stop: int) -> None:
    draw = Random(4)
    targets = [int(draw.random() < (0.1 if place < 500 else 0.6)) for place in range(1000)]
    whole, first, second = (RiverScores("classification", [0, 1], [], detector) for _ in range(3))
    whole.update([0] * 1000, targets, None)
    first.update([0] * stop, targets[:stop], None)
    second.restore(stored(first.state()))
    second.update([0] * (1000 - stop), targets[stop:], None)
    assert second.state() == whole.state()
    assert whole.report()["drift"]["found"]


WRONG: list[tuple[Any, str]] = [
    ({"metrics": ["F11"]}, "metrics.0: expected a metric of river for classes, found F11; did you"),
    ({"metrics": ["ConfusionMatrix"]}, "metrics.0: expected a metric of river for classes, found"),
    ({"metrics": ["F1", "RMSE"]}, "metrics.1: expected a metric of river for classes, found RMSE"),
    ({"metrics": [{"FBeta": {"bet": 2}}]}, "metrics.0: expected options that FBeta takes and a st"),
    (
        {"metrics": ["F1"], "classes": ("n", "y")},
        "metrics.0: expected classes 0 and 1 for F1, whic",
    ),
    ({"drift": "ADWINN"}, "drift: expected a drift detector of river for this task, found ADWINN"),
    ({"drift": {"ADWIN": {"delt": 1}}}, "drift: expected options that ADWIN takes and a state"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_river_does_not_have(options: Any, message: str, tmp_path: Path) -> None:
    (found,) = model_problems(model(**options), tmp_path, only_scalars=True)
    assert str(found).startswith(message)


def test_a_detector_of_mistakes_is_for_classes(tmp_path: Path) -> None:
    (found,) = line(drift="DDM").deep_problems(tmp_path, only_scalars=True)
    assert str(found).startswith("drift: expected a drift detector of river for this task, found D")


def test_without_a_target_there_is_nothing_to_score() -> None:
    with pytest.raises(GraphError, match="metrics: expected a target to score, found none"):
        line(target=None, learn=False, metrics=["MAE"])


def test_other_metrics_begin_anew_and_the_same_go_on() -> None:
    first = RiverScores("classification", [0, 1], ["F1", "MCC"], "ADWIN")
    first.update([1, 0, 1], [1, 1, 0], None)
    second = RiverScores("classification", [0, 1], ["F1", "Accuracy"], "DDM")
    second.restore(stored(first.state()))
    assert second.report()["metrics"] == {"F1": 0.5, "Accuracy": 0.0}


def test_the_report_says_it() -> None:
    river = {"metrics": {"F1": 0.5}, "drift": {"detector": "ADWIN", "found": 2, "at": [32, 1024]}}
    node = NodeStats("model", 5, 5, 0, report={"river": river})
    tables: Any = report_tables("g", Stats("finished", 1.0, {"m": node}))
    said = [str(part) for part in tables.renderables]
    assert "m: F1 0.5, ADWIN found 2 drifts, the last after 1,024 records" in said
