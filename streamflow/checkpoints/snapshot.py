"""What a run knows at one point of its streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamflow.records import Place


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one point of its streams.

    Attributes:
        records: For each source, records let through since its stream's start.
        positions: For each source, where each partition goes on.
        states: Of each operator and model, as `trees` describes them.
        marks: Of each sink; likewise, without tensors and arrays.
    """

    records: Mapping[str, int] = field(default_factory=dict)
    positions: Mapping[str, Mapping[Place, int]] = field(default_factory=dict)
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    marks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
