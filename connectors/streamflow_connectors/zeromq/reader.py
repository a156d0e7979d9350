"""An open ZeroMQ source: wait for the socket, then take all that is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import zmq

from streamflow.contracts import Context
from streamflow_connectors.network.reading import Item, ItemReader
from streamflow_connectors.zeromq.frames import read_message
from streamflow_connectors.zeromq.gaps import Senders
from streamflow_connectors.zeromq.options import ZeroMqSourceOptions
from streamflow_connectors.zeromq.sockets import BURST, opened_socket, wait_for

MOST_BYTES: Final = 2**20
"""Of one batch, unless a single message is larger."""

_GUARD: Final = 4  # times max_bytes, beyond which a frame does not even get into memory
_LARGEST: Final = 2**63 - 1


@asynccontextmanager
async def open_reader(source: ZeroMqSourceOptions, context: Context) -> AsyncIterator[ZeroMqReader]:
    """Listen or connect; close when the block is left.

    Raises:
        ConnectorError: An endpoint is taken or cannot be used.
    """
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


class ZeroMqReader(ItemReader):
    """Reads one socket; see `streamflow.contracts.Reader`."""

    def __init__(
        self, socket: zmq.Socket[bytes], source: ZeroMqSourceOptions, context: Context
    ) -> None:
        super().__init__(context, source.format.codec(), source.end_after)
        self._socket = socket
        self._has_topic = source.socket == "sub"
        self._most_bytes = source.max_bytes
        self._senders = Senders(context.name)

    def __repr__(self) -> str:
        return f"<ZeroMqReader {self._partition}: {self._next} received, {self._senders.lost} lost>"

    def report(self) -> Mapping[str, int]:
        """Return what the numbers of the senders show."""
        return {
            "records lost": self._senders.lost,
            "records repeated or late": self._senders.repeated,
        }

    def _take(self) -> Sequence[Item]:
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
        return [self._item(frames) for frames in messages]

    async def _wait(self) -> None:
        await wait_for(self._socket, zmq.POLLIN)

    def _item(self, frames: Sequence[bytes]) -> Item:
        item = read_message(frames, has_topic=self._has_topic)
        if item.sender is not None:
            self._senders.take(item.sender, item.number)
        size = len(item.payload)
        if item.cause is None and size > self._most_bytes:
            cause = f"expected at most {self._most_bytes} bytes, found {size}"
            return item._replace(cause=cause)
        return item
