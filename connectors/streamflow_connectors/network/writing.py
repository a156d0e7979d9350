"""What sinks that send to a system answer alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.lowlevel

from streamflow.contracts import Context
from streamflow_connectors.network.retries import Retries


class SendingWriter:
    """Sends records one after the other; see `streamflow.contracts.Writer`.

    Args:
        context: What the node is told.
    """

    def __init__(self, context: Context) -> None:
        self._name = context.name
        self._num_sent = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}: {self._num_sent} sent>"

    async def flush(self) -> None:
        """Do nothing: `write` has waited for all that the system tells."""
        await anyio.lowlevel.checkpoint()

    async def mark(self) -> Mapping[str, Any]:
        """Return nothing: what was sent cannot be taken back."""
        return {}


class RetryingWriter(SendingWriter):
    """Sends to a server, and tries again while it is away.

    Args:
        context: What the node is told.
        retries: What is tried again.
    """

    def __init__(self, context: Context, retries: Retries) -> None:
        super().__init__(context)
        self._retries = retries

    def retrying(self) -> str | None:
        """Return what is tried again, for how long and why; ``None`` if all is well."""
        return self._retries.retrying()

    def report(self) -> Mapping[str, int]:
        """Return how often something failed."""
        return {"failures that were tried again": self._retries.num_failed}
