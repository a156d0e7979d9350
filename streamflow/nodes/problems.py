"""What pydantic finds wrong with a declaration, said in this project's words.

Pydantic reports one error for every branch of a union and names the branch within the location.
Here an error keeps the location that the user wrote, the branches of a union become one message,
and branches that fitted less of what was written are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from streamflow.errors import GraphError, Problem, suggestion

Location: TypeAlias = tuple[str | int, ...]

WIDTH = 60
"""Longer texts are shortened in messages."""

INTEGER = ("an integer", "write a whole number such as 3")
NUMBER = ("a number", "write a number such as 0.5")
BOOLEAN = ("true or false", "write one of them without quotes")

TYPES: Mapping[str, tuple[str, str]] = {
    "int_type": INTEGER,
    "int_parsing": INTEGER,
    "int_parsing_size": INTEGER,
    "int_from_float": INTEGER,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": ("a finite number", "write a number such as 0.5"),
    "bool_type": BOOLEAN,
    "bool_parsing": BOOLEAN,
    "string_type": ("text", "put it in quotes"),
    "bytes_type": ("bytes", "write text"),
    "path_type": ("a path", "write it as text"),
    "list_type": ("a list", "write it in brackets: [a, b]"),
    "tuple_type": ("a list", "write it in brackets: [a, b]"),
    "set_type": ("a list", "write it in brackets: [a, b]"),
    "frozen_set_type": ("a list", "write it in brackets: [a, b]"),
    "dict_type": ("a mapping", "write it as key: value"),
    "mapping_type": ("a mapping", "write it as key: value"),
    "model_type": ("a {class_name}", "declare one"),
    "none_required": ("null", "leave it out"),
    "callable_type": ("a callable", "give a function"),
}
"""What was expected and what to do, by pydantic's name of the error."""

LIMITS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("a number greater than {gt:g}", "choose a larger one"),
    "greater_than_equal": ("a number of at least {ge:g}", "choose a larger one"),
    "less_than": ("a number less than {lt:g}", "choose a smaller one"),
    "less_than_equal": ("a number of at most {le:g}", "choose a smaller one"),
    "multiple_of": ("a multiple of {multiple_of:g}", "choose one"),
    "too_short": ("a list of {min_length} or more", "add what is missing"),
    "too_long": ("a list of {max_length} or fewer", "shorten it"),
    "string_too_short": ("text of {min_length} or more characters", "write more"),
    "string_too_long": ("text of {max_length} or fewer characters", "shorten it"),
    "string_pattern_mismatch": ("text that matches {pattern}", "write it so"),
}
"""Likewise for a value of the right type, with pydantic's context to fill in."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One of pydantic's errors, located in what the user wrote.

    Attributes:
        expected: What should stand there.
        cure: What to do about it.
        is_type: Whether the value's type is wrong, not only the value.
        is_branch: Whether it belongs to one branch of a union only.
    """

    location: Location
    expected: str
    found: str
    cure: str
    is_type: bool = False
    is_branch: bool = False
    is_about_key: bool = False


def problems_of(
    error: ValidationError, declared: type[BaseModel], options: Mapping[str, Any]
) -> list[Problem]:
    """Return what is wrong with ``options`` of the class ``declared``.

    Values of secret options are never part of a message.
    """
    problems: list[Problem] = []
    mistakes: list[Mistake] = []
    for details in error.errors(include_url=False):
        location, is_branch = _written_location(details, options)
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, GraphError):
            problems += [problem.within(*location) for problem in cause.problems]
        else:
            mistakes.append(_mistake(details, location, is_branch, declared))
    below = [problem.location for problem in problems]  # found by a declaration within
    mistakes = [
        mistake
        for mistake in mistakes
        if not (mistake.is_branch and any(_is_below(other, mistake) for other in below))
    ]
    return problems + [_problem(group, declared) for group in _groups(mistakes)]


def show(value: object) -> str:
    """Return a value as messages show it: scalars as they are, of all others only what they are."""
    if isinstance(value, str):
        return repr(value if len(value) <= WIDTH else f"{value[:WIDTH]}...")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return kind(value)


def kind(value: object) -> str:
    """Return what sort of value it is."""
    if value is None:
        return "nothing"
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return f"a {type(value).__name__} object"


_KINDS: Sequence[tuple[type | tuple[type, ...], str]] = (
    (bool, "true or false"),
    (str, "text"),
    (int, "an integer"),
    (float, "a number"),
    (Mapping, "a mapping"),
    ((list, tuple), "a list"),
)


def secret_options(declared: type[BaseModel]) -> frozenset[str]:
    """Return the names of the options that hold secrets."""
    return frozenset(
        name for name, field in declared.model_fields.items() if _is_secret(field.annotation)
    )


def _is_secret(annotation: object) -> bool:
    return annotation in (SecretStr, SecretBytes) or any(map(_is_secret, get_args(annotation)))


def _written_location(details: ErrorDetails, options: Mapping[str, Any]) -> tuple[Location, bool]:
    """Return the location without pydantic's names of branches, and whether one was the last."""
    location: list[str | int] = []
    value: Any = options
    is_branch = False
    for index, step in enumerate(details["loc"]):
        is_new = details["type"] == "missing" and index == len(details["loc"]) - 1
        if (isinstance(value, Mapping) and step in value) or (
            isinstance(value, list | tuple) and isinstance(step, int) and step < len(value)
        ):
            value = value[step]  # type: ignore[index]
        elif index > 0 and not is_new:
            is_branch = True
            continue
        location.append(step)
        is_branch = False
    return tuple(location), is_branch


def _mistake(
    details: ErrorDetails, location: Location, is_branch: bool, declared: type[BaseModel]
) -> Mistake:
    code, value, context = details["type"], details["input"], details.get("ctx", {})
    is_secret = bool(location) and location[0] in secret_options(declared)
    found = kind(value) if is_secret else show(value)
    if code == "missing":
        name = f"the option {location[-1]}"
        return Mistake(location, name, "none", f"add {_described(location, declared)}")
    if code == "extra_forbidden":
        return _unknown_option(location, declared)
    if code == "literal_error":
        expected, cure = _choice(value, context["expected"])
        return Mistake(location, expected, found, cure, is_type=True, is_branch=is_branch)
    if code == "value_error":
        return _own_words(str(context["error"]), location, found, is_branch)
    if code in LIMITS:
        expected, cure = LIMITS[code]
        if code.startswith("too_"):
            found = str(context["actual_length"])
        return Mistake(location, expected.format_map(context), found, cure, is_branch=is_branch)
    expected, cure = TYPES.get(code) or _pydantics_words(details["msg"])
    expected = expected.format_map(context)
    cure = _quoted(expected, value, cure) if not is_secret else cure
    return Mistake(location, expected, found, cure, is_type=True, is_branch=is_branch)


def _described(location: Location, declared: type[BaseModel]) -> str:
    """Return an option's name, with the first part of its description where there is one."""
    name = location[-1]
    field = declared.model_fields.get(str(name)) if len(location) == 1 else None
    if field is None or not field.description:
        return str(name)
    description = re.split("[.;] ", field.description.rstrip("."))[0]
    return f"{name} ({description[0].lower()}{description[1:]})"


def _unknown_option(location: Location, declared: type[BaseModel]) -> Mistake:
    name = str(location[-1])
    known = list(declared.model_fields) if len(location) == 1 else []
    field = declared.model_fields.get("type")
    owner = getattr(field, "default", None)
    expected = f"an option of {owner if isinstance(owner, str) else declared.__name__}"
    cure = suggestion(name, known) if known else "remove it"
    return Mistake(location, expected, name, cure, is_about_key=True)


def _choice(value: object, expected: str) -> tuple[str, str]:
    """Return the words for a value that is none of the literals in pydantic's list of them."""
    choices = re.findall(r"'((?:[^'\\]|\\.)*)'|(\b[\w.+-]+\b)", expected.replace(" or ", ", "))
    words = {"True": "true", "False": "false", "None": "null"}
    names = [quoted or words.get(bare, bare) for quoted, bare in choices]
    one = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if isinstance(value, str) and (cure := suggestion(value, names)).startswith("did you mean"):
        return one, cure
    return one, f"write {names[0]}" if len(names) == 1 else "choose one of them"


def _own_words(text: str, location: Location, found: str, is_branch: bool) -> Mistake:
    """Return the mistake of one of the project's own validators, or a stranger's."""
    text = " ".join(text.split())
    match = re.fullmatch(r"expected (.+?)(?:, found (.+?))?(?:; (.+))?", text)
    if match is None:
        name = location[-1] if location else "options"
        return Mistake(location, f"other {name}", found, text, is_branch=is_branch)
    expected, stated, cure = match.groups()
    return Mistake(
        location,
        expected,
        stated or found,
        cure or "write it so",
        is_type=True,
        is_branch=is_branch,
    )


def _pydantics_words(message: str) -> tuple[str, str]:
    """Return the words for an error that has none here, from pydantic's own."""
    match = re.match(r"Input should be (?:an instance of )?(.+?)(?:,.*)?$", message)
    return (match[1] if match else f"a valid value ({message})"), "write it so"


def _quoted(expected: str, value: object, cure: str) -> str:
    """Show the cure on the value itself where that is all it takes."""
    if isinstance(value, str | int | float) and len(str(value)) <= WIDTH:
        if expected == "a list":
            return f"put it in brackets: [{value if isinstance(value, str) else show(value)}]"
        if expected == "text" and not isinstance(value, str):
            return f'put it in quotes: "{show(value)}"'
    return cure


def _groups(mistakes: Sequence[Mistake]) -> list[list[Mistake]]:
    """Return what becomes one problem each: the branches of one union together."""
    groups: dict[object, list[Mistake]] = {}
    for index, mistake in enumerate(mistakes):
        if mistake.is_branch and any(_is_below(other.location, mistake) for other in mistakes):
            continue  # another branch fitted further than this one
        groups.setdefault(mistake.location if mistake.is_branch else index, []).append(mistake)
    return [_closest(group) for group in groups.values()]


def _is_below(location: Location, mistake: Mistake) -> bool:
    depth = len(mistake.location)
    return len(location) > depth and location[:depth] == mistake.location


def _closest(group: list[Mistake]) -> list[Mistake]:
    """Return the mistakes of branches whose type fitted, if there are any."""
    return [mistake for mistake in group if not mistake.is_type] or group


def _problem(group: Sequence[Mistake], declared: type[BaseModel]) -> Problem:
    first = group[0]
    expected = list(dict.fromkeys(mistake.expected for mistake in group))
    message = f"expected {_either(expected)}, found {first.found}; {_cure(group, declared)}"
    return Problem(first.location, message, first.is_about_key)


def _cure(group: Sequence[Mistake], declared: type[BaseModel]) -> str:
    """Return what to do: for the branches of a union, the best guess at what was meant."""
    cures = list(dict.fromkeys(mistake.cure for mistake in group))
    if len(cures) == 1:
        return cures[0]
    guesses = (cure for cure in cures if cure.startswith("did you mean"))
    return next(guesses, None) or f"write {_described(group[0].location, declared)}"


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
