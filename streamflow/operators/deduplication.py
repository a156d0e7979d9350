"""Records that come more than once."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

from streamflow.contracts import Context
from streamflow.operators.keys import KeyedOperator, PassingStep


class Deduplicate(KeyedOperator):
    """Keeps the first record of each key, and leaves out those that repeat it.

    A key that comes again is remembered for another ``ttl``. Without ``ttl`` only ``max_keys``
    makes room for others. The report counts the records left out.
    """

    keeps_scalars: ClassVar[bool] = True

    type: Literal["deduplicate"] = "deduplicate"

    def open(self, context: Context) -> AbstractContextManager[DeduplicateStep]:
        """Give a processor that has seen nothing yet."""
        return nullcontext(DeduplicateStep(self))


class DeduplicateStep(PassingStep[bool]):
    """An open `Deduplicate`."""

    def _passes(self, key: Hashable, time_ms: int) -> bool:
        is_known = self._states.get(key) is not None
        self._states.put(key, True)
        return not is_known
