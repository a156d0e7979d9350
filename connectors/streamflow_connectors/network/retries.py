"""What a connector tries again, since when and why, and when that has gone on for too long."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import stamina

from streamflow.errors import ConnectorError, StreamflowError

FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 2.0
JITTER: Final = 0.5

PASSED: Final = 10.0
"""Seconds without a failure after which the next one is another matter."""

T = TypeVar("T")


class Retries:
    """Tries again what may pass, with waits that grow and are never the same for two clients.

    Args:
        name: Of the node.
        target: What is to be reached, as messages show it.
        retry_for: Seconds to go on trying.
        passing: Returns why something may pass, as text; ``None`` if it will not.

    Attributes:
        num_failed: How often something has failed.
    """

    def __init__(
        self,
        name: str,
        target: str,
        retry_for: float,
        passing: Callable[[Exception], str | None],
    ) -> None:
        self.num_failed = 0
        self._name = name
        self._target = target
        self._retry_for = retry_for
        self._passing = passing
        self._since: float | None = None
        self._last = 0.0
        self._reason = ""

    def __repr__(self) -> str:
        return f"<Retries {self.retrying() or 'none'}>"

    async def run(self, action: Callable[[], Awaitable[T]]) -> T:
        """Return what ``action`` returns, the first time that it does not fail.

        Raises:
            ConnectorError: It has failed for too long.
            Exception: What it raised, if that will not pass.
        """
        try:
            async for attempt in stamina.retry_context(
                self._is_worth_a_try,
                attempts=None,
                timeout=None,
                wait_initial=FIRST_WAIT,
                wait_max=LONGEST_WAIT,
                wait_jitter=JITTER,
            ):
                with attempt:
                    return await action()
        except Exception as error:
            if self._why(error) is None:
                raise
            raise self._gave_up() from error
        message = "unreachable: attempts are without end"
        raise AssertionError(message)

    def passed(self) -> None:
        """Take note that it works again."""
        self._since = None

    def retrying(self) -> str | None:
        """Return what is tried again, for how long and why; ``None`` if all is well."""
        if self._since is None:
            return None
        seconds = time.monotonic() - self._since
        return f"retrying {self._target} for {seconds:.0f} s: {self._reason}"

    def _is_worth_a_try(self, error: Exception) -> bool:
        reason = self._why(error)
        if reason is None:
            return False
        now = time.monotonic()
        if self._since is None or now - self._last > PASSED:
            self._since = now
        self._last, self._reason = now, reason
        self.num_failed += 1
        return now - self._since < self._retry_for

    def _why(self, error: Exception) -> str | None:
        """Return why something may pass; what this package says itself will not."""
        return None if isinstance(error, StreamflowError) else self._passing(error)

    def _gave_up(self) -> ConnectorError:
        message = (
            f"{self._name}: expected {self._target} to be reached within {self._retry_for:g} s, "
            f"found {self._reason}; check the address and the server, or raise retry_for"
        )
        return ConnectorError(message)
