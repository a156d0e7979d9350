from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.evaluation.moments import Moments


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_moments_before_each_row_are_those_of_the_rows_before(offset: float) -> None:
    rows = np.random.default_rng(1).normal(offset, 2, size=(100, 3))
    moments = Moments(3)
    means, variances = moments.absorb(rows)
    for count in range(1, 100):
        assert means[count] == pytest.approx(rows[:count].mean(axis=0), rel=1e-12)
        assert variances[count] == pytest.approx(rows[:count].var(axis=0), rel=1e-6, abs=1e-12)
    assert moments.mean_F == pytest.approx(rows.mean(axis=0), rel=1e-12)
    assert moments.variance_F == pytest.approx(rows.var(axis=0), rel=1e-6)
    assert repr(moments) == "<Moments of 3 columns after 100 rows>"


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e9 + 0.1])
def test_a_constant_column_has_no_variance_at_all(constant: float) -> None:
    moments = Moments(1)
    means, variances = moments.absorb(np.full((1000, 1), constant))
    assert (means == constant).all()
    assert (variances == 0).all()


def test_no_rows_change_nothing() -> None:
    moments = Moments(2)
    moments.absorb(np.zeros((0, 2)))
    assert moments.count == 0
    assert moments.mean_F.tolist() == moments.variance_F.tolist() == [0, 0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=10).map(sorted), st.integers(0, 1000))
def test_moments_do_not_depend_on_how_rows_are_cut(cuts: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).normal(1e3, 1, size=(50, 2))
    whole, parts = Moments(2), Moments(2)
    expected = whole.absorb(rows)
    found = [parts.absorb(rows[start:stop]) for start, stop in pairwise([0, *cuts, 50])]
    for place in range(2):
        joined = np.concatenate([part[place] for part in found])
        assert joined.tobytes() == expected[place].tobytes()
    assert parts.variance_F.tobytes() == whole.variance_F.tobytes()
