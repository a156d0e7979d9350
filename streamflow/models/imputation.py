"""Inputs that are missing, filled with the mean of those before.

Shapes: N records, F numbers of an input, K of them that may be missing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamflow.evaluation.moments import Floats, running_sums


class Imputation:
    """Running mean of each number that may be missing; a value, never changed.

    What is missing becomes the mean of those that were there before it, zero before the first: for
    a category that is how often each was, for a part of a time its mean direction.

    Args:
        places_K: Which numbers of an input may be missing.
    """

    def __init__(self, places_K: np.ndarray[Any, np.dtype[np.intp]]) -> None:
        self._places_K = places_K
        self._counts_K: Floats = np.zeros(len(places_K))
        self._sums_K: Floats = np.zeros(len(places_K))

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Imputation:
        """Return the imputation whose `state` this is."""
        imputation = cls(np.array(state["places"], np.intp))
        imputation._counts_K = np.array(state["counts"])
        imputation._sums_K = np.array(state["sums"])
        return imputation

    def state(self) -> dict[str, Any]:
        """Return copies of counts and sums."""
        return {
            "places": self._places_K.tolist(),
            "counts": self._counts_K.copy(),
            "sums": self._sums_K.copy(),
        }

    def fill(self, inputs: Tensor) -> tuple[Imputation, Tensor]:
        """Return the imputation after some inputs (N, ...), given in order, and these, filled."""
        given_NF = inputs.reshape(len(inputs), -1).numpy()
        given_NK = given_NF[:, self._places_K]
        is_there_NK = ~np.isnan(given_NK)
        after = copy.copy(self)
        counts_NK = running_sums(self._counts_K, is_there_NK.astype(np.float64))
        sums_NK = running_sums(self._sums_K, np.where(is_there_NK, given_NK, 0.0))
        after._counts_K, after._sums_K = counts_NK[-1].copy(), sums_NK[-1].copy()
        if is_there_NK.all():
            return after, inputs
        means_NK = sums_NK[:-1] / np.maximum(counts_NK[:-1], 1)
        filled_NF = given_NF.copy()
        filled_NF[:, self._places_K] = np.where(is_there_NK, given_NK, means_NK)
        return after, torch.from_numpy(filled_NF).reshape(inputs.shape)
