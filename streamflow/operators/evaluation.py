"""What expressions give for records.

simpleeval walks the syntax tree, which `streamflow.operators.expressions` has checked, for each
record. What one record costs is bounded: text does not multiply, and powers are taken of floats.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes  # type: ignore[import-untyped]

from streamflow.operators.expressions import ABOUT_THE_RECORD, FUNCTIONS, parse
from streamflow.records import MISSING, Batch

T = TypeVar("T")

Told: TypeAlias = tuple[Any, Any, "int | None"]
"""What expressions know of a record: value, key and time."""

Evaluate: TypeAlias = Callable[[Told], Any]

LONGEST_TEXT = 100_000
"""Characters, or entries of a list, that adding may make."""


class MissingFieldError(LookupError):
    """A record lacks a field that an expression names."""


def evaluation(text: str) -> Evaluate:
    """Return the function of a record that an expression means, for one thread at a time.

    It raises `MissingFieldError` where the record lacks a field, and any other exception where its
    fields are not what the expression takes them for.

    Raises:
        ValueError: The text is no expression, or asks for what expressions cannot do.
    """
    return _Evaluation(text)


def evaluate_each(
    evaluate: Evaluate, batch: Batch, convert: Callable[[Any], T]
) -> tuple[dict[int, T], dict[int, str]]:
    """Return what an expression gives for the records, or why it raised, by the index."""
    results: dict[int, T] = {}
    causes: dict[int, str] = {}
    for index, record in enumerate(told(batch)):
        try:
            results[index] = convert(evaluate(record))
        except Exception as error:  # fields may be anything, so operators may raise anything
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


class _Evaluation:
    """An expression, evaluated for one record after another."""

    def __init__(self, text: str) -> None:
        self._text, self._tree = text, parse(text)
        self._names = _Names()
        asking = {name: getattr(self._names, name) for name in ABOUT_THE_RECORD}
        self._evaluator = EvalWithCompoundTypes(OPERATORS, {**FUNCTIONS, **asking}, self._names)

    def __call__(self, record: Told) -> Any:
        self._names.record = record
        return self._evaluator.eval(self._text, self._tree)


class _Names:
    """The record at hand as expressions see it: names lead to its fields."""

    def __init__(self) -> None:
        self.record: Told = (None, None, None)

    def __getitem__(self, name: str) -> Any:
        return self.field(name)

    def field(self, name: str, default: Any = MISSING) -> Any:
        """Return a field, or the default if there is one."""
        value = self.record[0]
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
        return isinstance(self.record[0], Mapping) and name in self.record[0]

    def key(self) -> Any:
        """Return the key."""
        return self.record[1]

    def timestamp_ms(self) -> int | None:
        """Return the time."""
        return self.record[2]

    def value(self) -> Any:
        """Return the whole value."""
        return self.record[0]


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
