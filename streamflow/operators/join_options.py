"""The options of a join: which there are, and what they ask of each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from streamflow.errors import GraphError, Problem
from streamflow.nodes.units import DurationField, SpanField
from streamflow.operators.fields import FieldNames
from streamflow.operators.keys import KeyedOperator


class JoinOptions(KeyedOperator):
    """Options of a `streamflow.operators.joins.Join`."""

    keeps_scalars: ClassVar[bool] = True
    keeps_order: ClassVar[bool] = False
    needs_time: ClassVar[bool] = True
    tells_senders: ClassVar[bool] = True

    type: Literal["join"] = "join"
    match: Literal["last", "all"] = Field(
        "last",
        description="Which records of the second input: the last one before, or all within a time.",
    )
    within: SpanField | None = Field(
        None,
        description="How far apart two records may be; with match: last it may be left out for "
        "any time.",
    )
    fields: FieldNames | None = Field(
        None, description="Names of the fields to take of the second input; without it all."
    )
    prefix: str = Field("", description="What to put before their names.")
    unmatched: Literal["keep", "drop"] = Field(
        "keep",
        description="What becomes of a record of the first input that meets none: it goes on, with "
        "none in the place of each of fields, or is left out.",
    )
    delay: DurationField = Field(
        0.0, description="How much older than the newest record of its key a record may come."
    )
    max_records: int = Field(
        100, ge=1, description="Records to remember of each key and input, the newest."
    )

    @model_validator(mode="after")
    def _check_join(self) -> JoinOptions:
        if problems := list(self._join_problems()):
            raise GraphError(problems)
        return self

    def _join_problems(self) -> Iterator[Problem]:
        if len(self.inputs) != 2:
            message = f"expected two inputs, found {len(self.inputs)}; join others one by one"
            yield Problem(("inputs",), message)
        if self.match == "all" and self.within is None:
            message = "expected a time beside match: all, found none; write within: 10s"
            yield Problem(("within",), message)
        if self.ttl is not None and self.ttl < self.delay:
            message = f"expected at least delay, {self.delay:g} seconds, found {self.ttl:g}"
            yield Problem(("ttl",), f"{message}; choose a larger one")

    @property
    def holds(self) -> bool:
        """Whether records wait: for those of the other input."""
        return True
