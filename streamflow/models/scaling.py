"""Targets in units of their own running mean and standard deviation.

Shapes: N records, K of them with a target, C outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamflow.evaluation.moments import Floats, Moments
from streamflow.models.targets import Targets


@dataclass(frozen=True, slots=True)
class Scaled:
    """Targets in the scale's units, and what scales outputs back.

    Attributes:
        targets: Each target with the statistics that include it.
        means_NC: Mean before each record's target.
        deviations_NC: Standard deviation before each record's target.
    """

    targets: Targets
    means_NC: Floats
    deviations_NC: Floats

    def restore(self, outputs: Tensor) -> Tensor:
        """Return outputs (N, ...) in the target's own unit."""
        shape = outputs.shape
        deviations = torch.from_numpy(self.deviations_NC).reshape(shape)
        return outputs.double() * deviations + torch.from_numpy(self.means_NC).reshape(shape)


class TargetScale:
    """Running mean and standard deviation of the targets known so far; a value, never changed.

    A prediction is scaled back with the statistics from before its record's target; the target is
    learned with those that include it, so that the very first ones are of moderate size too. A
    target that has not varied yet has a standard deviation of one.
    """

    def __init__(self, width: int) -> None:
        self._moments = Moments(width)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> TargetScale:
        """Return the scale whose `state` this is."""
        scale = cls(0)
        scale._moments = Moments.restored(state)
        return scale

    def state(self) -> dict[str, Any]:
        """Return copies of the statistics."""
        return self._moments.state()

    def absorb(self, encoded: Targets) -> tuple[TargetScale, Scaled]:
        """Return the scale after some targets, given in order, and what they are in its units."""
        after = copy.copy(self)
        after._moments = copy.copy(self._moments)
        means, deviations = self._moments.mean_F[None], _deviation(self._moments.variance_F)[None]
        values_NC = encoded.values.reshape(len(encoded), means.shape[1])
        if encoded.is_known.any():
            known_KC = values_NC[encoded.is_known].astype(np.float64)
            means_KC, variances_KC = after._moments.absorb(known_KC)
            # row k: the statistics after k of the known targets
            last_C = _deviation(after._moments.variance_F)
            means = np.concatenate([means, means_KC[1:], after._moments.mean_F[None]])
            deviations = np.concatenate([deviations, _deviation(variances_KC[1:]), last_C[None]])
        seen_N = np.cumsum(encoded.is_known)
        scaled_NC = (values_NC - means[seen_N]) / deviations[seen_N]
        targets = Targets(scaled_NC.reshape(encoded.values.shape), encoded.is_known)
        before_N = seen_N - encoded.is_known
        return after, Scaled(targets, means[before_N], deviations[before_N])


def _deviation(variance: Floats) -> Floats:
    deviation = np.sqrt(variance)
    return np.where(deviation > 0, deviation, 1.0)
