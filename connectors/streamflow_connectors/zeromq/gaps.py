"""What is missing between the numbers of each sender."""

from __future__ import annotations

import logging
from typing import Final

logger = logging.getLogger("streamflow.zeromq")

MOST_SENDERS: Final = 1024
"""That are remembered; each start of a sender is another one."""


class Senders:
    """Follows the numbers that senders give their records, each from the first one received.

    Args:
        name: Of the source.

    Attributes:
        lost: Records whose numbers were passed over.
        repeated: Records whose numbers were passed already: doubles, or those that come late.
    """

    def __init__(self, name: str) -> None:
        self.lost = 0
        self.repeated = 0
        self._name = name
        self._next: dict[bytes, int] = {}
        self._losing: set[bytes] = set()

    def __repr__(self) -> str:
        return f"<Senders {len(self._next)}: {self.lost} lost, {self.repeated} repeated>"

    def take(self, sender: bytes, number: int) -> None:
        """Take note of a record; say so when a sender's records begin to be lost."""
        expected = self._next.get(sender)
        if expected is None:
            self._forget_one()
        elif number < expected:
            self.repeated += 1
            return
        elif number > expected:
            self._lose(sender, expected, number)
        self._next[sender] = number + 1

    def _forget_one(self) -> None:
        if len(self._next) == MOST_SENDERS:
            oldest = next(iter(self._next))
            del self._next[oldest]
            self._losing.discard(oldest)

    def _lose(self, sender: bytes, expected: int, found: int) -> None:
        self.lost += found - expected
        if sender in self._losing:
            return
        self._losing.add(sender)
        logger.warning(
            "%s: records of the sender %s are lost: expected number %d, found %d; "
            "raise high_water_mark at both ends, or send more slowly",
            self._name,
            sender.hex(),
            expected,
            found,
        )
