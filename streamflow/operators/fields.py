"""Operators on the fields of records, whole columns at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator

from streamflow.contracts import Context, Processed
from streamflow.nodes.declarations import Operator
from streamflow.operators.step import Step, absent, note_absent
from streamflow.records import Batch, split_rejected

if TYPE_CHECKING:
    from streamflow.operators.standardization import StandardizeStep


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        message = "expected each field once"
        raise ValueError(message)
    return names


FieldNames: TypeAlias = Annotated[
    tuple[str, ...], Field(min_length=1), AfterValidator(_check_distinct)
]


class Select(Operator):
    """Keeps only some fields, in the order given; a record that lacks one is rejected."""

    keeps_scalars: ClassVar[bool] = True

    type: Literal["select"] = "select"
    fields: FieldNames = Field(description="Names of the fields to keep.")

    def open(self, context: Context) -> AbstractContextManager[SelectStep]:
        """Give the processor."""
        return nullcontext(SelectStep(self.fields))


class Rename(Operator):
    """Gives fields other names; each keeps its place among the fields of the record.

    Names may be swapped. A record is rejected if it lacks one of the fields, or has another field
    of a new name.
    """

    keeps_scalars: ClassVar[bool] = True

    type: Literal["rename"] = "rename"
    fields: dict[str, str] = Field(description="The new names of fields by the old ones.")

    @field_validator("fields")
    @classmethod
    def _check_fields(cls, fields: dict[str, str]) -> dict[str, str]:
        if not fields:
            message = "expected old and new names, found none; write {old: new}"
            raise ValueError(message)
        if len(set(fields.values())) < len(fields):
            message = "expected each new name once"
            raise ValueError(message)
        return fields

    def open(self, context: Context) -> AbstractContextManager[RenameStep]:
        """Give the processor."""
        return nullcontext(RenameStep(self.fields))


class Standardize(Operator):
    """Replaces numbers by their distance from the running mean in running standard deviations.

    A value is scored with mean and standard deviation (population) of the values before it, then
    absorbed. It becomes 0.0 while these are all equal, so the first one always does. In a field of
    arrays each element has statistics of its own; the first array sets the shape. A record is
    rejected, and none of its values absorbed, if a field is missing, is no number (or array of
    numbers) of the same shape, or holds a value that is not finite or is larger than 1e150.
    Booleans are no numbers.
    """

    blocking: ClassVar[bool] = True  # arrays may be large
    keeps_scalars: ClassVar[bool] = True

    type: Literal["standardize"] = "standardize"
    fields: FieldNames = Field(description="Names of the fields to standardize in place.")

    def open(self, context: Context) -> AbstractContextManager[StandardizeStep]:
        """Give a processor that has seen nothing yet."""
        from streamflow.operators.standardization import StandardizeStep  # imports numpy

        return nullcontext(StandardizeStep(self.fields))


class SelectStep(Step):
    """An open `Select`."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self._fields = fields

    def process(self, batch: Batch) -> Processed:
        """Return the records, in columns, with only the fields to keep."""
        causes: dict[int, str] = {}
        for name in self._fields:
            column = batch.column(name)
            if isinstance(column, list):
                note_absent(batch, name, column, causes)
        good, rejected = split_rejected(batch, causes)
        if not len(good):
            return Processed(rejected=rejected)
        values = {name: good.column(name) for name in self._fields}
        return Processed(good.with_values(values), rejected)


class RenameStep(Step):
    """An open `Rename`."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields
        self._new_names = set(fields.values())

    def process(self, batch: Batch) -> Processed:
        """Return the records, laid out as they were, with new names."""
        good, rejected = split_rejected(batch, self._causes(batch))
        if not len(good):
            return Processed(rejected=rejected)
        if isinstance(good.values, dict):
            return Processed(good.with_values(self._renamed(good.values)), rejected)
        return Processed(good.with_values(list(map(self._renamed, good.values))), rejected)

    def _renamed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {self._fields.get(name, name): content for name, content in fields.items()}

    def _causes(self, batch: Batch) -> dict[int, str]:
        """Return why records are rejected, by index."""
        if isinstance(batch.values, dict):
            cause = self._cause(batch.values, batch, 0)
            return dict.fromkeys(range(len(batch)), cause) if cause else {}
        causes = ((i, self._cause(value, batch, i)) for i, value in enumerate(batch.values))
        return {index: cause for index, cause in causes if cause}

    def _cause(self, value: Any, batch: Batch, index: int) -> str:
        """Return why a record with the fields of ``value`` is rejected, if it is."""
        for name in self._fields:
            if not isinstance(value, Mapping) or name not in value:
                return absent(batch, index, name)
        for name in value:
            if name in self._new_names and name not in self._fields:
                return f"expected no field {name} beside the one that gets this name, found one"
        return ""
