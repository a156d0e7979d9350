"""Is one of two predictors better, or was it luck: paired tests of their losses.

Losses of a stream depend on those before them, so that there is less to learn from n of them than
from n that do not. Diebold and Mariano (1995), "Comparing predictive accuracy", Journal of Business
and Economic Statistics 13(3), compare the mean difference d of the losses with its standard error,
from the long-run variance: that of Newey and West (1987), "A simple, positive semi-definite,
heteroskedasticity and autocorrelation consistent covariance matrix", Econometrica 55(3),

    g_0 + 2 sum_{k=1..m} (1 - k / (m + 1)) g_k,    m = floor(4 (n / 100)^(2/9))

with g_k the autocovariance of d at distance k, divided by n, and m as in Newey and West (1994),
"Automatic lag selection in covariance matrix estimation", Review of Economic Studies 61(4).

Shapes: N pairs, K = `FARTHEST` + 1 distances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamflow.evaluation.moments import Floats, running_sums

FARTHEST = 200
"""Beyond this distance autocovariances are never asked for: it is enough for 4e9 pairs."""

FEWEST = 30
"""Of fewer pairs nothing is said."""

MOST_EXACT = 1000
"""Up to so many differing pairs McNemar's test is the exact one."""


class PairedLosses:
    """Losses of two predictors for the same samples, as sums; memory does not grow.

    Everything is added strictly in order, so it does not matter how pairs are cut into calls.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: Floats = np.zeros(3)  # losses of the first, of the second, differences
        self._products_K: Floats = np.zeros(FARTHEST + 1)
        self._first: list[float] = []
        self._last_K: Floats = np.zeros(FARTHEST)
        self._wins = [0, 0]

    def absorb(self, first_N: Floats, second_N: Floats) -> None:
        """Take pairs of losses in."""
        if not len(first_N):
            return
        d_N = first_N - second_N
        along_N = np.concatenate([self._last_K, d_N])
        windows_NK = np.lib.stride_tricks.sliding_window_view(along_N, FARTHEST + 1)[:, ::-1]
        self._products_K = running_sums(self._products_K, windows_NK * d_N[:, None])[-1]
        self._sums = running_sums(self._sums, np.stack([first_N, second_N, d_N], axis=1))[-1]
        self._first += d_N[: FARTHEST - len(self._first)].tolist()
        self._last_K = along_N[-FARTHEST:].copy()
        self._wins[0] += int((d_N < 0).sum())
        self._wins[1] += int((d_N > 0).sum())
        self.count += len(d_N)

    @property
    def means(self) -> tuple[float, float]:
        """The mean loss of each; not a number before the first pair."""
        count = self.count or math.nan
        return float(self._sums[0]) / count, float(self._sums[1]) / count

    def diebold_mariano(self) -> tuple[float, int] | None:
        """Return the two-sided p-value, and up to which distance autocovariances count.

        ``None`` for fewer than 30 pairs.
        """
        n = self.count
        if n < FEWEST:
            return None
        farthest = min(int(4 * (n / 100) ** (2 / 9)), FARTHEST, n - 1)
        mean = float(self._sums[2]) / n
        shares = [1.0, *(2 * (1 - k / (farthest + 1)) for k in range(1, farthest + 1))]
        variance = math.fsum(
            share * self._autocovariance(k, mean) for k, share in enumerate(shares)
        )
        if variance <= 0:
            return (1.0 if mean == 0 else 0.0), farthest
        return math.erfc(abs(mean) / math.sqrt(variance / n) / math.sqrt(2)), farthest

    def _autocovariance(self, k: int, mean: float) -> float:
        """Return the sum over t > k of (d_t - mean)(d_{t-k} - mean), divided by n."""
        total = float(self._sums[2])
        without_first = total - math.fsum(self._first[:k])
        last = self._last_K[FARTHEST - k :].tolist()
        without_last = total - math.fsum(last)
        crossed = mean * (without_first + without_last) - (self.count - k) * mean * mean
        return (float(self._products_K[k]) - crossed) / self.count

    def mcnemar(self) -> float | None:
        """Return the two-sided p-value of as unequal a share of the pairs that differ.

        McNemar (1947), "Note on the sampling error of the difference between correlated proportions
        or percentages", Psychometrika 12(2): exact, or for many with Edwards' correction. It takes
        pairs as independent of each other. ``None`` for fewer than 30 pairs.
        """
        if self.count < FEWEST:
            return None
        fewer, more = sorted(self._wins)
        differing = fewer + more
        if differing <= MOST_EXACT:
            ways: int = sum(math.comb(differing, wins) for wins in range(fewer + 1))
            return min(1.0, ways / 2 ** (differing - 1)) if differing else 1.0
        return math.erfc(math.sqrt((more - fewer - 1) ** 2 / differing / 2))

    def state(self) -> dict[str, Any]:
        """Return all that later pairs need, as plain data."""
        return {
            "count": self.count,
            "sums": self._sums.tolist(),
            "products": self._products_K.tolist(),
            "first": list(self._first),
            "last": self._last_K.tolist(),
            "wins": list(self._wins),
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> PairedLosses:
        """Return losses that go on where those were whose `state` this is."""
        losses = cls()
        losses.count = state["count"]
        losses._sums = np.array(state["sums"])
        losses._products_K = np.array(state["products"])
        losses._first = list(state["first"])
        losses._last_K = np.array(state["last"])
        losses._wins = list(state["wins"])
        return losses
