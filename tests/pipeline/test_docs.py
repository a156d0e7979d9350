"""The page about the pipeline: its code runs and its drawings are the schedules."""

import doctest
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from streamflow.pipeline.running.timeline import Event, Timeline
from streamflow.pipeline.schedule import Action, orders

PAGE = Path(__file__).parents[2] / "docs" / "pipeline.md"


@pytest.mark.slow
def test_the_code_runs() -> None:
    assert doctest.testfile(str(PAGE), module_relative=False).failed == 0


def drawing(schedule: str, num_samples: int) -> str:
    """Draw three stages by the slots of the specification."""
    period, delay = (6, 5) if schedule == "sequential" else (2, 5)
    rows = ["slot     " + "".join(f"{slot:>2}  " for slot in range(12)).rstrip()]
    for stage in range(3):
        cells = ["  "] * 12
        for n in range(num_samples):
            cells[period * n + stage] = f"F{n}"
            cells[period * n + delay - stage] = f"B{n}"
        rows.append((f"stage {stage}  " + "  ".join(cells)).rstrip())
    return "\n".join(rows)


@pytest.mark.parametrize(("schedule", "num_samples"), [("sequential", 2), ("1f1b", 4)])
def test_the_drawings_are_the_schedules(schedule: str, num_samples: int) -> None:
    assert drawing(schedule, num_samples) in PAGE.read_text()


@pytest.mark.parametrize(
    ("schedule", "lags"), [("sequential", [0, 0, 0]), ("1f1b", [2, 1, 0]), ("lockstep", [4, 2, 0])]
)
def test_a_stage_holds_its_lag_and_then_alternates(schedule: str, lags: list[int]) -> None:
    for order, lag in zip(orders(schedule, 3), lags, strict=True):
        held, actions = 0, []
        for _ in range(12):
            action = order.next_action(held, has_arrival=True, has_gradient=True, is_draining=False)
            held += 1 if action is Action.FORWARD else -1
            actions.append(action)
        steady = [Action.FORWARD, Action.BACKWARD] * 6
        assert actions == ([Action.FORWARD] * lag + steady)[:12]


def timelines() -> Any:
    spec = importlib.util.spec_from_file_location("timelines", PAGE.parent / "timelines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("schedule", ["sequential", "1f1b", "greedy", "lockstep"])
def test_the_pictures_are_what_the_stages_do(schedule: str) -> None:
    drawn = (PAGE.parent / "_static" / f"timeline-{schedule}.svg").read_text()
    assert drawn == timelines().timeline(schedule)


@pytest.mark.parametrize(
    ("schedule", "lags"), [("sequential", [0, 0, 0]), ("1f1b", [2, 1, 0]), ("lockstep", [4, 2, 0])]
)
def test_the_pictures_show_the_lags_of_the_page(schedule: str, lags: list[int]) -> None:
    """Between a sample's forward and backward a stage makes as many updates as its lag."""
    svg = (PAGE.parent / "_static" / f"timeline-{schedule}.svg").read_text()
    boxes = re.findall(r'<rect x="([\d.]+)" y="(\d+)".*?<title>([FB])(\d)</title>', svg)
    for stage, lag in enumerate(lags):
        row = sorted((float(x), f"{kind}{n}") for x, y, kind, n in boxes if int(y) // 34 == stage)
        actions = [name for _, name in row]
        between = actions[actions.index("F5") : actions.index("B5")]
        assert sum(name[0] == "B" for name in between) == lag


def test_the_picture_has_a_box_per_action() -> None:
    events = [Event(0, "forward", 7, 0.0, 1.0), Event(1, "forward", 7, 1.0, 1.5)]
    svg = Timeline(2, events).svg(by_time=False)
    assert svg.count("<rect") == 2
    assert "F7" in svg
