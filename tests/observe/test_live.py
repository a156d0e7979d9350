from typing import Any

import pytest

from streamflow.observe.live import LiveLine, number
from streamflow.runtime.stats import CheckpointStats, EdgeStats, NodeStats, Stats


def node(kind: str, received: int, **figures: Any) -> NodeStats:
    counts = {"sent": received, "rejected": 0, "skipped": 0} | figures
    return NodeStats(kind=kind, received=received, **counts)


def test_the_rate_is_that_since_the_last_line() -> None:
    line = LiveLine()
    assert line.next(Stats("running", 0.0, {"in": node("source", 0)})) == "0 records · 0/s"
    first = Stats("running", 2.0, {"in": node("source", 3000), "out": node("sink", 2000)})
    assert line.next(first) == "3,000 records · 1,500/s"
    second = Stats("stopping", 2.5, {"in": node("source", 3100)})
    assert line.next(second) == "3,100 records · 200/s · stopping"


def test_models_tell_how_far_a_run_is() -> None:
    nodes = {"in": node("source", 900), "a": node("model", 500), "b": node("model", 400)}
    assert LiveLine().next(Stats("running", 2.0, nodes)) == "400 records · 200/s"


def test_the_line_says_what_is_behind_and_rejected() -> None:
    nodes = {
        "a": node("source", 1, behind=4000),
        "b": node("source", 1),
        "c": node("operator", 1, rejected=3),
    }
    assert LiveLine().next(Stats("running", 1.0, nodes)) == (
        "2 records · 2/s · 4,000 behind · 3 rejected"
    )


def test_the_line_says_where_records_were_dropped_and_why() -> None:
    edges = {"a": EdgeStats("latest", sent=1200, dropped=1100), "b": EdgeStats("block", sent=9)}
    nodes = {
        "a": node("source", 1200),
        "b": node("source", 9),
        "out": node("sink", 109, edges=edges),
        "log": node("sink", 5, edges={"b": EdgeStats("drop_newest", sent=9, dropped=4)}),
    }
    assert LiveLine().next(Stats("running", 1.0, nodes)) == (
        "1,209 records · 1,209/s · 1,100 dropped (a -> out, latest) · 4 dropped (b -> log, "
        "drop_newest)"
    )


@pytest.mark.parametrize(("scored", "ending"), [(0, ""), (9, " · m accuracy 0.75 (no change -)")])
def test_a_models_score_stands_beside_no_change(scored: int, ending: str) -> None:
    windowed = {"model": {"accuracy": 0.75, "kappa": 0.5}, "no_change": {"accuracy": None}}
    report = {"score": {"scored": scored, "windowed": windowed}}
    stats = Stats("running", 1.0, {"m": node("model", 9, report=report)})
    assert LiveLine().next(stats) == f"9 records · 9/s{ending}"


def test_numbers_have_four_figures() -> None:
    assert [number(value) for value in (None, 0.123456, 12345.6)] == ["-", "0.1235", "1.235e+04"]


def test_the_line_says_what_is_tried_again() -> None:
    reason = "retrying Fetch for 12 s: no connection"
    nodes = {"in": node("source", 9, retrying=reason), "out": node("sink", 9)}
    line = LiveLine().next(Stats("running", 1.0, nodes))
    assert line == f"9 records · 9/s · in: {reason}"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (CheckpointStats(0, 0), "no checkpoint yet"),
        (CheckpointStats(3, 1, None, 0.5, 12.4), "checkpoint 12 s old"),
        (CheckpointStats(3, 1, "full", 0.5, 12.4), "checkpoint 12 s old (the last one failed)"),
        (CheckpointStats(0, 1, "full"), "no checkpoint yet (the last one failed)"),
    ],
)
def test_the_line_says_how_old_the_newest_checkpoint_is(
    made: CheckpointStats, expected: str
) -> None:
    stats = Stats("running", 1.0, {"in": node("source", 9)}, made)
    assert LiveLine().next(stats) == f"9 records · 9/s · {expected}"
