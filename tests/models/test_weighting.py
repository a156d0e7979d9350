"""Weights of classes against a plain loop in PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from streamflow.errors import GraphError
from streamflow.models.network import build_network
from tests.models.streams import FEATURES, line, model, readings, run
from tests.models.test_state import goes_on

COUNT = 40
WORDS = ("no", "yes")


def rows(classes: Sequence[Any] = (0, 1)) -> list[dict[str, Any]]:
    """Return readings that lack some targets, of which few are of the second class."""
    found = readings(COUNT)
    for place, row in enumerate(found):
        row["class"] = classes[row["class"] if place % 3 else 0]
        if place % 7 == 3:
            row["class"] = None
    return found


def balanced(labels: Sequence[Any], classes: Sequence[Any]) -> list[float]:
    """Return each label's weight by definition, at most ten."""
    counts = dict.fromkeys(classes, 1)
    found = []
    for label in labels:
        if label is None:
            found.append(1.0)
            continue
        found.append(min(sum(counts.values()) / (len(classes) * counts[label]), 10.0))
        counts[label] += 1
    return found


def by_hand(declared: Any, weights: Sequence[float], classes: Sequence[Any]) -> list[list[float]]:
    """Return the scores of a plain loop that weighs each loss."""
    network: nn.Module = build_network(declared, Path())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    found = []
    for row, weight in zip(rows(classes), weights, strict=True):
        output = network(torch.tensor([[row[name] for name in FEATURES]]))
        found.append(output.softmax(dim=1).tolist()[0])
        if row["class"] is not None:
            optimizer.zero_grad()
            target = torch.tensor([list(classes).index(row["class"])])
            torch.autograd.backward(weight * F.cross_entropy(output, target))
            optimizer.step()
    return found


@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (17,)])
@pytest.mark.parametrize("class_weights", ["balanced", {"yes": 3.0}, {"yes": 2, "no": 0.5}])
def test_each_loss_is_weighed_by_its_class(class_weights: Any, cuts: Any) -> None:
    declared = model(classes=WORDS, class_weights=class_weights, compile=False)
    labels = [row["class"] for row in rows(WORDS)]
    if class_weights == "balanced":
        weights = balanced(labels, WORDS)
    else:
        weights = [class_weights.get(label, 1.0) for label in labels]
    expected = torch.tensor(by_hand(declared, weights, WORDS))
    found = torch.tensor(run(declared, rows(WORDS), cuts=cuts).each("scores"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    unweighed = by_hand(declared, [1.0] * COUNT, WORDS)
    assert (torch.tensor(unweighed) - found).abs().max() > 1e-3


def test_a_rare_class_weighs_ten_at_the_most() -> None:
    weights = balanced([0] * 100 + [1], (0, 1))
    assert weights[-1] == 10.0
    declared = line(task="binary", loss=None, class_weights="balanced", compile=False)
    stream = [{"x": 0.0, "y": 0}] * 100 + [{"x": 1.0, "y": 1}] * 2
    first, second = run(declared, stream).each("scores")[-2:]
    # One step of the logistic loss from the same input: the weight times the error, both weights.
    logit = [float(torch.tensor(score[1]).logit()) for score in (first, second)]
    assert logit[1] - logit[0] == pytest.approx(0.05 * 10 * 2 * (1 - first[1]), rel=1e-3)


def test_numbered_classes_are_named_by_their_numbers() -> None:
    weights = [5.0 if row["class"] == 1 else 1.0 for row in rows()]
    declared = model(class_weights={1: 5.0}, compile=False)
    expected = torch.tensor(by_hand(declared, weights, (0, 1)))
    found = torch.tensor(run(declared, rows()).each("scores"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("horizon", [None, 2])
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(0, COUNT), min_size=1, max_size=3).map(sorted))
def test_a_restored_model_goes_on(horizon: int | None, cuts: list[int]) -> None:
    goes_on(model(class_weights="balanced", horizon=horizon), rows(), cuts)


def test_a_forecast_is_weighed_by_the_class_that_came() -> None:
    plain = run(model(horizon=1, compile=False), rows()).each("scores")
    found = run(model(horizon=1, class_weights={"1": 4.0}, compile=False), rows()).each("scores")
    labels = [row["class"] for row in rows()]
    first = labels.index(1)  # learned before this record is predicted
    assert found[:first] == plain[:first]
    assert found[first] != plain[first]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": "mse"},
            "class_weights: expected class_weights with a target of classes, found r",
        ),
        ({"class_weights": {"1": 0}}, "class_weights.1: expected a number greater than 0, found 0"),
        ({"class_weights": "even"}, "class_weights: expected balanced or a mapping, found 'even'"),
    ],
)
def test_weights_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(GraphError) as caught:
        model(**({"class_weights": "balanced"} | options))
    assert str(caught.value).startswith(f"Model.{message}"), caught.value


def test_a_weight_is_of_a_class(tmp_path: Path) -> None:
    declared = model(classes=WORDS, class_weights={"yse": 2.0})
    (found,) = declared.deep_problems(tmp_path, only_scalars=True)
    assert str(found) == (
        "class_weights.yse: expected weights of classes, found yse; did you mean yes?"
    )
