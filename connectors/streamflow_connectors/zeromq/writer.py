"""An open ZeroMQ sink: send until there is no room, then wait for the socket."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.lowlevel
import zmq

from streamflow.contracts import Context
from streamflow.records import Batch, Rejected, split_rejected
from streamflow_connectors.network.writing import SendingWriter
from streamflow_connectors.zeromq.frames import header_packer
from streamflow_connectors.zeromq.options import ZeroMqSinkOptions
from streamflow_connectors.zeromq.sockets import BURST, opened_socket, wait_for

ID_BYTES: Final = 8
LONG: Final = 1.0  # seconds of waiting that are worth telling

_LAST: Final = int(zmq.NOBLOCK)  # plain numbers, since joining flags takes as long as sending
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


@asynccontextmanager
async def open_writer(sink: ZeroMqSinkOptions, context: Context) -> AsyncIterator[ZeroMqWriter]:
    """Listen or connect; close when the block is left, once peers have taken what is on its way.

    Raises:
        ConnectorError: An endpoint is taken or cannot be used.
    """
    options: dict[int, Any] = {zmq.SNDHWM: sink.high_water_mark}
    if sink.socket == "push":
        options[zmq.IMMEDIATE] = 1  # nothing is lined up for a peer that is away
    kind = zmq.PUB if sink.socket == "pub" else zmq.PUSH
    async with opened_socket(sink, context, kind, options, linger=sink.linger) as socket:
        yield ZeroMqWriter(socket, sink, context)


class ZeroMqWriter(SendingWriter):
    """Sends on one socket; see `contracts.Writer`. Delivered means that ZeroMQ has it."""

    def __init__(
        self, socket: zmq.Socket[bytes], sink: ZeroMqSinkOptions, context: Context
    ) -> None:
        super().__init__(context)
        self._socket = socket
        self._sink = sink
        self._codec = sink.format.codec()
        self._topic = [sink.topic.encode()] if sink.socket == "pub" else []
        self._id = os.urandom(ID_BYTES) if sink.numbered else None
        self._pack = header_packer()
        self._waiting_since: float | None = None

    async def write(self, batch: Batch) -> Rejected | None:
        """Send a batch, waiting while there is no room; return what cannot be sent."""
        await anyio.lowlevel.checkpoint()
        encoded = self._codec.encode(batch)
        causes = dict(encoded.causes)
        good, _ = split_rejected(batch, causes)
        places = [index for index in range(len(batch)) if index not in causes]
        empty: Sequence[Any] = [None] * len(good)
        for place, payload, *described in zip(
            places,
            encoded.payloads,
            good.keys or empty,
            good.timestamps_ms or empty,
            good.headers or empty,
            strict=True,
        ):
            try:
                frames = self._frames(payload, *described)
            except ValueError as error:
                causes[place] = str(error)
                continue
            while not self._send(frames):
                await self._wait()
            self._num_sent += 1
            if self._num_sent % BURST == 0:
                await anyio.lowlevel.checkpoint()
        return split_rejected(batch, causes)[1]

    def retrying(self) -> str | None:
        """Return since when nobody takes records, if that is long."""
        if self._waiting_since is None:
            return None
        seconds = time.monotonic() - self._waiting_since
        return f"waiting for {seconds:.0f} s: no receiver has room" if seconds > LONG else None

    def _frames(self, payload: bytes, key: Any, timestamp_ms: Any, headers: Any) -> list[bytes]:
        """Return a record's message.

        Raises:
            ValueError: It is too large, or its key, time or headers cannot be packed.
        """
        if len(payload) > self._sink.max_bytes:
            message = f"expected at most {self._sink.max_bytes} bytes, found {len(payload)}"
            message += "; see max_bytes"
            raise ValueError(message)
        header = self._pack(self._id, self._num_sent, key, timestamp_ms, headers or ())
        return [*self._topic, header, payload]

    def _send(self, frames: Sequence[bytes]) -> bool:
        """Send a message whole, if there is room."""
        try:
            for frame in frames[:-1]:
                self._socket.send(frame, _MORE)
            self._socket.send(frames[-1], _LAST)
        except zmq.Again:  # ZeroMQ takes back the frames before
            return False
        return True

    async def _wait(self) -> None:
        """Wait until a peer has room."""
        self._waiting_since = time.monotonic()
        try:
            await wait_for(self._socket, zmq.POLLOUT)
        finally:
            self._waiting_since = None
