"""How much a sample counts by its class, so that rare classes are learned, too.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamflow.errors import GraphError, Problem, suggestion
from streamflow.evaluation.moments import Floats
from streamflow.models.declaration import ModelOptions
from streamflow.models.targets import Targets

MOST = 10.0
"""A balanced weight is no larger, so that one record of a rare class does not undo the others."""


class Weighting:
    """Factors of the losses of samples; a value, never changed.

    ``balanced`` is the number of all targets before over that of the sample's class and the number
    of classes, each class counted once in advance: King and Zeng (2001), "Logistic regression in
    rare events data", Political Analysis 9(2), with the shares as they are known by then.

    Raises:
        GraphError: A weight is of no class.
    """

    def __init__(self, model: ModelOptions, classes: Sequence[Any]) -> None:
        declared = model.class_weights
        self._counts_C: Floats = np.ones(len(classes))
        self._fixed_C: Floats | None = None
        if isinstance(declared, dict):
            named = {str(label): place for place, label in enumerate(classes)}
            self._fixed_C = np.ones(len(classes))
            for label, weight in declared.items():
                if label not in named:
                    message = f"expected weights of classes, found {label}; "
                    message += suggestion(label, list(named))
                    raise GraphError([Problem(("class_weights", label), message)])
                self._fixed_C[named[label]] = weight

    def state(self) -> dict[str, Any]:
        """Return how often each class came."""
        return {"counts": self._counts_C.copy()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over how often each class came."""
        self._counts_C = np.array(state["counts"])

    def absorb(self, encoded: Targets) -> tuple[Weighting, Tensor]:
        """Return the weighting after some targets, in order, and a factor for each, one if none."""
        after = copy.copy(self)
        places_N = encoded.values.astype(np.intp)
        ones_NC = np.eye(len(self._counts_C))[places_N] * encoded.is_known[:, None]
        counts_NC = self._counts_C + np.cumsum(ones_NC, axis=0)
        if len(encoded):
            after._counts_C = counts_NC[-1]
        if self._fixed_C is not None:
            factors_N = self._fixed_C[places_N]
        else:
            before_NC = counts_NC - ones_NC
            own_N = before_NC[np.arange(len(encoded)), places_N]
            shares_N = before_NC.sum(axis=1) / (len(self._counts_C) * own_N)
            factors_N = np.minimum(shares_N, MOST)
        return after, torch.from_numpy(np.where(encoded.is_known, factors_N, 1.0)).float()
