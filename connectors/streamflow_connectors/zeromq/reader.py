"""An open ZeroMQ source: wait for the socket, then take all that is there."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
import zmq

from streamflow.contracts import Context, Fetch
from streamflow.records import Batch, Partition, split_rejected
from streamflow_connectors.zeromq.frames import Message, read_message
from streamflow_connectors.zeromq.gaps import Senders
from streamflow_connectors.zeromq.nodes import ZeroMqSource
from streamflow_connectors.zeromq.sockets import BURST, has_event, opened_socket, wait_for

T = TypeVar("T")

MOST_BYTES: Final = 2**20
"""Of one batch, unless a single message is larger."""

RECORD_BYTES: Final = 200
"""What a record takes in memory beside its payload, about."""

_GUARD: Final = 4  # times max_bytes, beyond which a frame does not even get into memory
_LARGEST: Final = 2**63 - 1


@asynccontextmanager
async def open_reader(source: ZeroMqSource, context: Context) -> AsyncIterator[ZeroMqReader]:
    """Listen or connect; close when the block is left."""
    is_sub = source.socket == "sub"
    options: dict[int, Any] = {
        zmq.RCVHWM: source.high_water_mark,
        zmq.MAXMSGSIZE: min(_GUARD * source.max_bytes, _LARGEST),
    }
    kind = zmq.SUB if is_sub else zmq.PULL
    async with opened_socket(source, context, kind, options) as socket:
        for topic in (source.topics or ("",)) if is_sub else ():
            socket.subscribe(topic)
        yield ZeroMqReader(socket, source, context)


class ZeroMqReader:
    """Reads one socket; see `streamflow.contracts.Reader`."""

    def __init__(self, socket: zmq.Socket[bytes], source: ZeroMqSource, context: Context) -> None:
        self._socket = socket
        self._source = source
        self._codec = source.format.codec()
        self._partition = Partition(context.name)
        self._next = 0
        self._senders = Senders(context.name)
        self._silent_since: float | None = None
        self._has_ended = False

    def __repr__(self) -> str:
        return f"<ZeroMqReader {self._partition}: {self._next} received, {self._senders.lost} lost>"

    async def receive(self) -> Fetch:
        """Wait for records and return those at hand.

        Raises:
            anyio.EndOfStream: None came for as long as ``end_after`` says.
        """
        # Nothing is awaited once a message is taken, so cancelling loses none.
        await anyio.lowlevel.checkpoint()
        while not self._has_ended:
            if messages := self._take():
                self._silent_since = None
                return self._fetch(messages)
            await self._wait()
        raise anyio.EndOfStream

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: senders keep no positions."""

    def behind(self) -> int | None:
        """Return None: ZeroMQ does not tell how much waits."""
        return None

    def report(self) -> Mapping[str, int]:
        """Return what the numbers of the senders show."""
        return {
            "records lost": self._senders.lost,
            "records repeated or late": self._senders.repeated,
        }

    def _take(self) -> list[list[bytes]]:
        """Take messages that are there, as many as make a batch."""
        messages: list[list[bytes]] = []
        size = 0
        receive = self._socket.recv_multipart
        try:
            while len(messages) < BURST and size < MOST_BYTES:
                frames = receive(zmq.NOBLOCK)
                messages.append(frames)
                size += len(frames[-1])
        except zmq.Again:
            pass
        return messages

    async def _wait(self) -> None:
        """Wait for a message, or until there was silence for long enough."""
        if self._silent_since is None:
            self._silent_since = anyio.current_time()
        patience = self._source.end_after or math.inf
        with anyio.CancelScope(deadline=self._silent_since + patience) as scope:
            await wait_for(self._socket, zmq.POLLIN)
        if scope.cancelled_caught:
            self._has_ended = not has_event(self._socket, zmq.POLLIN)

    def _fetch(self, frames: list[list[bytes]]) -> Fetch:
        has_topic = self._source.socket == "sub"
        messages = [read_message(each, has_topic=has_topic) for each in frames]
        for message in messages:
            if message.sender is not None:
                self._senders.take(message.sender, message.number)
        start, self._next = self._next, self._next + len(messages)
        batch = _to_batch(messages, self._partition, start)
        causes = {
            index: cause
            for index, message in enumerate(messages)
            if (cause := message.cause or self._fault(message))
        }
        good, _ = split_rejected(batch, causes)
        decoded = self._codec.decode(good.originals or ())
        if decoded.causes:
            places = [index for index in range(len(batch)) if index not in causes]
            causes |= {places[index]: cause for index, cause in decoded.causes.items()}
        kept, rejected = split_rejected(batch, causes)
        return Fetch(kept.with_values(decoded.values), {self._partition: self._next}, rejected)

    def _fault(self, message: Message) -> str | None:
        limit, size = self._source.max_bytes, len(message.payload)
        return None if size <= limit else f"expected at most {limit} bytes, found {size}"


def _to_batch(messages: Sequence[Message], partition: Partition, start: int) -> Batch:
    """Return messages as records whose values are still bytes."""
    payloads = [message.payload for message in messages]
    return Batch(
        payloads,
        [partition] * len(messages),
        range(start, start + len(messages)),
        keys=_if_any([message.key for message in messages], None),
        timestamps_ms=_if_any([message.timestamp_ms for message in messages], None),
        headers=_if_any([message.headers for message in messages], ()),
        originals=payloads,
        size_bytes=2 * sum(map(len, payloads)) + RECORD_BYTES * len(messages),
    )


def _if_any(column: list[T], absent: object) -> list[T] | None:
    """Return a column, or ``None`` if no record has an entry in it."""
    return None if all(entry == absent for entry in column) else column
