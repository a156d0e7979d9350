"""Doubles and checks for those who test graphs or write connectors and operators.

`ListSource` and `ListSink` are real declarations that live in memory and fail on request; what they
saw is in their ``probe``. The ``check_`` functions hold a node of yours against the contracts of
`streamflow.nodes`:

    async def test_source() -> None:
        await check_source(lambda: MySource(path=path), values)

    def test_operator_goes_on_from_a_checkpoint() -> None:
        check_operator(lambda: MyOperator(inputs=["readings"]), values)
"""

from streamflow.testing.connectors import check_cut_back_sink as check_cut_back_sink
from streamflow.testing.connectors import check_live_source as check_live_source
from streamflow.testing.connectors import check_rereading_source as check_rereading_source
from streamflow.testing.connectors import check_sink as check_sink
from streamflow.testing.connectors import check_source as check_source
from streamflow.testing.connectors import check_stalled_sink as check_stalled_sink
from streamflow.testing.doubles import Gate as Gate
from streamflow.testing.doubles import ListReader as ListReader
from streamflow.testing.doubles import ListSink as ListSink
from streamflow.testing.doubles import ListSource as ListSource
from streamflow.testing.doubles import ListWriter as ListWriter
from streamflow.testing.doubles import SinkProbe as SinkProbe
from streamflow.testing.doubles import SourceProbe as SourceProbe
from streamflow.testing.operators import check_operator as check_operator
