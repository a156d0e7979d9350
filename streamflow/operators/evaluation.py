"""What expressions give for records.

Each node of a checked syntax tree becomes a function of a record once, and the functions call each
other for every record: ``a + 1`` becomes ``lambda record: plus(left(record), right(record))``,
where ``left`` looks up a field and ``right`` returns 1.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from streamflow.operators.expressions import FUNCTIONS, parse
from streamflow.records import Batch

T = TypeVar("T")

Told: TypeAlias = tuple[Any, Any, "int | None"]
"""What expressions know of a record: value, key and time."""

Evaluate: TypeAlias = Callable[[Told], Any]

NOTHING: Final[Told] = (None, None, None)
"""What constants are told."""

NUMBERS: Final = frozenset({int, float})

LONGEST_TEXT = 100_000
"""Characters, or entries of a list, that adding may make."""


class MissingFieldError(LookupError):
    """A record lacks a field that an expression names."""


def evaluation(text: str) -> Evaluate:
    """Return the function of a record that an expression means.

    It raises `MissingFieldError` where the record lacks a field, and any other exception where its
    fields are not what the expression takes them for.

    Raises:
        ValueError: The text is no expression, or asks for what expressions cannot do.
    """
    return _built(parse(text))


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


def _built(node: ast.expr) -> Evaluate:
    build: Callable[[Any], Evaluate] = BUILDERS[type(node)]
    return build(node)


def _constant(node: ast.Constant) -> Evaluate:
    content = node.value
    return lambda record: content


def _name(node: ast.Name) -> Evaluate:
    name = node.id

    def look_up(record: Told) -> Any:
        try:
            return record[0][name]
        except (LookupError, TypeError):
            raise _missing(record, name) from None

    return look_up


def _missing(record: Told, name: str) -> MissingFieldError:
    has_fields = isinstance(record[0], Mapping)
    kind = "none" if has_fields else f"a {type(record[0]).__name__} without fields"
    return MissingFieldError(f"expected the field {name}, found {kind}")


def _list(node: ast.List) -> Evaluate:
    items = [*map(_built, node.elts)]
    if all(isinstance(item, ast.Constant) for item in node.elts):
        constants = [item(NOTHING) for item in items]
        return lambda record: constants.copy()
    return lambda record: [item(record) for item in items]


def _tuple(node: ast.Tuple) -> Evaluate:
    items = [*map(_built, node.elts)]
    return lambda record: tuple([item(record) for item in items])


def _subscript(node: ast.Subscript) -> Evaluate:
    content, index = _built(node.value), _built(node.slice)
    return lambda record: content(record)[index(record)]


def _slice(node: ast.Slice) -> Evaluate:
    ends = [_built(end) if end else None for end in (node.lower, node.upper, node.step)]
    return lambda record: slice(*(end(record) if end else None for end in ends))


def _bool_op(node: ast.BoolOp) -> Evaluate:
    *parts, last = map(_built, node.values)
    ends_at_truth = isinstance(node.op, ast.Or)

    def connect(record: Told) -> Any:
        for part in parts:
            if bool(found := part(record)) is ends_at_truth:
                return found
        return last(record)

    return connect


def _unary(node: ast.UnaryOp) -> Evaluate:
    operate, operand = UNARY[type(node.op)], _built(node.operand)
    return lambda record: operate(operand(record))


def _binary(node: ast.BinOp) -> Evaluate:
    operate, left, right = BINARY[type(node.op)], _built(node.left), _built(node.right)
    return lambda record: operate(left(record), right(record))


def _compare(node: ast.Compare) -> Evaluate:
    compares = [COMPARISONS[type(op)] for op in node.ops]
    first, *others = map(_built, (node.left, *node.comparators))
    if len(others) == 1:
        [compare], [other] = compares, others
        return lambda record: compare(first(record), other(record))
    return partial(_chained, first, [*zip(compares, others, strict=True)])


def _chained(first: Evaluate, others: Sequence[tuple[Any, Evaluate]], record: Told) -> Any:
    left, holds = first(record), True
    for compare, other in others:
        right = other(record)
        holds = compare(left, right)
        if not holds:
            break
        left = right
    return holds


def _if(node: ast.IfExp) -> Evaluate:
    test, body, otherwise = map(_built, (node.test, node.body, node.orelse))
    return lambda record: body(record) if test(record) else otherwise(record)


def _call(node: ast.Call) -> Evaluate:
    assert isinstance(node.func, ast.Name)
    arguments = [*map(_built, node.args)]
    if about := ABOUT.get(node.func.id):
        return partial(about, arguments)
    function = FUNCTIONS[node.func.id]
    if len(arguments) == 1:
        [argument] = arguments
        return lambda record: function(argument(record))
    return lambda record: function(*[argument(record) for argument in arguments])


def _field(arguments: Sequence[Evaluate], record: Told) -> Any:
    name, *default = [argument(record) for argument in arguments]
    if isinstance(record[0], Mapping) and name in record[0]:
        return record[0][name]
    if default:
        return default[0]
    raise _missing(record, name)


def _has(arguments: Sequence[Evaluate], record: Told) -> bool:
    [name] = arguments
    return isinstance(record[0], Mapping) and name(record) in record[0]


def _times(left: Any, right: Any) -> Any:
    if type(left) in NUMBERS and type(right) in NUMBERS:
        return left * right
    return _plain(left) * _plain(right)


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
    if (
        type(left) not in NUMBERS
        and isinstance(left, str | bytes | list | tuple)
        and len(left) + len(right) > LONGEST_TEXT
    ):
        message = f"expected at most {LONGEST_TEXT:,} characters or entries, found more"
        raise ValueError(message)
    return left + right


ABOUT: Final[Mapping[str, Callable[[Sequence[Evaluate], Told], Any]]] = {
    "field": _field,
    "has": _has,
    "key": lambda _, record: record[1],
    "timestamp_ms": lambda _, record: record[2],
    "value": lambda _, record: record[0],
}

UNARY: Final[Mapping[type[ast.unaryop], Callable[[Any], Any]]] = {
    ast.Not: operator.not_,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}

BINARY: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: _plus,
    ast.Sub: operator.sub,
    ast.Mult: _times,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: lambda left, right: _plain(left) % _plain(right),
    ast.Pow: lambda left, right: math.pow(_plain(left), _plain(right)),
}

COMPARISONS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda entry, several: entry in several,
    ast.NotIn: lambda entry, several: entry not in several,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}

BUILDERS: Final[Mapping[type[ast.expr], Callable[[Any], Evaluate]]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.List: _list,
    ast.Tuple: _tuple,
    ast.Subscript: _subscript,
    ast.Slice: _slice,
    ast.BoolOp: _bool_op,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.IfExp: _if,
    ast.Call: _call,
}
