from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamflow.pipeline.planning.costs import Cost
from streamflow.pipeline.planning.forecast import forecast
from streamflow.pipeline.schedule import orders

# A busy machine must not fail a test.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DETERMINISTIC = ("sequential", "1f1b", "lockstep")
SIXTEENTHS = st.integers(1, 64).map(lambda n: n / 16)
STAGES = st.lists(st.builds(Cost, SIXTEENTHS, SIXTEENTHS, SIXTEENTHS), min_size=1, max_size=5)


def period(costs: Sequence[Cost], schedule: str, hand_over: float) -> float:
    """Return the seconds between samples: the slowest way round from a stage to itself.

    A sample's way from stage s down to stage t and its gradient's way back must be gone before s
    takes the sample that is that many later. Only s has updated by then.
    """
    own = orders(schedule, len(costs))
    ways = [costs[s].total for s in range(len(costs))]
    for s in range(len(costs)):
        for t in range(s + 1, len(costs)):
            length = sum(cost.forward + cost.backward for cost in costs[s : t + 1])
            length += costs[s].update + 2 * (t - s) * hand_over
            ways.append(length / (own[s].lag - own[t].lag + 1))
    return max(ways)


@UNTIMED
@given(STAGES, st.sampled_from(DETERMINISTIC))
def test_one_processor_does_all_actions_one_after_the_other(
    costs: list[Cost], schedule: str
) -> None:
    found = forecast(costs, orders(schedule, len(costs)), processors=1)
    assert found.rate == pytest.approx(1 / sum(cost.total for cost in costs))


@UNTIMED
@given(STAGES, st.sampled_from(DETERMINISTIC), st.sampled_from([0.0, 0.5, 4.0]))
def test_with_enough_processors_the_slowest_way_round_limits_the_rate(
    costs: list[Cost], schedule: str, hand_over: float
) -> None:
    own = orders(schedule, len(costs))
    found = forecast(costs, own, processors=len(costs), hand_over=hand_over)
    assert 1 / found.rate == pytest.approx(period(costs, schedule, hand_over), rel=0.1)
    assert (
        found.latency >= sum(cost.forward for cost in costs) + (len(costs) - 1) * hand_over - 1e-9
    )


@UNTIMED
@given(STAGES, st.sampled_from((*DETERMINISTIC, "greedy")), st.integers(1, 5))
def test_neither_processors_nor_stages_do_more_than_they_can(
    costs: list[Cost], schedule: str, processors: int
) -> None:
    found = forecast(costs, orders(schedule, len(costs)), processors=processors)
    loads = [cost.total for cost in costs]
    assert found.rate <= 1.1 / max(*loads, sum(loads) / processors)


def test_alike_stages_of_1f1b_are_always_busy_and_of_sequential_never_together() -> None:
    costs = [Cost(1.0, 2.0, 1.0)] * 4
    assert forecast(costs, orders("1f1b", 4), processors=4).rate == pytest.approx(1 / 4)
    # A gradient goes up before the stage updates, so all but the first update while it travels.
    assert forecast(costs, orders("sequential", 4), processors=4).rate == pytest.approx(1 / 13)


def test_a_sample_waits_within_the_pipeline_while_others_are_ahead_of_it() -> None:
    costs = [Cost(1.0, 1.0, 0.0), Cost(1.0, 1.0, 0.0)]
    # F0 of a sample, then F1 of it, while the other stage runs a backward.
    assert forecast(costs, orders("1f1b", 2), processors=2).latency == pytest.approx(2.0)
    # The first stage runs two samples ahead of a slow second one.
    slow = [Cost(1.0, 1.0, 0.0), Cost(5.0, 5.0, 0.0)]
    assert forecast(slow, orders("1f1b", 2), processors=2).latency > 10.0


def test_greedy_inline_is_sequential() -> None:
    costs = [Cost(1.0, 2.0, 0.5), Cost(2.0, 1.0, 0.5), Cost(0.5, 0.5, 0.5)]
    alone = forecast(costs, orders("sequential", 3), processors=1)
    assert forecast(costs, orders("greedy", 3), processors=1) == alone
