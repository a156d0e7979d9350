"""Fields made of other fields."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from streamflow.contracts import Context, Processed
from streamflow.nodes.declarations import Operator
from streamflow.operators.evaluation import Evaluate, Evaluation, Told, cause_of, told
from streamflow.operators.expressions import ExpressionField
from streamflow.operators.step import Step, with_new_values, without_fields
from streamflow.records import Batch, split_rejected


class Derive(Operator):
    """Adds fields, each the value of an expression; one that is there already is replaced.

    Expressions are evaluated in the order given, and know the fields of those before them. A record
    is rejected if one of them raises, or if it has no fields.
    """

    blocking: ClassVar[bool] = True

    type: Literal["derive"] = "derive"
    fields: dict[str, ExpressionField] = Field(
        description="Expressions by the name of the field that each makes."
    )

    @field_validator("fields")
    @classmethod
    def _check_fields(cls, fields: dict[str, str]) -> dict[str, str]:
        if not fields:
            message = "expected names and expressions, found none; write {name: expression}"
            raise ValueError(message)
        return fields

    def open(self, context: Context) -> AbstractContextManager[DeriveStep]:
        """Give the processor."""
        named = {name: Evaluation(text) for name, text in self.fields.items()}
        return nullcontext(DeriveStep(named))


class DeriveStep(Step):
    """An open `Derive`."""

    def __init__(self, fields: Mapping[str, Evaluate]) -> None:
        self._fields = fields

    def process(self, batch: Batch) -> Processed:
        """Return the records with more fields."""
        values: list[Any] = []
        causes: dict[int, str] = {}
        for index, record in enumerate(told(batch)):
            made, cause = self._made(record)
            if cause:
                causes[index] = cause
            else:
                values.append(made)
        good, rejected = split_rejected(batch, causes)
        return Processed(with_new_values(good, values) if values else None, rejected)

    def _made(self, record: Told) -> tuple[dict[str, Any], str]:
        """Return the fields of a record, old and new, or why there are none."""
        value, key, timestamp_ms = record
        if not isinstance(value, Mapping):
            return {}, without_fields(value)
        made = dict(value)
        for name, evaluate in self._fields.items():
            try:
                # An expression may return what it was given, so that is never added to.
                made = {**made, name: evaluate((made, key, timestamp_ms))}
            except Exception as error:  # fields may be anything, so operators may raise anything
                return {}, f"{name}: {cause_of(error)}"
        return made, ""
