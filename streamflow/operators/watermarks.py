"""Up to when the records of a key are taken to be there.

The watermark of a key is the time of its newest record less ``delay``. With ``ttl`` it is at least
the time of the newest record of all keys less ``ttl``, so that a key which went silent does not
keep what it holds for ever. Keys that may be silent are found by a heap of times at which to look
at them; until a key's own watermark reaches that time it tells by itself what is due.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from streamflow.nodes.units import milliseconds
from streamflow.operators.keys import KeyedOperator, KeyedStep

NEVER_MS = -(2**62)


@dataclass(slots=True)
class Clocked:
    """What is remembered of a key.

    Attributes:
        newest_ms: Time of its newest record.
        look_ms: When it must be looked at, whether or not there are more records of the key.
    """

    newest_ms: int
    look_ms: int


C = TypeVar("C", bound=Clocked)


class WatermarkStep(KeyedStep[C]):
    """An open operator that holds records of a key until its watermark has passed them."""

    def __init__(self, operator: KeyedOperator, delay: float) -> None:
        # The watermark, which ttl is a part of, decides when a key is forgotten.
        super().__init__(operator.model_copy(update={"ttl": None}))
        self._delay_ms = milliseconds(delay)
        self._ttl_ms = None if operator.ttl is None else milliseconds(operator.ttl)
        self._looks: list[
            tuple[int, int, Hashable]
        ] = []  # when, a number that differs, and the key
        self._num_looks = 0

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what was remembered."""
        super().restore(state)
        for key, known in self._states.items():
            self._look_at(key, known, known.newest_ms - self._delay_ms)

    def _met(self, key: Hashable, time_ms: int, new: C) -> C:
        """Return what is known of the key of a record, ``new`` if nothing is, with its clock on."""
        known = self._states.get(key)
        if known is None:
            known = new
            self._look_at(key, known, time_ms - self._delay_ms)
        known.newest_ms = max(known.newest_ms, time_ms)
        return known

    def _watermark(self, known: C) -> int:
        """Return up to when the records of a key are taken to be there."""
        return max(known.newest_ms - self._delay_ms, self._silence_ms)

    @property
    def _silence_ms(self) -> int:
        """Up to when records of keys that went silent are taken to be there."""
        if self._ttl_ms is None or self._states.clock is None:
            return NEVER_MS
        return self._states.clock - self._ttl_ms

    def _look_at(self, key: Hashable, known: C, when_ms: int) -> None:
        """See to it that a key is looked at, whether or not there are more records of it."""
        known.look_ms = when_ms
        if self._ttl_ms is not None:
            self._num_looks += 1
            heapq.heappush(self._looks, (when_ms, self._num_looks, key))

    def _silent(self) -> Iterator[tuple[Hashable, C]]:
        """Yield keys that went silent, to take what is due; forget those that hold nothing then."""
        while self._looks and self._looks[0][0] <= self._silence_ms:
            when_ms, _, key = heapq.heappop(self._looks)
            known = self._states.get(key)
            if known is None or known.look_ms != when_ms:
                continue
            own_ms = known.newest_ms - self._delay_ms
            if own_ms > self._silence_ms:
                self._look_at(key, known, own_ms)
                continue
            yield key, known
            next_ms = self._next_ms(known)
            if next_ms is None:
                self._states.remove(key)
            else:
                self._look_at(key, known, next_ms)

    def _next_ms(self, known: C) -> int | None:
        """Return which watermark makes due more of what a key holds; ``None`` if nothing is."""
        raise NotImplementedError
