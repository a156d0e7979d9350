"""Expressions mean what Python means, and can do no more than they should."""

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.operators.evaluation import Evaluation, MissingFieldError, cause_of
from streamflow.operators.expressions import FUNCTIONS, check

FIELDS = {"a": 3, "b": -1.5, "c": "text", "d": [1, 2, 3], "e": None, "f": {"x": 7}, "g": True}
RECORD = (FIELDS, "key 1", 1_700_000_000_000)


def value_of(text: str, record: Any = RECORD) -> Any:
    return Evaluation(text)(record)


atoms = st.sampled_from(
    ["a", "b", "c", "d", "e", "f", "g", "0", "1", "2.5", "'t'", "None", "True", "[1, 'text', a]"]
)


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(
        ["+", "-", "/", "//", "<", "<=", ">", ">=", "==", "!=", "in", "not in", "and", "or"]
    )
    return st.one_of(
        st.builds("({} {} {})".format, inner, operators, inner),
        st.builds("({} {} {} {} {})".format, inner, operators, inner, operators, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("(not {})".format, inner),
        st.builds("({} is None)".format, inner),
        st.builds("({} is not True)".format, inner),
        st.builds("(-{})".format, inner),
        st.builds("(+{})".format, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[{}:]".format, inner, inner),
        st.builds("{}[:{}:-1]".format, inner, inner),
        st.builds("({}, {})".format, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("[{}, {}, {}]".format, atoms, atoms, atoms),
        st.builds("abs({})".format, inner),
        st.builds("max({}, {})".format, inner, inner),
        st.builds("len({})".format, inner),
        st.builds("str({})".format, inner),
    )


expressions = st.recursive(atoms, combined, max_leaves=10)


def outcome(function: Any, *arguments: Any) -> str:
    """Return what a function gives, or the type of what it raises, as text."""
    try:
        return repr(function(*arguments))
    except Exception as error:
        return type(error).__name__


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@settings(deadline=None, max_examples=400)
@given(expressions)
def test_expressions_mean_what_python_means(text: str) -> None:
    names = {"abs": abs, "max": max, "len": len, "str": str, **FIELDS}
    evaluate = Evaluation(text)
    expected = outcome(lambda: eval(text, {"__builtins__": {}}, names))
    assert outcome(evaluate, RECORD) == expected
    assert outcome(evaluate, RECORD) == expected  # nothing is left over from a record before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a * 2 + 0.5", 6.5),
        ("a % 2", 1),
        ("2 ** a", 8.0),
        ("b if e is None else e", -1.5),
        ("f['x'] + d[-1] + d[1:][0]", 12),
        ("1 < a < 4 and 1 < a > 2", True),
        ("1 < a < 2", False),
        ("a in [1, 3] and c not in ['x']", True),
        ("field('a') + field('none', 1)", 4),
        ("has('a') and not has('none')", True),
        ("key() + ' ' + str(timestamp_ms())", "key 1 1700000000000"),
        ("value()['a']", 3),
        ("round(2.345, 2)", 2.35),
        ("round(2.6)", 3),
        ("sqrt(a + 1) + floor(2.5) + ceil(2.5)", 7.0),
        ("upper(c) + lower('ABC')", "TEXTabc"),
        ("starts_with(c, 'te') and ends_with(c, 'xt')", True),
        ("min(a, b) + sum(d)", 4.5),
        ("int('12') + float('0.5') + bool(c)", 13.5),
        ("exp(0) + log(1) + sin(0) + cos(0)", 2.0),
        ("is_finite(b)", True),
        ("len(c + 'er')", 6),
        ("(\n a +\n 1)", 4),
    ],
)
def test_what_expressions_give(text: str, expected: Any) -> None:
    found = value_of(text)
    assert found == expected
    assert type(found) is type(expected)


def test_every_function_is_named_above() -> None:
    params = test_what_expressions_give.pytestmark[0].args[1]
    named = {*re.findall(r"(\w+)\(", " ".join(text for text, _ in params)), "abs", "max", "str"}
    assert named >= FUNCTIONS.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an expression, found ''; invalid syntax"),
        ("a +", "expected an expression, found 'a \\+'; invalid syntax"),
        ("a = 1", "expected an expression, found 'a = 1'; write == to compare"),
        ("a; b", "invalid syntax"),
        ("a.b", r"found 'a\.b'; write position\[\"x\"\] for what a field holds"),
        ("a & b", "found BitAnd; write and"),
        ("a | b", "found BitOr; write or"),
        ("~a", "found Invert; write not"),
        ("f'{a}'", r"add texts: a \+ str\(b\)"),
        ("round(a, digits=1)", "found keyword; give arguments without their names"),
        ("[n for n in d]", "expressions cannot do that; use a function of your own"),
        ("{'a': 1}", "expressions cannot do that"),
        ("lambda: 1", "expressions cannot do that"),
        ("(a := 1)", "expressions cannot do that"),
        ("min(*d)", "expressions cannot do that"),
        ("await a", "expressions cannot do that"),
        ("a << 900", "found LShift"),
        ("a @ b", "found MatMult"),
        ("b'bytes'", "expected numbers and text, found b'bytes'"),
        ("1j", "expected numbers and text, found 1j"),
        ("...", "expected numbers and text, found \\.\\.\\."),
        ("abss(a)", "expected a function that there is, found abss; did you mean abs"),
        ("open('x')", "expected a function that there is, found open"),
        ("__import__('os')", "expected a function that there is, found __import__"),
        ("abs(a)(b)", "expected a function that there is, found abs\\(a\\)"),
        ("key(1)", r"expected key with 0 arguments, found key\(1\)"),
        ("field()", r"expected field with 1 or 2 arguments, found field\(\)"),
        ("a is b", "expected None, True or False after is, found a is b; write =="),
        ("a is not 1 == 1", "expected None, True or False after is"),
        ("9" * 2001, "expected an expression of at most 2,000 characters, found 2,001"),
        ("-" * 150 + "a", "expected at most 100 levels, found more"),
        ("(" * 500 + "a" + ")" * 500, "expected an expression"),
    ],
)
def test_what_expressions_cannot_do(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("none + 1", "expected the field none, found none"),
        ("field('none')", "expected the field none, found none"),
        ("a + c", "TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
        ("c * 1000000000", "TypeError: expected a number, found a str"),
        ("1000000000 * d", "TypeError: expected a number, found a list"),
        ("c % d", "TypeError: expected a number, found a str"),
        ("a / 0", "ZeroDivisionError: division by zero"),
        ("10 ** 400", "OverflowError: math range error"),
        ("round(b, 10000)", "ValueError: expected at most 300 digits, found 10000"),
        ("sqrt(b)", "ValueError: "),
    ],
)
def test_causes(text: str, cause: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever the operator raises
        value_of(text)
    assert cause_of(caught.value).startswith(cause)


def test_texts_do_not_grow_without_end() -> None:
    record = ({"t": "x" * 60_000}, None, None)
    with pytest.raises(ValueError, match="expected at most 100,000 characters or entries"):
        value_of("t + t", record)
    assert len(value_of("t + 'y'", record)) == 60_001


def test_values_without_fields_can_be_asked_for() -> None:
    assert value_of("value() * 2", (21, None, None)) == 42
    assert value_of("field('a', 5)", (21, None, None)) == 5
    assert value_of("has('a')", (21, None, None)) is False
    for text in ("a", "field('a')"):
        with pytest.raises(MissingFieldError, match="found a int without fields"):
            value_of(text, (21, None, None))


def test_arrays_are_added_and_multiplied_by_element() -> None:
    found = value_of("2 * x + 1", ({"x": np.array([1.0, math.pi])}, None, None))
    np.testing.assert_array_equal(found, [3.0, 2 * math.pi + 1])


def test_a_list_belongs_to_its_record() -> None:
    evaluate = Evaluation("[1, 2]")
    evaluate(RECORD).append(3)
    assert evaluate(RECORD) == [1, 2]
