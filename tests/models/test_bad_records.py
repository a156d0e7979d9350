import math
from typing import Any

import numpy as np
import pytest

from streamflow.models.model import Model
from tests.models.streams import line, model, readings, run

BAD: list[tuple[Any, str]] = [
    ({"class": 1}, "expected the field a, found none"),
    ({"a": None}, "expected a number for a, found None"),
    ({"a": "warm"}, "expected a number for a, found 'warm'"),
    ({"a": "3"}, "expected a number for a, found '3'"),
    ({"a": math.nan}, "expected a finite number for a, found nan"),
    ({"b": -math.inf}, "expected a finite number for b, found -inf"),
    ({"a": 10**400}, "expected a number for a, found 1000"),
    ({"a": 1e300}, "expected a finite number for a, found 1e+300"),
    ({"a": 1j}, "expected a number for a, found 1j"),
    ({"a": {"b": 1}}, "expected a number for a, found {'b': 1}"),
    ({"a": [1.0, 2.0]}, "expected features of shape [5], found [6]"),
    ({"a": []}, "expected features of shape [5], found [4]"),
    ({"a": [[1.0], [1.0, 2.0]]}, ""),
    ({"class": 2}, "expected a class of [0, 1], found 2"),
    ({"class": "up"}, "expected a class of [0, 1], found 'up'"),
    ({"class": [1]}, "expected a class of [0, 1], found [1]"),
    ({"class": math.nan}, "expected a class of [0, 1], found nan"),
    (None, "expected the field a, found none"),
    ([1, 2], "expected the field a, found none"),
]


def spoiled(change: Any) -> Any:
    if not isinstance(change, dict):
        return change
    row: dict[str, Any] = {**readings(1)[0], **change}
    return change if change == {"class": 1} else row


@pytest.mark.parametrize("declared", [model(), model(horizon=2), model(stages=("2",))])
@pytest.mark.parametrize("cuts", [(), range(40)])
def test_bad_records_leave_no_trace(declared: Model, cuts: Any) -> None:
    good = readings(len(BAD) + 1)
    rows = [good[0]]
    for (change, _), row in zip(BAD, good[1:], strict=True):
        rows += [spoiled(change), row]
    outcome = run(declared, rows, cuts=[cut for cut in cuts if cut < len(rows)])
    assert sorted(outcome.causes) == list(range(1, len(rows), 2))
    for (_, cause), found in zip(BAD, outcome.causes.values(), strict=True):
        assert found.startswith(cause) or cause in found
    clean = run(declared, good)
    assert outcome.each("scores") == clean.each("scores")
    assert outcome.each("step") == clean.each("step")
    assert [source["line"] for source in outcome.each("source")] == list(range(0, len(rows), 2))
    assert outcome.report == clean.report


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2), range(len(BAD) + 2)])
def test_bad_records_before_the_first_good_one(cuts: Any) -> None:
    rows = [*(spoiled(change) for change, _ in BAD[:13]), *readings(3)]
    outcome = run(model(), rows, cuts=[cut for cut in cuts if cut < len(rows)])
    assert sorted(outcome.causes) == list(range(13))
    assert outcome.each("scores") == run(model(), readings(3)).each("scores")


def test_an_array_that_does_not_fit_the_network_comes_first() -> None:
    rows: list[Any] = [
        {"x": [1.0, 2.0], "y": 1.0},
        {"x": [1.0], "y": 1.0},
        {"x": [3.0] * 2, "y": 1.0},
    ]
    outcome = run(line(), rows)
    assert sorted(outcome.causes) == [0, 2]
    assert "mat1 and mat2" in outcome.causes[0]
    assert outcome.causes[2] == "expected features of shape [1], found [2]"
    assert len(outcome.records) == 1


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2)])
def test_a_single_number_has_a_shape_too(cuts: Any) -> None:
    declared = line(network=({"tests.models.own:Column": None}, {"Linear": [1, 1]}), features="x")
    rows: list[Any] = [{"x": value, "y": 1.0} for value in (1.0, [2.0], 3.0)]
    outcome = run(declared, rows, cuts=cuts)
    assert outcome.causes == {1: "expected features of shape [], found [1]"}
    clean = run(declared, [rows[0], rows[2]])
    assert outcome.each("prediction") == clean.each("prediction")


@pytest.mark.parametrize("target", ["text", math.inf, [1.0, 2.0], {}, np.array(["x"])])
def test_bad_regression_targets(target: Any) -> None:
    rows = [{"x": 1.0, "y": 1.0}, {"x": 1.0, "y": target}, {"x": 1.0, "y": 1.0}]
    for declared in (line(), line(standardize_target=True), line(horizon=1)):
        outcome = run(declared, rows)
        assert list(outcome.causes) == [1]
        clean = run(declared, [rows[0], rows[2]])
        assert outcome.each("prediction") == clean.each("prediction")


@pytest.mark.parametrize("declared", [model(), model(horizon=2), model(learn=False, compile=False)])
def test_a_key_that_cannot_be_told_apart_or_kept_is_refused(declared: Model) -> None:
    good = readings(6)
    bad: list[Any] = [(1, 2), [1], {"machine": 1}, math.nan]
    rows = [*good[:3], *readings(4, seed=2), *good[3:]]
    found = run(declared, rows, keys=["a", b"a", 1, *bad, 1.5, True, None], cuts=[2, 4])
    assert found.causes == {
        place: f"key: expected text or a number that names the stream, found {key!r}"
        for place, key in enumerate(bad, 3)
    }
    clean = run(declared, good, keys=["a", b"a", 1, 1.5, True, None])
    assert found.each("scores") == clean.each("scores")
    assert found.report == clean.report
