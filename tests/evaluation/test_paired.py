"""Paired tests against their definitions over all losses at once, and against what they promise."""

import math
from fractions import Fraction
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.evaluation.paired import PairedLosses


def paired(first: list[float], second: list[float], cuts: list[int] | None = None) -> PairedLosses:
    losses = PairedLosses()
    places = [0, *sorted(cuts or []), len(first)]
    for start, stop in pairwise(places):
        losses.absorb(np.array(first[start:stop]), np.array(second[start:stop]))
    return losses


def diebold_mariano(d: list[float]) -> float:
    """Return the p-value by the textbook, with all differences at hand."""
    n, mean = len(d), math.fsum(d) / len(d)
    lags = int(4 * (n / 100) ** (2 / 9))

    def covariance(k: int) -> float:
        return math.fsum((d[t] - mean) * (d[t - k] - mean) for t in range(k, n)) / n

    variance = covariance(0) + 2 * math.fsum(
        (1 - k / (lags + 1)) * covariance(k) for k in range(1, lags + 1)
    )
    z = mean / math.sqrt(variance / n)
    return 2 * (1 - 0.5 * (1 + math.erf(abs(z) / math.sqrt(2))))


def follow(count: int, seed: int, memory: float) -> list[float]:
    """Return numbers that each resemble the one before."""
    draw, last, found = Random(seed), 0.0, []
    for _ in range(count):
        last = memory * last + math.sqrt(1 - memory**2) * draw.gauss(0, 1)
        found.append(last)
    return found


@pytest.mark.parametrize("count", [30, 31, 100, 457, 5000])
@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_the_variance_is_that_of_newey_and_west(count: int, memory: float) -> None:
    first = [3 + x for x in follow(count, 1, memory)]
    second = [2.9 + x for x in follow(count, 2, memory)]
    found = paired(first, second, [count // 3, count // 2]).diebold_mariano()
    assert found is not None
    expected = diebold_mariano([a - b for a, b in zip(first, second, strict=True)])
    assert found[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_equal_predictors_are_rarely_told_apart_however_losses_follow_each_other() -> None:
    rejected = naive = 0
    for seed in range(300):
        d = follow(1000, seed, 0.6)
        found = paired(d, [0.0] * len(d)).diebold_mariano()
        assert found is not None
        rejected += found[0] <= 0.05
        naive += bool(abs(np.mean(d)) / (np.std(d) / math.sqrt(len(d))) > 1.96)
    assert 0.03 < rejected / 300 < 0.14  # the estimate of a variance is never quite enough
    assert naive / 300 > 0.25


def test_a_difference_is_found() -> None:
    found = paired([1.1 + x for x in follow(2000, 1, 0.3)], [1.0 + x for x in follow(2000, 2, 0.3)])
    result = found.diebold_mariano()
    assert result is not None
    assert result[0] < 0.05
    assert found.means == pytest.approx((1.1, 1.0), abs=0.1)


def mcnemar(wins: int, losses: int) -> Fraction:
    """Return twice the smaller tail of the binomial distribution."""
    n = wins + losses
    ways = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(Fraction(1), Fraction(2 * ways, 2**n))


@given(wins=st.integers(0, 60), losses=st.integers(0, 60), same=st.integers(30, 40))
def test_mcnemars_test_is_the_binomial_one(wins: int, losses: int, same: int) -> None:
    first = [0.0] * wins + [1.0] * losses + [1.0] * same
    second = [1.0] * wins + [0.0] * losses + [1.0] * same
    found = paired(first, second).mcnemar()
    assert found == pytest.approx(float(mcnemar(wins, losses)))


def test_mcnemars_test_of_many_is_close_to_the_binomial_one() -> None:
    found = paired([0.0] * 1100 + [1.0] * 1000, [1.0] * 1100 + [0.0] * 1000).mcnemar()
    assert found == pytest.approx(float(mcnemar(1100, 1000)), rel=0.02)


def test_of_few_pairs_nothing_is_said() -> None:
    few = paired([1.0] * 29, [0.0] * 29)
    assert (few.diebold_mariano(), few.mcnemar()) == (None, None)
    assert math.isnan(PairedLosses().means[0])


def test_predictors_that_are_the_same() -> None:
    same = paired([1.0, 2.0] * 50, [1.0, 2.0] * 50)
    assert same.diebold_mariano() == (1.0, 4)
    assert same.mcnemar() == 1.0


@given(
    cuts=st.lists(st.integers(0, 700), max_size=5),
    stop=st.integers(0, 700),
)
@settings(max_examples=30, deadline=None)
def test_cuts_and_stops_leave_no_trace(cuts: list[int], stop: int) -> None:
    first, second = follow(700, 3, 0.5), follow(700, 4, 0.5)
    whole = paired(first, second)
    resumed = PairedLosses.restored(paired(first[:stop], second[:stop]).state())
    resumed.absorb(np.array(first[stop:]), np.array(second[stop:]))
    assert paired(first, second, cuts).state() == whole.state() == resumed.state()
