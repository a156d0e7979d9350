"""What an HTTP source declares: the page or the events, and how to ask for them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from streamflow.codecs.formats import FormatField, JsonFormat
from streamflow.nodes.units import SizeField
from streamflow_connectors.network.addresses import WebAddress

REQUIRES = {"httpx": "streamflow-online[http]", "stamina": "streamflow-online[http]"}


class HttpSourceOptions(WebAddress):
    """What to ask for, and how."""

    type: Literal["http"] = "http"
    requires: ClassVar[dict[str, str]] = REQUIRES
    incidental: ClassVar[frozenset[str]] = frozenset({"every", "end_after"})
    schemes: ClassVar[tuple[str, str]] = ("http", "https")

    mode: Literal["events", "poll"] = Field(
        description="events: server-sent events; poll: ask for the page again and again."
    )
    every: float = Field(
        10.0, gt=0, description="Seconds from one request to the next, with mode: poll."
    )
    body: Literal["record", "lines", "list"] = Field(
        "record",
        description="What a page is, with mode: poll: one record, a record in each line, or a JSON "
        "list of records.",
    )
    repeat: bool = Field(
        False, description="Whether a page that has not changed is read again, with mode: poll."
    )
    events: tuple[str, ...] = Field(
        (), description="Types of events to read, with mode: events; without any, all of them."
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    max_bytes: SizeField = Field(
        16 * 2**20, description="Bytes that an event or a page may have; a larger one is an error."
    )
    read_timeout: float = Field(
        60.0, gt=0, description="Seconds without a byte after which a connection counts as lost."
    )
    end_after: float | None = Field(
        None, gt=0, description="Seconds without a record after which the stream ends."
    )

    @field_validator("body", "repeat", "events")
    @classmethod
    def _check_mode(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        mode, needed = info.data.get("mode"), "events" if name == "events" else "poll"
        if value != cls.model_fields[name].default and mode not in (None, needed):
            message = f"expected it with mode: {needed}, found {mode}; remove one"
            raise ValueError(message)
        return value

    @field_validator("format")
    @classmethod
    def _check_list(cls, declared: object, info: ValidationInfo) -> object:
        if info.data.get("body") == "list" and not isinstance(declared, JsonFormat):
            message = "expected json with body: list, which is JSON itself; remove one"
            raise ValueError(message)
        return declared
