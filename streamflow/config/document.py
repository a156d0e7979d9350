"""What a YAML file says: plain data, and where each piece of it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from streamflow.config.scalars import resolve
from streamflow.config.tree import DEEPEST, Items, Scalar, Tree
from streamflow.config.variables import VariableError, has_variables, substitute
from streamflow.errors import GraphError, Place, Problem
from streamflow.nodes.problems import show

Location: TypeAlias = tuple[str | int, ...]

LARGEST = 20_000
"""Values that a document may hold once its aliases are expanded."""

RECOGNIZED = 8
"""Values of variables of this length are kept out of messages about other options too."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a piece of data is written.

    Attributes:
        key: Its key; within a list, itself.
        value: Its value; the key where the value only begins on a later line.
    """

    key: Place
    value: Place


@dataclass(slots=True)
class Document:
    """Data read from a file, with the place of each piece by its location.

    Attributes:
        data: The data, of plain Python types.
        spots: Where each piece of it is written.
        hidden: Value and source text of each scalar that contains variables.
        problems: What was wrong with scalars.
    """

    data: Any = None
    spots: dict[Location, Spot] = field(default_factory=dict)
    hidden: dict[Location, tuple[Any, str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def locate(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return problems with their places, in the order of the file, without secrets."""
        placed = {self._place(self._without_variables(problem)): None for problem in problems}
        return sorted(placed, key=_order)

    def conceal(self, location: Location) -> None:
        """Keep the value at ``location`` out of the places of problems."""
        spot = self.spots.get(location)
        if spot is not None and not spot.value.line:
            place = Place(f"{spot.value.file.partition('=')[0]}=...")
            self.spots[location] = Spot(place, place)

    def _place(self, problem: Problem) -> Problem:
        if problem.place is not None:
            return problem
        location = problem.location
        is_key = problem.is_about_key
        while location not in self.spots:
            location, is_key = location[:-1], True
        spot = self.spots[location]
        return replace(problem, place=spot.key if is_key else spot.value)

    def _without_variables(self, problem: Problem) -> Problem:
        """Replace values of variables by their names."""
        message = problem.message
        for location, (value, source) in self.hidden.items():
            for text in (show(value), str(value)):
                if len(text) >= RECOGNIZED:
                    message = _replace_word(message, text, source)
                elif location == problem.location:
                    expected, comma, found = message.partition(", found ")
                    message = expected + comma + _replace_word(found, text, source)
        return replace(problem, message=message)


def flatten(tree: Tree, environment: Mapping[str, str]) -> Document:
    """Return a tree as data, its variables replaced.

    Raises:
        GraphError: Its aliases expand to too much.
    """
    document = Document()
    document.spots[()] = Spot(tree.place, tree.place)

    def value_of(tree: Tree, location: Location) -> Any:
        if len(document.spots) > LARGEST:
            message = f"expected at most {LARGEST} values, found more; use fewer aliases"
            raise GraphError([Problem((), message, place=tree.place)])
        if len(location) > DEEPEST:  # deeper than it is written: an alias holds another, and so on
            message = f"expected at most {DEEPEST} levels, found more; do not nest aliases"
            raise GraphError([Problem((), message, place=tree.place)])
        if isinstance(tree, Scalar):
            return _scalar(tree, location, environment, document)
        if isinstance(tree, Items):
            for index, item in enumerate(tree.items):
                document.spots[*location, index] = Spot(item.place, item.place)
            return [value_of(item, (*location, index)) for index, item in enumerate(tree.items)]
        for name, (key, value) in tree.entries.items():
            on_line = isinstance(value, Scalar) or value.place.line == key.line
            document.spots[*location, name] = Spot(key, value.place if on_line else key)
        return {
            name: value_of(value, (*location, name)) for name, (_, value) in tree.entries.items()
        }

    document.data = value_of(tree, ())
    return document


def _scalar(
    scalar: Scalar, location: Location, environment: Mapping[str, str], document: Document
) -> Any:
    text = scalar.text
    if has_variables(text):
        try:
            text = substitute(text, environment)
        except VariableError as error:
            document.problems += [
                Problem(location, message, place=scalar.place) for message in error.args
            ]
            return None
    value = resolve(text) if scalar.is_plain else text
    if text != scalar.text and not (value is None or isinstance(value, bool)):
        document.hidden[location] = (value, scalar.text)
    return value


def _replace_word(message: str, text: str, source: str) -> str:
    if not text:
        return message
    return re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", lambda _: source, message)


def _order(problem: Problem) -> tuple[bool, int, int]:
    place = problem.place
    assert place is not None
    return (not place.line, place.line, place.column)
