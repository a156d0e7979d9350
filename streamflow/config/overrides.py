"""Values of the command line in place of those of the file: ``models.m.optimizer.SGD.lr=0.1``."""

from __future__ import annotations

from typing import NoReturn

from streamflow.config.tree import Entries, Items, Scalar, Tree, compose
from streamflow.errors import GraphError, Place, Problem, suggestion
from streamflow.graph.structure import SECTIONS


def override(tree: Tree, path: str, text: str) -> Tree:
    """Return ``tree`` with the YAML value ``text`` at the dotted ``path``.

    Mappings on the way are created, nodes are not.

    Raises:
        GraphError: There is no such place, or the value is not YAML.
    """
    anonymous = Place(f"--set {path}")  # a value that cannot be read may be a secret
    value, problems = compose(text, lambda _line, _column: anonymous)
    if problems:
        raise GraphError(problems)
    place = anonymous
    if value is None or isinstance(value, Scalar):
        place = Place(f"--set {path}={text}")
        value = Scalar(value.text, value.is_plain, place) if value else Scalar("", True, place)
    steps = path.split(".")
    if not all(steps):
        message = "expected names with dots between them, found an empty one; remove a dot"
        raise GraphError([Problem((), message, place=anonymous)])
    return _set(tree, steps, 0, value, place)


def _set(tree: Tree, steps: list[str], index: int, value: Tree, place: Place) -> Tree:
    if index == len(steps):
        return value
    step = steps[index]
    if isinstance(tree, Entries):
        if index == 1 and len(steps) > 2 and steps[0] in SECTIONS and step not in tree.entries:
            cure = suggestion(step, list(tree.entries))
            _fail(f"expected the name of a node under {steps[0]}, found {step}; {cure}", place)
        _, below = tree.entries.get(step, (place, Entries({}, place)))
        entry = (place, _set(below, steps, index + 1, value, place))
        return Entries({**tree.entries, step: entry}, tree.place)
    if isinstance(tree, Items):
        if not step.isdecimal() or int(step) >= len(tree.items):
            _fail(f"expected an index below {len(tree.items)}, found {step}; count from 0", place)
        items = list(tree.items)
        items[int(step)] = _set(items[int(step)], steps, index + 1, value, place)
        return Items(tuple(items), tree.place)
    if tree.is_plain and tree.text in ("", "~", "null"):
        return _set(Entries({}, place), steps, index, value, place)
    above = ".".join(steps[:index])
    message = f"expected a mapping at {above}, found a single value; set {above} as a whole"
    return _fail(message, place)


def _fail(message: str, place: Place) -> NoReturn:
    raise GraphError([Problem((), message, place=Place(place.file.partition("=")[0]))])
