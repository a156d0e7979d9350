from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from streamflow.models.model import Model
from tests.models.streams import line, model, readings, run


def forecast(horizon: int, **options: Any) -> Model:
    return line(horizon=horizon, **options)


def reference(
    rows: Sequence[dict[str, Any]], keys: Sequence[Any], horizon: int
) -> tuple[list[float], list[int], list[tuple[float, float, float]]]:
    """Return predictions, steps, and (prediction, target, previous) of those that met a target."""
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    held: dict[Any, deque[tuple[Tensor, float, Any]]] = defaultdict(deque)
    newest: dict[Any, float] = {}
    newest_of_all: float | None = None
    predictions, steps, met = [], [], []
    updates = 0
    for row, key in zip(rows, keys, strict=True):
        target = row.get("y")
        if len(held[key]) == horizon:
            x, predicted, previous = held[key].popleft()
            if target is not None:
                optimizer.zero_grad()
                torch.autograd.backward(functional.mse_loss(network(x), torch.tensor([[target]])))
                optimizer.step()
                updates += 1
                met.append((predicted, target, previous))
        if target is not None:
            newest[key] = newest_of_all = target
        x = torch.tensor([[row["x"]]])
        predictions.append(network(x).item())
        steps.append(updates)
        held[key].append((x, predictions[-1], newest.get(key, newest_of_all)))
    return predictions, steps, met


rows_of = st.lists(
    st.fixed_dictionaries(
        {"x": st.sampled_from([-1.0, 0.0, 0.5]), "y": st.sampled_from([None, -1.0, 0.5, 2.0])}
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(rows=rows_of, horizon=st.integers(1, 4), data=st.data())
def test_forecasts_are_those_of_the_definition(
    rows: list[dict[str, Any]], horizon: int, data: st.DataObject
) -> None:
    size = len(rows)
    keys = data.draw(st.lists(st.sampled_from(["k", "l"]), min_size=size, max_size=size))
    cuts = data.draw(st.lists(st.integers(0, size)))
    predictions, steps, met = reference(rows, keys, horizon)
    outcome = run(forecast(horizon), rows, cuts=cuts, keys=keys)
    assert outcome.each("prediction") == pytest.approx(predictions, abs=1e-5)
    assert outcome.each("step") == steps
    assert all("target" not in record.value for record in outcome.records)
    assert outcome.report["updates"] == [len(met)]
    scored = outcome.report["score"]["cumulative"]
    assert outcome.report["score"]["scored"] == max(len(met) - 1, 0)
    if len(met) > 1:
        errors = [abs(predicted - target) for predicted, target, _ in met[1:]]
        assert scored["model"]["mae"] == pytest.approx(sum(errors) / len(errors), abs=1e-5)
    if len(met) > 1 and all(previous is not None for *_, previous in met):
        errors = [abs(previous - target) for _, target, previous in met[1:]]
        assert scored["no_change"]["mae"] == pytest.approx(sum(errors) / len(errors), abs=1e-5)


def test_what_is_held_is_reported() -> None:
    rows: list[dict[str, Any]] = [{"x": 1.0, "y": 2.0} for _ in range(7)]
    rows[4]["y"] = None
    report = run(forecast(3), rows).report
    assert (report["held"], report["unlabelled"], report["dropped"]) == (3, 1, 0)
    assert report["learned"] == 3


def test_a_model_may_forecast_without_learning() -> None:
    rows = [{"x": 1.0, "y": float(step)} for step in range(7)]
    outcome = run(forecast(2, learn=False), rows)
    assert len(set(outcome.each("prediction"))) == 1
    assert outcome.report["score"]["scored"] == 4


def test_standardized_forecasts_know_the_targets_so_far() -> None:
    rows = [{"x": 0.0, "y": y} for y in (10.0, 10.0, 30.0)]
    torch.manual_seed(0)
    bias = nn.Linear(1, 1)(torch.zeros(1, 1)).item()
    declared = forecast(1, standardize_target=True, learn=False)
    deviation = (200 * 4 / 9) ** 0.5
    expected = [10 + bias, 10 + bias, 50 / 3 + bias * deviation]
    assert run(declared, rows).each("prediction") == pytest.approx(expected, abs=1e-4)


def test_classes_can_be_forecast_with_several_stages() -> None:
    declared = model(horizon=2, stages=("2",))
    whole, cut = (run(declared, readings(20), cuts=cuts) for cuts in ((), (3, 4, 11)))
    assert whole.each("scores") == cut.each("scores")
    assert whole.report == cut.report
    assert whole.report["updates"] == [18, 18]


def test_no_change_only_knows_targets_from_before_the_prediction() -> None:
    rows = [{"x": 0.0, "y": 0.0}, {"x": 0.0, "y": None}, {"x": 0.0, "y": 9.0}, {"x": 0.0, "y": 9.0}]
    score = run(forecast(1), rows, keys=["k", "l", "k", "l"]).report["score"]
    assert score["cumulative"]["no_change"]["mae"] == 9.0
