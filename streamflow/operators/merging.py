"""Several streams as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from streamflow.contracts import Context, Processed
from streamflow.nodes.declarations import Operator
from streamflow.operators.step import Step, without_fields
from streamflow.records import Batch, estimate_bytes, split_rejected


class Merge(Operator):
    """Brings several inputs together into one stream, in the order that ``merge`` says.

    With ``merge: arrival`` records come as they arrive; those of one input stay in their order.
    With ``merge: round_robin`` one record of each input comes in turn, waiting for every input,
    which is the same in every run. Where ``origin`` is set, a record without fields is rejected.
    """

    keeps_scalars: ClassVar[bool] = True
    tells_senders: ClassVar[bool] = True

    type: Literal["merge"] = "merge"
    origin: str | None = Field(
        None,
        min_length=1,
        description="Name of a field to add, or to replace, that holds the name of the input "
        "which a record came by.",
    )

    def open(self, context: Context) -> AbstractContextManager[MergeStep]:
        """Give the processor."""
        return nullcontext(MergeStep(self.origin))


class MergeStep(Step):
    """An open `Merge`."""

    def __init__(self, origin: str | None) -> None:
        self._origin = origin

    def process(self, batch: Batch) -> Processed:
        """Return the records, as they are or with the name of their input."""
        if self._origin is None:
            return Processed(batch)
        causes: dict[int, str] = {}
        if not isinstance(batch.values, dict):
            causes = {
                index: without_fields(value)
                for index, value in enumerate(batch.values)
                if not isinstance(value, Mapping)
            }
        good, rejected = split_rejected(batch, causes)
        if not len(good):
            return Processed(rejected=rejected)
        senders = good.senders or [""] * len(good)
        size_bytes = good.size_bytes + sum(map(estimate_bytes, senders))
        named = replace(good, values=self._named(good, senders), size_bytes=size_bytes)
        return Processed(named, rejected)

    def _named(self, batch: Batch, senders: Sequence[str]) -> Any:
        assert self._origin is not None
        if isinstance(batch.values, dict):
            return {**batch.values, self._origin: list(senders)}
        rows = zip(batch.values, senders, strict=True)
        return [{**value, self._origin: sender} for value, sender in rows]
