"""Records of two streams put together, as that stands in a graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from streamflow.contracts import Context
from streamflow.operators.join_options import JoinOptions
from streamflow.operators.join_step import AllStep, JoinStep, LastStep


class Join(JoinOptions):
    """Adds to the records of the first input fields of records of the second one with the same key.

    With ``match: last`` (as of) a record gets the fields of the newest record of the second input
    that is not newer than itself. With ``match: all`` it is given once with each record of the
    second input that is at most ``within`` older or newer.

    What is given has the key, time, headers and position of the record of the first input, and its
    fields; of the second one come those that it does not have itself. A record without fields, or
    of the second input without one that ``fields`` names, is rejected.

    With ``delay`` results do not depend on which of two inputs is ahead, as long as that is not
    by more: a record of the first input is held until one of its key comes whose time is ``delay``
    after its own (and ``within``, with ``match: all``), or with ``ttl`` any record that much later,
    or until the end of the stream. What comes later still is joined with what is left by then. The
    report counts records left out, and those that ``max_records`` had no room for.
    """

    def open(self, context: Context) -> AbstractContextManager[JoinStep]:
        """Give a processor that has seen nothing yet."""
        return nullcontext(LastStep(self) if self.match == "last" else AllStep(self))
