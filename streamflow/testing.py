"""Doubles and checks for those who test graphs or write connectors.

`ListSource` and `ListSink` are real declarations that live in memory and fail on request; what they
saw is in their ``probe``. The ``check_`` functions hold a connector of yours against the contracts
of `streamflow.nodes`:

    async def test_source() -> None:
        await check_source(lambda: MySource(path=path), values)
"""

from streamflow.conformance import (
    check_live_source,
    check_sink,
    check_source,
    check_stalled_sink,
)
from streamflow.doubles import (
    Gate,
    ListReader,
    ListSink,
    ListSource,
    ListWriter,
    SinkProbe,
    SourceProbe,
)

__all__ = [
    "Gate",
    "ListReader",
    "ListSink",
    "ListSource",
    "ListWriter",
    "SinkProbe",
    "SourceProbe",
    "check_live_source",
    "check_sink",
    "check_source",
    "check_stalled_sink",
]
