"""What expressions give for records.

simpleeval walks the syntax tree, which `streamflow.operators.expressions` has checked, for each
record. What one record costs is bounded: text does not multiply, and powers are taken of floats.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes  # type: ignore[import-untyped]

from streamflow.operators.expressions import ABOUT_THE_RECORD, FUNCTIONS, parse
from streamflow.records import MISSING, Batch

Item = TypeVar("Item")
T = TypeVar("T")

Told: TypeAlias = tuple[Any, Any, "int | None"]
"""What expressions know of a record: value, key and time."""

Evaluate: TypeAlias = Callable[[Told], Any]

LONGEST_TEXT = 100_000
"""Characters, or entries of a list, that adding may make."""


class MissingFieldError(LookupError):
    """A record lacks a field that an expression names."""


def each(
    function: Callable[[Item], T], items: Iterable[Item]
) -> tuple[dict[int, T], dict[int, str]]:
    """Return what a function gives for each of some items, or why it raised, by the index."""
    results: dict[int, T] = {}
    causes: dict[int, str] = {}
    for index, item in enumerate(items):
        try:
            results[index] = function(item)
        except Exception as error:  # items may be anything, so a function may raise anything
            causes[index] = cause_of(error)
    return results, causes


def told(batch: Batch) -> Iterator[Told]:
    """Yield what expressions know of each record."""
    nothing = [None] * len(batch)
    return zip(batch.rows(), batch.keys or nothing, batch.timestamps_ms or nothing, strict=True)


def cause_of(error: Exception) -> str:
    """Return why a record is rejected for which an expression raised."""
    if isinstance(error, MissingFieldError):
        return str(error)
    return f"{type(error).__name__}: {error}"


class Evaluation:
    """The function of a record that an expression means, for one thread at a time.

    It raises `MissingFieldError` where the record lacks a field, and any other exception where its
    fields are not what the expression takes them for. To the expression it is the record at hand:
    names lead to its fields.

    Raises:
        ValueError: The text is no expression, or asks for what expressions cannot do.
    """

    def __init__(self, text: str) -> None:
        self._text, self._tree = text, parse(text)
        self._record: Told = (None, None, None)
        asking = {name: getattr(self, name) for name in ABOUT_THE_RECORD}
        self._evaluator = EvalWithCompoundTypes(OPERATORS, {**FUNCTIONS, **asking}, self)

    def __call__(self, record: Told) -> Any:
        """Return what the expression gives for a record."""
        self._record = record
        return self._evaluator.eval(self._text, self._tree)

    def __getitem__(self, name: str) -> Any:
        return self.field(name)

    def field(self, name: str, default: Any = MISSING) -> Any:
        """Return a field, or the default if there is one.

        Raises:
            MissingFieldError: There is neither.
        """
        value = self._record[0]
        found = value.get(name, default) if isinstance(value, Mapping) else default
        if found is MISSING:
            kind = "none"
            if not isinstance(value, Mapping):
                kind = f"a {type(value).__name__} without fields"
            message = f"expected the field {name}, found {kind}"
            raise MissingFieldError(message)
        return found

    def has(self, name: str) -> bool:
        """Return whether the record has a field."""
        return isinstance(self._record[0], Mapping) and name in self._record[0]

    def key(self) -> Any:
        """Return the key."""
        return self._record[1]

    def timestamp_ms(self) -> int | None:
        """Return the time."""
        return self._record[2]

    def value(self) -> Any:
        """Return the whole value."""
        return self._record[0]


def _plain(value: Any) -> Any:
    """Return what arithmetic is done with.

    Raises:
        TypeError: It is text or a list, which would grow.
    """
    if isinstance(value, str | bytes | list | tuple):
        message = f"expected a number, found a {type(value).__name__}"
        raise TypeError(message)
    return value


def _plus(left: Any, right: Any) -> Any:
    if isinstance(left, str | bytes | list | tuple) and len(left) + len(right) > LONGEST_TEXT:
        message = f"expected at most {LONGEST_TEXT:,} characters or entries, found more"
        raise ValueError(message)
    return left + right


OPERATORS: Final = DEFAULT_OPERATORS | {
    ast.Add: _plus,
    ast.Mult: lambda left, right: _plain(left) * _plain(right),
    ast.Mod: lambda left, right: _plain(left) % _plain(right),
    ast.Pow: lambda left, right: math.pow(_plain(left), _plain(right)),
}
