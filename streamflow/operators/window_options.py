"""The options of a window: which there are, and what they ask of each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from streamflow.nodes.units import DurationField, SpanField
from streamflow.operators.aggregates import AggregateField
from streamflow.operators.keys import KeyedOperator

MOST_WINDOWS = 1000
"""Sliding windows that a record may be in."""


class WindowOptions(KeyedOperator):
    """Options of a `streamflow.operators.windows.Window`."""

    keeps_scalars: ClassVar[bool] = True
    keeps_order: ClassVar[bool] = False
    needs_time: ClassVar[bool] = True

    type: Literal["window"] = "window"
    fields: dict[str, AggregateField] = Field(
        description="What to compute, by the name of the field: count(), the sum, mean, min, max "
        "or std (of the population) of an expression, as in mean(price), or quantile(price, 0.9)."
    )
    size: SpanField | None = Field(None, description="How long a window is, such as 1m.")
    every: SpanField | None = Field(
        None, description="How long after the last one the next window begins; without it the size."
    )
    gap: SpanField | None = Field(
        None, description="How long there is no record between two sessions."
    )
    delay: DurationField = Field(
        0.0, description="How much older than the newest record of its key a record may come."
    )
    lateness: DurationField = Field(
        0.0,
        description="For how long after that a window still takes records, and is given again for "
        "each.",
    )
    late: Literal["drop", "reject"] = Field(
        "drop", description="What happens to records that are later: they are dropped or rejected."
    )
    max_values: int = Field(
        10_000,
        ge=1,
        description="Values of a window from which a quantile is computed; of more, a random "
        "sample of so many is.",
    )

    @model_validator(mode="after")
    def _check_window(self) -> WindowOptions:
        for problem in self._window_problems():
            raise ValueError(problem)
        return self

    def _window_problems(self) -> Iterator[str]:
        if not self.fields:
            yield "expected names and aggregates in fields, found none; write {n: count()}"
        if (self.size is None) == (self.gap is None):
            found = "neither" if self.size is None else "both"
            yield f"expected size or gap, found {found}; write one of them"
        if self.every is not None and self.size is None:
            yield "expected size beside every, found gap; sessions begin with a record"
        size, every = self.size, self.every
        if size is not None and every is not None and not size / MOST_WINDOWS <= every <= size:
            yield (
                f"expected every to be at most the size, and at least a {MOST_WINDOWS}th of it, "
                f"found {every:g} and a size of {size:g} seconds"
            )
        if self.ttl is not None and self.ttl < self.delay:
            yield f"expected a ttl of at least delay, {self.delay:g} seconds, found {self.ttl:g}"
        taken = {"start_ms", "end_ms", "revision", *(self.by or ())} & self.fields.keys()
        if taken:
            yield f"expected fields with names of their own, found {', '.join(sorted(taken))}"

    @property
    def holds(self) -> bool:
        """Whether records wait: for their window to end."""
        return True
