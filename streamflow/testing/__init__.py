"""Doubles and checks for those who test graphs or write connectors and operators.

`ListSource` and `ListSink` are real declarations that live in memory and fail on request; what they
saw is in their ``probe``. The ``check_`` functions hold a node of yours against the contracts of
`streamflow.nodes`:

    async def test_source() -> None:
        await check_source(lambda: MySource(path=path), values)

    def test_operator_goes_on_from_a_checkpoint() -> None:
        check_operator(lambda: MyOperator(inputs=["readings"]), values)
"""

from streamflow.testing.connectors import (
    check_cut_back_sink,
    check_live_source,
    check_rereading_source,
    check_sink,
    check_source,
    check_stalled_sink,
)
from streamflow.testing.doubles import (
    Gate,
    ListReader,
    ListSink,
    ListSource,
    ListWriter,
    SinkProbe,
    SourceProbe,
)
from streamflow.testing.operators import check_operator

__all__ = [
    "Gate",
    "ListReader",
    "ListSink",
    "ListSource",
    "ListWriter",
    "SinkProbe",
    "SourceProbe",
    "check_cut_back_sink",
    "check_live_source",
    "check_operator",
    "check_rereading_source",
    "check_sink",
    "check_source",
    "check_stalled_sink",
]
