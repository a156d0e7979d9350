"""Names of topics that records bring along, which may be of no topic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import anyio

from streamflow.contracts import Context
from streamflow_connectors.kafka.aiokafka_private import KafkaClient
from streamflow_connectors.kafka.connection import gave_up
from streamflow_connectors.kafka.faults import Faults
from streamflow_connectors.kafka.options import KafkaSinkOptions

APPEAR_SECONDS: Final = 2.0
"""That a topic may take to appear, if the broker creates it."""

REFUSED_SECONDS: Final = 30.0
"""For which it is not asked again about a name that is of no topic."""

MOST_REFUSED: Final = 10_000
RETRY: Final = 0.1

_NAME: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}")


class TopicNames:
    """Tells names of topics from others.

    Args:
        client: Of the producer.
        faults: Of the client.
        sink: What is open.
        context: What its node is told.
    """

    def __init__(
        self, client: KafkaClient, faults: Faults, sink: KafkaSinkOptions, context: Context
    ) -> None:
        self._client = client
        self._faults = faults
        self._sink = sink
        self._context = context
        self._refused: dict[str, float] = {}  # until when

    def __repr__(self) -> str:
        return f"<TopicNames {len(self._refused)} refused>"

    async def unknown(self, names: Iterable[str]) -> dict[str, str]:
        """Return what is wrong with each name that is of no topic.

        Topics that are not there get some time, in which the broker may create them.

        Raises:
            ConnectorError: Brokers have been away for too long.
        """
        possible = {name for name in names if _NAME.fullmatch(name)}
        causes = {
            name: f"expected the name of a topic, found {name!r}, which cannot be one"
            for name in names
            if name not in possible
        }
        if asked := self._absent({name for name in possible if not self._is_refused(name)}):
            await self._wait_for(asked)
        for name in self._absent(possible):
            causes[name] = f"expected the name of a topic, found {name}, which is none; create it"
        return causes

    def _absent(self, names: set[str]) -> set[str]:
        return {name for name in names if not self._client.knows(name)}

    def _is_refused(self, name: str) -> bool:
        return self._refused.get(name, 0.0) > anyio.current_time()

    async def _wait_for(self, names: set[str]) -> None:
        """Wait for topics; note for some time those that do not appear."""
        deadline = anyio.current_time() + APPEAR_SECONDS
        self._client.ask_about(names)
        while absent := self._absent(names):
            if not await self._client.update():
                self._faults.fail(("Metadata",), "no connection")
            elif anyio.current_time() > deadline:
                break
            if self._faults.seconds > self._sink.retry_for:
                raise gave_up(self._sink, self._context, self._faults)
            await anyio.sleep(RETRY)
        self._client.ask_no_longer_about(absent)
        for name in absent:
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        self._refused.pop(name, None)
        if len(self._refused) == MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[name] = anyio.current_time() + REFUSED_SECONDS
