"""Recurrent state in a graph: one per stream, named by a field or by the record's key."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamflow.errors import GraphError
from tests.models.streams import model, numbers, run


class Memory(nn.Module):
    """Predicts the sum of what its stream has brought."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.register_buffer("total", torch.zeros(1, 1))
        self.total: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total + x
        return self.total * self.factor


def summing(**options: Any) -> Any:
    usual: dict[str, Any] = {
        "network": "tests.models.test_recurrent:Memory",
        "features": ("x",),
        "target": None,
        "learn": False,
        "loss": None,
        "task": "regression",
        "state": ("total",),
    }
    return model(**(usual | options))


READINGS = [{"x": float(n), "machine": "ab"[n % 2]} for n in range(6)]


@pytest.mark.parametrize("cuts", [(), (1, 2), (3,)])
def test_a_field_names_the_stream(cuts: tuple[int, ...]) -> None:
    outcome = run(summing(keys="machine"), READINGS, cuts=cuts)
    assert outcome.each("prediction") == [0.0, 1.0, 2.0, 4.0, 6.0, 9.0]


def test_without_keys_all_records_are_one_stream() -> None:
    assert run(summing(), READINGS).each("prediction") == [0.0, 1.0, 3.0, 6.0, 10.0, 15.0]


def test_a_record_whose_stream_is_unknown_is_refused_and_changes_nothing() -> None:
    readings = [*READINGS[:2], {"x": 5.0}, {"x": 5.0, "machine": [1]}, *READINGS[2:]]
    outcome = run(summing(keys="machine"), readings)
    assert outcome.each("prediction") == [0.0, 1.0, 2.0, 4.0, 6.0, 9.0]
    assert list(outcome.causes.values()) == [
        "machine: expected text or a number that names the stream, found MISSING",
        "machine: expected text or a number that names the stream, found [1]",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": "machine", "state": ()}, "expected recurrent state for keys, found none"),
        ({"horizon": 1, "target": "x"}, "expected no recurrent state with a horizon"),
        ({"rate": 10.0}, "expected a rate with stages: auto only"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        summing(**options)


def test_numbers_are_still_learned() -> None:
    """A stream that is learned goes through the same path."""
    learned = summing(target="y", learn=True, loss="mse_loss", optimizer={"SGD": {"lr": 0.001}})
    assert len(run(learned, numbers()).each("prediction")) == 12
