"""Storing a group's positions, behind the reader's back where it takes long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import anyio
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    CommitFailedError,
    IllegalStateError,
)

from streamflow.errors import ConnectorError
from streamflow_connectors.kafka.aiokafka_private import MemberCommits
from streamflow_connectors.kafka.assignment import Holdings
from streamflow_connectors.kafka.connection import describe
from streamflow_connectors.kafka.faults import Faults

logger = logging.getLogger("streamflow.kafka")

PATIENCE = 5.0  # seconds that whoever stores positions is kept waiting
SHORT_PATIENCE = 1.0  # while it is known that brokers are away


class Commits:
    """Stores positions one request after another; only the newest of each partition counts.

    Args:
        consumer: What stores them.
        held: The partitions, which hear of it.
        faults: Of the consumer.
        name: Of the source.
        group: That the positions are stored for.
        is_member: Whether the group shares out partitions, and may take them away at any time.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        held: Holdings,
        faults: Faults,
        *,
        name: str,
        group: str | None,
        is_member: bool,
    ) -> None:
        self._consumer = consumer
        self._held = held
        self._faults = faults
        self._name = name
        self._group = group
        self._is_member = is_member
        self._of_member: MemberCommits | None = None
        self._waiting: dict[TopicPartition, int] = {}
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Commits {len(self._waiting)} waiting>"

    def begin(self) -> None:
        """Take note of partitions that a member has been assigned."""
        self._of_member = MemberCommits(self._consumer)

    async def store(self, positions: Mapping[TopicPartition, int]) -> None:
        """Store positions, in the background from a point where that takes long.

        Raises:
            ConnectorError: The broker refused these or earlier ones.
        """
        self.check()
        self._waiting.update(positions)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._store())
        await self._wait()

    async def finish(self) -> None:
        """Wait a little longer for all positions to be stored.

        Raises:
            ConnectorError: They were not; a later run reads what lies behind them again.
        """
        await self._wait()
        if self._waiting:
            raise self._refused(self._faults.retrying() or "no answer")

    def check(self) -> None:
        """Raise what has failed in the background, once.

        Raises:
            ConnectorError: The broker refused.
        """
        task = self._task
        if task is None or not task.done() or task.cancelled():
            return
        self._task = None
        if error := task.exception():
            raise self._refused(describe(error)) from error

    def abandon(self) -> None:
        """Store nothing of what waits: it belongs to an epoch that is over."""
        self._waiting.clear()
        if self._task is not None:
            # The driver would go on trying, in the name of the next epoch.
            self._task.cancel()

    async def aclose(self) -> None:
        """Stop storing."""
        self.abandon()
        if self._task is not None:
            with anyio.CancelScope(shield=True):  # what comes after it in closing must come
                await asyncio.gather(self._task, return_exceptions=True)

    async def _wait(self) -> None:
        if self._task is not None:
            patience = SHORT_PATIENCE if self._faults.retrying() else PATIENCE
            await asyncio.wait([self._task], timeout=patience)
        self.check()

    def _refused(self, found: str) -> ConnectorError:
        message = (
            f"{self._name}: expected the group {self._group} to take positions, found {found}; "
            "check the broker, the permissions and that no other reader of this group has the "
            "same partitions"
        )
        return ConnectorError(message)

    async def _store(self) -> None:
        while self._waiting:
            positions = dict(self._waiting)
            try:
                if self._of_member is None:
                    await self._consumer.commit(positions)
                else:
                    await self._of_member.store(positions)
            except (CommitFailedError, IllegalStateError):
                if not self._is_member:
                    raise
                logger.info("%r: lost its partitions before a commit", self._held)
                self._waiting.clear()
                self._held.lose()
            else:
                self._held.commit(positions)
                for part, position in positions.items():
                    if self._waiting.get(part) == position:
                        del self._waiting[part]
