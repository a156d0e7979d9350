"""Windows over time as they stand in a graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from streamflow.contracts import Context
from streamflow.operators.window_options import WindowOptions
from streamflow.operators.window_step import WindowStep


class Window(WindowOptions):
    """Turns the records of each key into one record for each window of time.

    With ``size`` windows follow each other (tumbling), with ``every``, too, they overlap (sliding);
    they begin at multiples of ``every`` since 1970 and do not contain their end. With ``gap`` a
    window is a session: records that follow each other within less than that.

    A window is given when a record of its key comes whose time is ``delay`` after its end, or,
    with ``ttl``, any record whose time is that much after its end, and at the end of the stream.
    It is a record with the fields of ``by``, ``start_ms`` and ``end_ms``, those of ``fields``, and
    with ``lateness`` how often the window was given before as ``revision``. Its time is the end of
    the window; it has the key and position of the last record in it.

    A record for which a field cannot be computed is rejected. Windows of keys beyond ``max_keys``
    are given at once, as they are. The report counts late records as left out.
    """

    def open(self, context: Context) -> AbstractContextManager[WindowStep]:
        """Give a processor without windows."""
        return nullcontext(WindowStep(self))
