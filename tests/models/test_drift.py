"""What models do where drifts are found, against a plain loop with River's own detector."""

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift
from torch import nn

from streamflow.contracts import Context
from streamflow.errors import GraphError
from streamflow.models.deep import model_problems
from streamflow.models.model import Model
from tests.models.streams import batch_of, line, run
from tests.models.test_state import goes_on

COUNT = 240
DETECTOR = {"PageHinkley": {"min_instances": 10, "threshold": 3.0}}
RATE = {"rate": 4.0, "records": 25}
ADAM = {"Adam": {"lr": 0.05}}
SGD = {"SGD": {"lr": 0.1, "momentum": 0.5}}


def changing(seed: int = 3) -> list[dict[str, Any]]:
    """Return records near one line, and from the middle near another; some have no target."""
    draw = Random(seed)
    rows = []
    for place in range(COUNT):
        x = draw.uniform(-1, 1)
        slope = 2.0 if place < COUNT // 2 else -3.0
        target = None if place % 17 == 5 else slope * x + 4.0 * (place >= COUNT // 2)
        rows.append({"x": x, "y": target} if target is not None else {"x": x})
    return rows


def declared(**options: Any) -> Model:
    """Return a model that acts."""
    return line(**({"optimizer": SGD, "drift": DETECTOR, "seed": 5} | options))


def plain(rows: list[dict[str, Any]], action: Any, optimizer: Any) -> tuple[list[float], list[int]]:
    """Predict and learn in a loop; return the predictions, and the places of drifts."""
    torch.manual_seed(5)
    network = nn.Linear(1, 1)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    [(name, options)] = optimizer.items()
    learner = getattr(torch.optim, name)(network.parameters(), **options)
    detector: Any = drift.PageHinkley(min_instances=10, threshold=3.0)
    predictions, places, left = [], [], 0
    for place, row in enumerate(rows):
        output = network(torch.tensor([[row["x"]]]))
        predictions.append(output.item())
        if "y" not in row:
            continue
        learner.zero_grad()
        learner.param_groups[0]["lr"] = options["lr"] * (action["rate"] if left else 1)
        loss: Any = nn.functional.mse_loss(output, torch.tensor([[row["y"]]]))
        loss.backward()
        learner.step()
        left = max(0, left - 1)
        detector.update(abs(output.item() - row["y"]))
        if detector.drift_detected:
            places.append(place)
            if action == "reset":
                network.load_state_dict(first)
                learner = getattr(torch.optim, name)(network.parameters(), **options)
            else:
                left = action["records"]
    return predictions, places


@pytest.mark.parametrize("action", ["reset", RATE])
@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_an_action_comes_right_after_the_record_that_shows_the_drift(
    action: Any, optimizer: Any
) -> None:
    rows = changing()
    expected, places = plain(rows, action, optimizer)
    assert places
    gaps = [b - a for a, b in pairwise([*places, COUNT])]
    assert action == "reset" or max(gaps) > 30  # rates go back in between
    outcome = run(declared(on_drift=action, optimizer=optimizer), rows, cuts=[50, 130, 131])
    assert outcome.each("prediction") == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert outcome.report["river"]["drift"]["found"] == len(places)


VARIANTS: dict[str, dict[str, Any]] = {
    "one stage": {},
    "two stages": {
        "network": ({"Linear": [1, 4]}, "Tanh", {"Linear": [4, 1]}),
        "stages": ("2",),  # by name: a number is cut by measuring
        "executor": "inline",
    },
    "accumulated": {"accumulate": 3, "optimizer": ADAM, "standardize_target": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("action", ["reset", RATE])
@pytest.mark.parametrize("variant", list(VARIANTS))
@settings(max_examples=3, deadline=None)
@given(cuts=st.lists(st.integers(0, COUNT), max_size=5))
def test_batches_make_no_difference(action: Any, variant: str, cuts: list[int]) -> None:
    model = declared(on_drift=action, **VARIANTS[variant])
    whole, cut = run(model, changing()), run(model, changing(), cuts=cuts)
    assert whole.report["river"]["drift"]["found"]
    assert repr(cut.records) == repr(whole.records)
    assert cut.report["river"] == whole.report["river"]


@pytest.mark.slow
@pytest.mark.parametrize("action", ["reset", RATE])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_restored_model_goes_on_acting(action: Any, variant: str) -> None:
    model = declared(on_drift=action, **VARIANTS[variant])
    found = run(model, changing()).report["river"]["drift"]["at"]
    for stop in (60, found[-1] + 15):
        goes_on(model, changing(), [stop, 180 if stop < 180 else stop])


def test_a_reset_begins_with_fresh_recurrent_state_of_every_stream() -> None:
    rows = [{"x": 0.5, "y": 0.5 * (n // 2 + 1) + 50.0 * (n >= 60)} for n in range(80)]
    model = declared(
        network="tests.models.test_recurrent:Memory",
        state=("total",),
        on_drift="reset",
        optimizer={"SGD": {"lr": 1e-6}},
    )
    outcome = run(model, rows, keys=["ab"[n % 2] for n in range(80)])
    [first, *_] = outcome.report["river"]["drift"]["at"]
    predictions = outcome.each("prediction")
    assert predictions[first - 1] == pytest.approx(0.5 * ((first - 1) // 2 + 1), rel=0.01)
    assert predictions[first : first + 2] == [0.5, pytest.approx(0.5, rel=0.01)]


def test_rates_go_back_where_a_model_goes_on_without_the_action() -> None:
    [at, *_] = run(declared(on_drift=RATE), changing()).report["river"]["drift"]["at"]
    place = [n for n, row in enumerate(changing()) if "y" in row][at - 1] + 3
    acting, reporting = declared(on_drift=RATE), declared()
    context = Context("model")
    with acting.open(context) as before, reporting.open(context) as after:
        before.process(batch_of(changing()[:place]))
        state: Any = before.state()
        assert state["pipeline"]["optimizer"]["settings"]["0.weight"]["lr"] == 0.4
        after.restore(state)
        state = after.state()
        assert state["pipeline"]["optimizer"]["settings"]["0.weight"]["lr"] == 0.1


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"drift": None}, "expected a detector in drift with an action, found none; name one"),
    ({"learn": False}, "expected learn: true with an action, found learn: false; remove one"),
    ({"horizon": 2}, "expected no horizon with an action, found one; remove one of them"),
    ({"scheduler": {"StepLR": {"step_size": 5}}}, "expected no scheduler, which sets the rates"),
    ({"compile": True}, "expected compile: auto or false with an action, found true; remove it"),
    ({"on_drift": {"records": 5}}, "rate"),
    ({"on_drift": {"rate": 0, "records": 5}}, "greater than 0"),
    ({"on_drift": {"rate": 2}}, "records"),
    ({"on_drift": "stop"}, "reset"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_does_not_go_with_an_action(options: Any, message: str) -> None:
    with pytest.raises((GraphError, ValueError), match=message):
        declared(**({"on_drift": "reset"} | options))


def test_layers_of_unknown_sizes_are_not_reset(tmp_path: Path) -> None:
    model = declared(network=({"LazyLinear": [1]},), on_drift="reset")
    problems = [str(one.message) for one in model_problems(model, tmp_path, only_scalars=True)]
    assert any("expected layers of known sizes to reset" in one for one in problems)
