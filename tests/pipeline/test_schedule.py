"""A schedule is written once: whatever else speaks of one says the same."""

import re
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

from streamflow import Model
from streamflow.errors import OptionError
from streamflow.pipeline import Pipeline, reference
from streamflow.pipeline.schedule import BACKWARDS, SCHEDULES, Action, orders

PAGE = Path(__file__).parents[2] / "docs" / "pipeline.md"


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
@pytest.mark.parametrize("schedule", ["sequential", "1f1b", "lockstep"])
def test_the_reference_runs_the_same_slots(schedule: str, num_stages: int) -> None:
    named = SCHEDULES[schedule]
    period, delay = (a * num_stages + b for a, b in (named.period, named.delay))
    slots = [
        (slot, kind, s, n)
        for s, n in product(range(num_stages), range(12))
        for slot, kind in (
            (period * n + s, "forward"),
            (period * n + delay - s, "backward"),
        )
    ]
    slots.sort(key=lambda step: (step[0], step[1] == "backward", step[2]))
    assert reference.steps(schedule, num_stages, 0, 12) == [step[1:] for step in slots]


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
@pytest.mark.parametrize("schedule", ["sequential", "1f1b", "lockstep"])
def test_a_stage_that_counts_keeps_the_order_of_the_slots(schedule: str, num_stages: int) -> None:
    steps = reference.steps(schedule, num_stages, 0, 20)
    for s, order in enumerate(orders(schedule, num_stages)):
        wanted = [action for action, stage, _ in steps if stage == s]
        held, found = 0, []
        for _ in range(25):
            action = order.next_action(held, has_arrival=True, has_gradient=True, is_draining=False)
            held += 1 if action is Action.FORWARD else -1
            found.append(action.name.lower())
        assert found == wanted[:25]


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_lags_are_those_of_the_page(num_stages: int) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+(?: to \S+)?) \| ([^|]+) \|", PAGE.read_text(), re.M)
    found = {name: (lag, with_) for name, lag, with_ in rows if name in SCHEDULES}
    assert found.keys() == SCHEDULES.keys()
    for name, (lag, backwards) in found.items():
        formula = lag.rpartition(" ")[2].replace("2(", "2*(")
        for s, order in enumerate(orders(name, num_stages)):
            assert order.lag == eval(formula, {"S": num_stages, "s": s})
            assert order.is_greedy == lag.startswith("0 to")
        assert tuple(re.findall(r"`(\w+)`", backwards)) == SCHEDULES[name].backwards


@pytest.mark.parametrize(("schedule", "backward"), [*product(SCHEDULES, BACKWARDS)])
def test_a_pipeline_takes_the_backwards_of_a_schedule_and_no_others(
    schedule: str, backward: str
) -> None:
    options = {"loss": F.mse_loss, "optimizer": SGD, "schedule": schedule, "backward": backward}
    if backward in SCHEDULES[schedule].backwards:
        Pipeline(nn.Linear(1, 1), **options).close()  # type: ignore[arg-type]
    else:
        with pytest.raises(OptionError, match="backward: expected newest with lockstep and only"):
            Pipeline(nn.Linear(1, 1), **options)  # type: ignore[arg-type]


def test_a_model_node_knows_the_same_ones() -> None:
    fields = Model.model_fields
    assert get_args(fields["schedule"].annotation) == tuple(SCHEDULES)
    assert get_args(fields["backward"].annotation) == BACKWARDS
