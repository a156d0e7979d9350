"""Expressions over the fields of a record, in a small part of Python's notation.

    price > 1.5 * average and region in ["north", "south"]
    round(demand / 1000, 2) if demand else None
    field("net price", 0) - positions[0]["price"]

There are numbers, text, true and false (``True``, ``False``), nothing (``None``) and lists; names
of fields; arithmetic, comparisons, ``and``, ``or``, ``not``, ``in``, ``if`` and ``else``; elements
and slices of what a field holds; and the functions of `FUNCTIONS`. There are no attributes, no
assignments, no loops, and nothing of Python's that could read a file or import a module.

An expression is parsed and checked when the graph is read, so that what it may do is known before
there is a record. It is never run as Python: simpleeval walks the checked tree, see
`streamflow.operators.evaluation`; what is not in `ALLOWED` never gets there.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator

from streamflow.errors import suggestion

LONGEST = 2000
"""Characters of an expression."""

DEEPEST = 100
"""Levels of its syntax tree."""

MOST_DIGITS = 300
"""Digits that rounding may ask for."""

ALLOWED: Final[frozenset[type[ast.AST]]] = frozenset(
    (
        *(ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Subscript, ast.Slice),
        *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd),
        *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
        *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
        *(ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.IfExp, ast.Call),
    )
)
"""What may stand in a syntax tree."""

CURES: Final[Mapping[type[ast.AST], str]] = {
    ast.Attribute: 'write position["x"] for what a field holds',
    ast.keyword: "give arguments without their names",
    ast.JoinedStr: "add texts: a + str(b)",
    ast.BitAnd: "write and",
    ast.BitOr: "write or",
    ast.Invert: "write not",
}
"""What to do instead, by what is not allowed."""


def _round(number: Any, digits: int = 0) -> Any:
    """Round to so many digits; an integer if there are none."""
    if abs(digits) > MOST_DIGITS:
        message = f"expected at most {MOST_DIGITS} digits, found {digits}"
        raise ValueError(message)
    return round(number, digits or None)


FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "abs": abs,
    "bool": bool,
    "ceil": math.ceil,
    "cos": math.cos,
    "ends_with": str.endswith,
    "exp": math.exp,
    "float": float,
    "floor": math.floor,
    "int": int,
    "is_finite": math.isfinite,
    "len": len,
    "log": math.log,
    "lower": str.lower,
    "max": max,
    "min": min,
    "round": _round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "starts_with": str.startswith,
    "str": str,
    "sum": lambda numbers: sum(numbers),
    "upper": str.upper,
}
"""What an expression may call, with plain arguments."""

ABOUT_THE_RECORD: Final[Mapping[str, range]] = {
    "field": range(1, 3),
    "has": range(1, 2),
    "key": range(1),
    "timestamp_ms": range(1),
    "value": range(1),
}
"""What it may also call, with so many arguments: ``field(name)`` and ``field(name, default)``,
``has(name)``, and without arguments the key, time and whole value of the record."""


def check(text: str) -> str:
    """Return an expression as it is.

    Raises:
        ValueError: It is none, or asks for what expressions cannot do.
    """
    parse(text)
    return text


ExpressionField: TypeAlias = Annotated[str, AfterValidator(check)]
"""A field that holds an expression."""


def parse(text: str) -> ast.expr:
    """Return the syntax tree of an expression.

    Raises:
        ValueError: It is none, or asks for what expressions cannot do.
    """
    if len(text) > LONGEST:
        message = f"expected an expression of at most {LONGEST:,} characters, found {len(text):,}"
        raise ValueError(message)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, Warning, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", error)
        if re.search(r"[^=!<>:]=[^=]", text):
            reason = "write == to compare"
        message = f"expected an expression, found {text!r}; {reason}"
        raise ValueError(message) from None
    for node, depth in _with_depths(tree):
        if depth > DEEPEST:
            message = f"expected at most {DEEPEST} levels, found more; write it in two steps"
            raise ValueError(message)
        _check_node(node)
    return tree


def _with_depths(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    todo = [(tree, 1)]
    while todo:
        node, depth = todo.pop()
        yield node, depth
        todo += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def _check_node(node: ast.AST) -> None:
    """Raise what is wrong with a single node of a syntax tree."""
    if type(node) not in ALLOWED:
        written = f"{ast.unparse(node)!r}" if isinstance(node, ast.expr) else type(node).__name__
        cure = CURES.get(type(node), "expressions cannot do that; use a function of your own")
        message = f"expected what expressions can do, found {written}; {cure}"
        raise ValueError(message)
    if isinstance(node, ast.Constant) and not isinstance(node.value, str | int | float | None):
        message = f"expected numbers and text, found {ast.unparse(node)}; write one of them"
        raise ValueError(message)
    if isinstance(node, ast.Call):
        _check_call(node)
    if isinstance(node, ast.Compare):
        _check_identity(node)


def _check_call(node: ast.Call) -> None:
    known = [*FUNCTIONS, *ABOUT_THE_RECORD]
    name = ast.unparse(node.func)
    if not isinstance(node.func, ast.Name) or name not in known:
        message = f"expected a function that there is, found {name}; {suggestion(name, known)}"
        raise ValueError(message)
    counts = ABOUT_THE_RECORD.get(name)
    if counts is not None and len(node.args) not in counts:
        several = " or ".join(map(str, counts))
        message = f"expected {name} with {several} arguments, found {ast.unparse(node)}"
        raise ValueError(message)


def _check_identity(node: ast.Compare) -> None:
    for compared, other in zip(node.ops, node.comparators, strict=True):
        is_one = isinstance(other, ast.Constant) and isinstance(other.value, bool | None)
        if isinstance(compared, ast.Is | ast.IsNot) and not is_one:
            message = f"expected None, True or False after is, found {ast.unparse(node)}; write =="
            raise ValueError(message)
