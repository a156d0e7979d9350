"""What WebSocket sources and sinks declare."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from streamflow.codecs.formats import FormatField, JsonFormat
from streamflow.nodes.units import SizeField
from streamflow_connectors.network.addresses import WebAddress

REQUIRES = {"websockets": "streamflow-online[websocket]", "stamina": "streamflow-online[websocket]"}


class WebSocketOptions(WebAddress):
    """What sources and sinks share."""

    type: Literal["websocket"] = "websocket"
    requires: ClassVar[dict[str, str]] = REQUIRES
    schemes: ClassVar[tuple[str, str]] = ("ws", "wss")

    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    first: tuple[str, ...] = Field(
        (), description="Messages to begin each connection with, such as a subscription."
    )


class WebSocketSourceOptions(WebSocketOptions):
    """What to read, and when to end."""

    incidental: ClassVar[frozenset[str]] = frozenset({"end_after"})

    max_bytes: SizeField = Field(
        16 * 2**20, description="Bytes that a message may have; a larger one is an error."
    )
    end_after: float | None = Field(
        None, gt=0, description="Seconds without a record after which the stream ends."
    )


class WebSocketSinkOptions(WebSocketOptions):
    """How to close."""

    linger: float = Field(
        10.0,
        ge=0,
        description="Seconds that closing waits for the server to take what is on its way.",
    )
