from typing import Any

import pytest

from streamflow.errors import GraphError
from tests.models.streams import model, readings, run


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "1f1b"},
        {"schedule": "1f1b", "backward": "stashed"},
        {"schedule": "lockstep", "backward": "newest"},
    ],
)
def test_threads_predict_what_inline_stages_predict(schedule: dict[str, Any]) -> None:
    scores = [
        run(model(stages=3, executor=executor, **schedule), readings()).each("scores")
        for executor in ("inline", "threads")
    ]
    assert scores[0] == scores[1]
    assert scores[0] != run(model(), readings()).each("scores")


def test_greedy_stages_learn_without_delay_where_they_wait_for_each_other() -> None:
    greedy = run(model(stages=2, schedule="greedy", executor="inline"), readings())
    assert greedy.each("scores") == run(model(), readings()).each("scores")


def test_a_clipped_gradient_is_another() -> None:
    clipped = run(model(clip_norm=1e-3), readings()).each("scores")
    assert clipped != run(model(), readings()).each("scores")


def test_a_backward_that_the_schedule_does_not_have_is_refused() -> None:
    with pytest.raises(GraphError, match="expected backward: newest with schedule: lockstep"):
        model(schedule="lockstep")


@pytest.mark.parametrize(
    "option",
    [
        {"accumulate": 3},
        {"groups": {"0.*": {"lr": 0.0}}},
        {"scheduler": {"StepLR": {"step_size": 5, "gamma": 0.1}}},
        {"clip_norm": 1e-3, "clip_over": "network"},
        {"optimizer": ({"SGD": {"lr": 0.05}}, {"Adam": {"lr": 0.05}}), "stages": ("2",)},
    ],
)
def test_each_option_reaches_the_pipeline(option: dict[str, Any]) -> None:
    plain = model(stages=option.get("stages", 1))
    assert run(model(**option), readings()).each("scores") != run(plain, readings()).each("scores")


def test_devices_are_taken() -> None:
    one, two = (run(model(devices=d), readings()).each("scores") for d in (None, "cpu"))
    assert one == two
