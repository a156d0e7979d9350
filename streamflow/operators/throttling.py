"""At most so many records in so much time."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

from pydantic import Field

from streamflow.contracts import Context
from streamflow.nodes.units import SpanField, milliseconds
from streamflow.operators.keys import KeyedOperator, PassingStep


class Throttle(KeyedOperator):
    """Lets at most so many records of a key pass in so much time, and leaves out the others.

    A record passes unless so many have passed before it whose times are less than ``per`` before
    its own. Time is that of the records, so that a recorded stream gives what the live one gave.
    The report counts the records left out. To slow a source down instead, give it a pace.
    """

    keeps_scalars: ClassVar[bool] = True
    needs_time: ClassVar[bool] = True

    type: Literal["throttle"] = "throttle"
    records: int = Field(1, ge=1, description="Records that may pass.")
    per: SpanField = Field(description="In how much time: seconds, or text such as 500ms or 1m.")

    def open(self, context: Context) -> AbstractContextManager[ThrottleStep]:
        """Give a processor that has seen nothing yet."""
        return nullcontext(ThrottleStep(self))


class ThrottleStep(PassingStep[deque[int]]):
    """An open `Throttle`, which remembers the times of the last records of a key that passed."""

    def __init__(self, operator: Throttle) -> None:
        super().__init__(operator)
        self._records = operator.records
        self._per_ms = milliseconds(operator.per)

    def _passes(self, key: Hashable, time_ms: int) -> bool:
        passed = self._states.get(key)
        if passed is None:
            passed = deque(maxlen=self._records)
        passes = len(passed) < self._records or time_ms - min(passed) >= self._per_ms
        if passes:
            passed.append(time_ms)
        self._states.put(key, passed)
        return passes

    def _save(self, state: deque[int]) -> Any:
        return list(state)

    def _load(self, state: Any) -> deque[int]:
        return deque(state, self._records)
