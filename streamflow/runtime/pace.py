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

    Attributes:
        records: That many, `MAX_RECORDS` at the most.
    """

    def __init__(self, records: int) -> None:
        self.records = records

    @contextmanager
    def watching(self, count: int) -> Iterator[None]:
        """Handle ``count`` records in the block, and more the next time if that is quick."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        if seconds > CALL_SECONDS:
            self.records = max(1, count // 2)
        elif seconds < CALL_SECONDS / 2 and count == self.records:
            self.records = min(MAX_RECORDS, 2 * count)
