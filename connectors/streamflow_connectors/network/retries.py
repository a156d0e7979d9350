"""What a connector tries again, since when and why, and when that has gone on for too long."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import stamina

from streamflow.contracts import Context
from streamflow.errors import ConnectorError, StreamflowError
from streamflow_connectors.network.addresses import Address

FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 2.0
JITTER: Final = 0.5

PASSED: Final = 10.0
"""Seconds without a failure after which the next one is another matter."""

T = TypeVar("T")


class Retries:
    """Tries again what may pass, with waits that grow and are never the same for two clients.

    Args:
        declared: Where the server is.
        context: What the node is told.
        passing: Returns why something may pass, as text; ``None`` if it will not.
        refusal: Returns how the server has refused and what to do, of what will not pass; ``None``
            if it is something else.

    Attributes:
        num_failed: How often something has failed.
    """

    def __init__(
        self,
        declared: Address,
        context: Context,
        passing: Callable[[Exception], str | None],
        refusal: Callable[[Exception], str | None] = lambda _: None,
    ) -> None:
        self.num_failed = 0
        self._name = context.name
        self._target = declared.shown
        self._retry_for = declared.retry_for
        self._passing = passing
        self._refusal = refusal
        self._since: float | None = None
        self._last = 0.0
        self._reason = ""

    def __repr__(self) -> str:
        return f"<Retries {self.retrying() or 'none'}>"

    async def run(self, action: Callable[[], Awaitable[T]]) -> T:
        """Return what ``action`` returns, the first time that it does not fail.

        Raises:
            ConnectorError: It has failed for too long, or the server refuses.
            Exception: What it raised, if that is neither.
        """
        try:
            async for attempt in attempts(self._is_worth_a_try):
                with attempt:
                    found = await action()
                    self.passed()
                    return found
        except Exception as error:
            if self._why(error) is not None:
                raise self._gave_up() from error
            if refusal := self._refusal(error):
                message = f"{self._name}: expected {self._target} to go along, found {refusal}"
                raise ConnectorError(message) from error
            raise
        message = "unreachable: attempts are without end"
        raise AssertionError(message)

    def passed(self) -> None:
        """Take note that it works again."""
        self._since = None

    def retrying(self) -> str | None:
        """Return what is tried again, for how long and why; ``None`` if all is well."""
        return None if self._since is None else told(self._target, self._since, self._reason)

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


def attempts(
    is_worth_a_try: Callable[[Exception], bool] | type[Exception],
) -> AsyncIterator[stamina.Attempt]:
    """Return attempts without end, with waits that grow, as long as errors are worth one."""
    return stamina.retry_context(
        is_worth_a_try,
        attempts=None,
        timeout=None,
        wait_initial=FIRST_WAIT,
        wait_max=LONGEST_WAIT,
        wait_jitter=JITTER,
    ).__aiter__()


def told(target: str, since: float, reason: str) -> str:
    """Return in words what is tried again."""
    return f"retrying {target} for {time.monotonic() - since:.0f} s: {reason}"
