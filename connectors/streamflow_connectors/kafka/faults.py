"""What a client is trying again, since when, and when that has gone on for too long.

Theory of operation. The driver tries again by itself and for ever, and says so in its log alone. So
what all its parts send goes through here: an answer without an error ends a fault, anything else
begins or renews one. A fault of records, in Fetch and Produce, belongs to one partition; any other
to the kind of request:

    Fetch p0    ok   down ......................... ok      a fault from the first request that
    Fetch p1    ok   ok   ok   ok   ok   ok   ok   ok       failed to the first that did not
    wait             0.1  0.2  0.4  0.8  1.6  2  2 s        before the driver hears of a failure

The driver tries again as soon as it hears of a failure, hence the wait, which grows and is never
the same for two clients. A fault that nobody renews has passed: the driver has found another way.
Of some errors that pass the driver does not know that they do; it is told of a lost connection
instead, which it does know.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    for_code,
)

from streamflow_connectors.kafka.aiokafka_private import (
    KafkaClient,
    Send,
    api_of,
    code_of,
    codes_by_partition,
    codes_of,
    partitions_of,
)
from streamflow_connectors.network.retries import FIRST_WAIT, LONGEST_WAIT, PASSED, told

ORDINARY = {0, 1, 27, 51, 79}
"""Codes that are no faults: the position is lost (which is asked about), the group rebalances, the
transaction before is about to end, a name for the member comes with the answer."""

PASSING = {2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 20, 27, 41, 51, 56, 74, 75, 78}
"""Codes that come and go while brokers start, stop and share out their work."""

PASSING_IN = {"EndTxn": {-1}}
"""Those that pass in one kind of request: Kafka 4.1 answers the end of a transaction so while it
fences off the producer, and clearly afterwards. A transaction may be asked to end twice."""

KNOWN = {15, 16}
"""Those of them that the driver itself tries again, in most kinds of request."""

KNOWN_IN: dict[str, set[int]] = {
    **dict.fromkeys(("Heartbeat", "SyncGroup", "OffsetCommit"), KNOWN | {27}),
    **dict.fromkeys(
        ("InitProducerId", "AddPartitionsToTxn", "AddOffsetsToTxn", "EndTxn"), KNOWN | {51}
    ),
    "Produce": {code for code in PASSING if for_code(code).retriable},
    "Fetch": PASSING,
    "FindCoordinator": set(),  # producers only know 15
    "OffsetFetch": set(),  # it looks at the partitions alone, of which there are none then
}
"""Likewise, in the others."""

PER_PARTITION = {"Fetch", "Produce"}

Key = tuple[Any, ...]


@dataclass
class RequestFault:
    """Something that fails.

    Attributes:
        api: The kind of request.
        since: When the first request began that failed.
        last: When the last one failed.
        reason: Of the last one.
        count: How many have failed.
    """

    api: str
    since: float
    last: float
    reason: str
    count: int = 0


class Faults:
    """Watches the requests of a client.

    Attributes:
        num_failed: How many have failed.
    """

    def __init__(self) -> None:
        self.num_failed = 0
        self._faults: dict[Key, RequestFault] = {}
        self._under_way: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Faults {self.retrying() or 'none'}>"

    def watch(self, client: KafkaClient) -> None:
        """Have all the client sends go through here."""
        client.watch(self._watched)

    async def _watched(self, request: Any, send: Send) -> Any:
        api = api_of(request)
        self._under_way[api] += 1
        try:
            return await self._send(api, request, send)
        finally:
            self._under_way[api] -= 1

    async def _send(self, api: str, request: Any, send: Send) -> Any:
        began = time.monotonic()
        try:
            response = await send()
        except KafkaError as error:
            reason = "no connection" if isinstance(error, NodeNotReadyError) else _name(error)
            for key in _keys(api, request):
                self.fail(key, reason, since=began)
            await self._wait(_keys(api, request))
            raise
        failed = []
        is_of_use = False
        for key, code in _outcomes(api, response):
            if code in ORDINARY:
                self._faults.pop(key, None)
                is_of_use = is_of_use or len(key) > 1
            else:
                self.fail(key, _reason(code), since=began)
                failed.append((key, code))
        if failed and not is_of_use:  # else the other partitions would be held up
            await self._wait(key for key, _ in failed)
        _raise_unknown(api, response)
        return response

    def fail(self, key: Key, reason: str, *, since: float | None = None) -> None:
        """Take note of a failure; ``key`` is the kind of request, maybe with a partition."""
        now = time.monotonic()
        fault = self._faults.get(key)
        if fault is None or not self._is_current(fault):
            began = now if since is None else since
            fault = self._faults[key] = RequestFault(key[0], began, now, reason)
        fault.last, fault.reason = now, reason
        fault.count += 1
        self.num_failed += 1

    def clear(self) -> None:
        """Forget all faults, of partitions that are no longer read, for example."""
        self._faults.clear()

    async def _wait(self, keys: Iterable[Key]) -> None:
        """Wait longer after each failure, and not as long as others do."""
        count = max((self._faults[key].count for key in keys if key in self._faults), default=1)
        longest = min(FIRST_WAIT * 2.0 ** min(count - 1, 10), LONGEST_WAIT)
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))

    def _is_current(self, fault: RequestFault) -> bool:
        is_recent = fault.last > time.monotonic() - PASSED
        return is_recent or self._under_way[fault.api] > 0

    def _longest(self) -> RequestFault | None:
        """Return the fault that has lasted longest."""
        current = filter(self._is_current, self._faults.values())
        return min(current, key=lambda fault: fault.since, default=None)

    @property
    def seconds(self) -> float:
        """How long the longest fault has lasted."""
        fault = self._longest()
        return time.monotonic() - fault.since if fault else 0.0

    def retrying(self) -> str | None:
        """Return what is being tried again, for how long, and why; None if all is well."""
        fault = self._longest()
        return told(fault.api, fault.since, fault.reason) if fault else None


def is_passing(error: KafkaError) -> bool:
    """Whether an error that the driver has given up on is worth another try."""
    return error.retriable or isinstance(error, KafkaTimeoutError)


def _raise_unknown(api: str, response: Any) -> None:
    """Raise for an answer that the driver would take for something else.

    Raises:
        KafkaError: The group's positions cannot be read, which the driver would take for a group
            without positions.
        NodeNotReadyError: An error that passes, which the driver would give up on.
    """
    codes = set(codes_of(response)) & (PASSING | PASSING_IN.get(api, set()))
    if unknown := codes - KNOWN_IN.get(api, KNOWN):
        raise NodeNotReadyError(", ".join(map(_reason, unknown)))
    if api == "OffsetFetch" and (code := code_of(response)):
        raise KafkaError(_reason(code))


def _reason(code: int) -> str:
    return f"error {code} {for_code(code).message}"


def _name(error: KafkaError) -> str:
    return f"{type(error).__name__} {error}".strip()


def _keys(api: str, request: Any) -> list[Key]:
    """Return what fails where a request gets no answer."""
    parts = partitions_of(request) if api in PER_PARTITION else []
    return [(api, *part) for part in parts] or [(api,)]


def _outcomes(api: str, response: Any) -> Iterator[tuple[Key, int]]:
    """Yield the codes of an answer: of each partition, or the first one that is a fault."""
    is_parted = api in PER_PARTITION and not code_of(response)
    if is_parted and (parts := codes_by_partition(response)):
        yield (api,), 0
        yield from (((api, topic, number), code) for topic, number, code in parts)
        return
    yield (api,), next((code for code in codes_of(response) if code not in ORDINARY), 0)
