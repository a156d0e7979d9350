from typing import Any

import pytest

from streamflow.errors import GraphError
from tests.models.streams import line, model


@pytest.mark.parametrize(
    ("options", "task", "loss"),
    [
        ({"loss": "cross_entropy"}, "classification", "cross_entropy"),
        ({"loss": "nll_loss"}, "classification", "nll_loss"),
        ({"loss": "mse"}, "regression", "mse_loss"),
        ({"loss": {"huber": {"delta": 2.0}}}, "regression", "huber_loss"),
        ({"loss": "binary_cross_entropy"}, "binary", "binary_cross_entropy"),
        ({"loss": None}, "regression", "mse_loss"),
        ({"loss": None, "classes": ("a", "b")}, "classification", "cross_entropy"),
        ({"loss": None, "task": "binary"}, "binary", "binary_cross_entropy_with_logits"),
        ({"loss": "m:own", "task": "binary"}, "binary", None),
        ({"loss": None, "target": None, "learn": False}, None, None),
    ],
)
def test_the_task_is_found_from_the_loss(options: Any, task: Any, loss: Any) -> None:
    declared = model(**options)
    assert (declared.resolved_task, declared.loss_name) == (task, loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"carry": ("step",)}, "expected carry to name other fields than the output's own"),
        ({"target": None}, "expected a target to learn, found none"),
        ({"target": None, "learn": False, "horizon": 2}, "expected a target to forecast"),
        ({"loss": "m:own"}, "expected a task, found a loss that does not tell it"),
        ({"loss": "mse", "classes": (0, 1)}, "expected no classes for regression"),
        ({"standardize_target": True}, "expected standardize_target with regression only"),
        ({"classes": ("a", "b", "a")}, "expected each class once"),
        ({"task": "binary", "loss": None, "classes": (1, 2, 3)}, "expected two classes"),
        ({"stages": 0}, "expected a number of at least 1, found 0"),
        ({"horizon": 0}, "expected a number of at least 1, found 0"),
        ({"network": ()}, "expected a list of 1 or more, found 0"),
        ({"network": ({"Linear": 1, "ReLU": None},)}, "found Linear, ReLU"),
        ({"optimizer": {"SGD": {}, "Adam": {}}}, "found SGD, Adam"),
        ({"loss": {}}, "expected one name with its options, found none"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError) as caught:
        model(**options)
    assert message in str(caught.value)


def test_contradictions_are_told_at_once_with_the_option_to_change() -> None:
    with pytest.raises(GraphError) as caught:
        model(carry=("step",), schedule="lockstep", classes=("a", "a"), rate=5.0, keys="machine")
    places = [problem.location for problem in caught.value.problems]
    assert places == [("schedule",), ("carry",), ("rate",), ("classes",), ("keys",)]


def test_a_target_may_be_standardized_for_regression() -> None:
    assert line(standardize_target=True, loss=None).resolved_task == "regression"
