from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from streamflow.errors import ConnectorError, GraphError
from tests.models import own
from tests.models.streams import model, readings, run

OWN = "tests.models.own"


@pytest.mark.parametrize(
    "options",
    [
        {"network": f"{OWN}:network"},
        {"network": own.network},
        {"loss": f"{OWN}:loss", "task": "classification"},
        {"loss": own.loss, "task": "classification"},
        {"optimizer": f"{OWN}:optimizer"},
        {"optimizer": own.optimizer},
        {"optimizer": {f"{OWN}:optimizer": {"lr": 0.05}}},
        {"loss": None, "task": "classification"},
        {"loss": {"cross_entropy": {"reduction": "mean"}}},
        {
            "network": (
                {"Linear": {"in_features": 5, "out_features": 64}},
                "ReLU",
                {"Linear": [64, 2]},
            )
        },
    ],
)
def test_ways_to_declare_the_same(options: dict[str, Any]) -> None:
    assert run(model(**options), readings(9)).each("scores") == run(model(), readings(9)).each(
        "scores"
    )


def test_own_layers() -> None:
    layers = [{"Linear": [5, 2]}]
    doubled = run(model(network=(*layers, {f"{OWN}:Doubling": 1.0})), readings(9))
    assert doubled.each("scores") == run(model(network=layers), readings(9)).each("scores")


@pytest.mark.parametrize(
    "option",
    [{"seed": 1}, {"optimizer": {"SGD": {"lr": 0.5}}}, {"loss": "multi_margin_loss"}],
)
def test_options_make_a_difference(option: dict[str, Any]) -> None:
    usual, other = run(model(), readings(9)), run(model(**option), readings(9))
    assert usual.each("scores")[-1] != other.each("scores")[-1]


def test_the_random_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    run(model(), readings(3))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_weights_are_where_learning_starts(tmp_path: Path) -> None:
    torch.manual_seed(7)
    save_file(own.network().state_dict(), tmp_path / "start.safetensors")
    started = run(model(weights="start.safetensors"), readings(9), folder=tmp_path)
    assert started.each("scores") == run(model(seed=7), readings(9)).each("scores")


def test_weights_of_another_network(tmp_path: Path) -> None:
    save_file(nn.Linear(5, 3).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(GraphError, match=r"^weights: expected the weights of this network in "):
        run(model(weights="other.safetensors"), readings(1), folder=tmp_path)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello, this is no file of weights")
    for name in ("text.safetensors", "none.safetensors"):
        with pytest.raises(ConnectorError, match=r"^weights: expected a readable safetensors file"):
            run(model(weights=name), readings(1), folder=tmp_path)
