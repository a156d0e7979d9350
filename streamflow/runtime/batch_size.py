"""How much to do at once: much while that is quick, little where it is slow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

MAX_RECORDS = 1024
"""A node takes at once."""

CALL_SECONDS = 0.05
"""What is done at once should take, so that stopping is quick."""


class Pace:
    """How many records to handle at once, so that it takes about `CALL_SECONDS`.

    A single call at most doubles or halves it, as it may have been slow by chance.

    Attributes:
        records: That many, `MAX_RECORDS` at the most.
    """

    def __init__(self, records: int) -> None:
        self.records = records

    @contextmanager
    def watching(self, count: int) -> Iterator[None]:
        """Handle ``count`` records in the block, and as many as fit the next time."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        fitting = int(count * CALL_SECONDS / seconds) if seconds else MAX_RECORDS
        if seconds > CALL_SECONDS:
            self.records = max(1, count // 2, fitting)
        elif count == self.records:
            self.records = min(MAX_RECORDS, 2 * count, fitting)
