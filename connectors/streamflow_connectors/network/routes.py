"""Where a record goes, where a field of the record itself says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from streamflow.nodes.declarations import Declaration
from streamflow.nodes.problems import kind
from streamflow.records import MISSING, Batch, column_items


class FromField(Declaration):
    """A name that each record brings along."""

    field: str = Field(min_length=1, description="The field of the record that holds it.")


def texts(batch: Batch, name: str, what: str) -> tuple[list[str], dict[int, str]]:
    """Return the text that each record has in a field, and the cause for each that has none.

    Args:
        batch: The records.
        name: Of the field.
        what: What the text is for.
    """
    column, causes = _entries(batch, name, what, {str: "text"})
    empty = (index for index, text in enumerate(column) if text == "")
    return column, causes | dict.fromkeys(empty, _cause("text", name, what, "empty text"))


def keys(batch: Batch, name: str) -> tuple[list[str | bytes | int], dict[int, str]]:
    """Return the key that each record has in a field, and the cause for each that has none."""
    return _entries(batch, name, "the key", {str: "text", bytes: "bytes", int: "an integer"})


def _entries(
    batch: Batch, name: str, what: str, types: Mapping[type, str]
) -> tuple[list[Any], dict[int, str]]:
    column = list(column_items(batch.column(name)))
    expected = " or ".join(types.values())
    return column, {
        index: _cause(expected, name, what, "no such field" if entry is MISSING else kind(entry))
        for index, entry in enumerate(column)
        if type(entry) not in types
    }


def _cause(expected: str, name: str, what: str, found: str) -> str:
    return f"expected {expected} in the field {name}, which holds {what}, found {found}"
