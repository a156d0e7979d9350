"""Targets of many records as one array, as the loss wants them.

Shapes: N records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Targets of records, which of them are known.

    Attributes:
        values: All of one shape, (N, ...); where a target is not known, any number that may be one.
        is_known: Whether there is a target (N,).
    """

    values: np.ndarray[Any, Any]
    is_known: np.ndarray[Any, np.dtype[np.bool_]]

    def __len__(self) -> int:
        return len(self.values)

    def select(self, places: Sequence[int]) -> Targets:
        """Return the targets at ``places``, in that order."""
        kept = np.asarray(places, dtype=np.intp)
        return Targets(self.values[kept], self.is_known[kept])
