"""YAML text as a tree in which everything knows where it stands.

Only the parser of ruamel.yaml is used: its events have the positions, and what a scalar means is
decided later, since variables are replaced first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from streamflow.errors import GraphError, Place, Problem

DEEPEST = 50
"""Levels that a tree may have; no graph needs more."""

HALF_A_PAIR = re.compile("[\ud800-\udfff]")
"""What an escape may give that is no character."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A piece of text; its meaning depends on quotes."""

    text: str
    is_plain: bool
    place: Place


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Tree, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Entries:
    """A mapping; each key with its place and its value."""

    entries: dict[str, tuple[Place, Tree]]
    place: Place


Tree: TypeAlias = Scalar | Items | Entries
At: TypeAlias = Callable[[int, int], Place]


def compose(text: str, at: At) -> tuple[Tree | None, list[Problem]]:
    """Return the tree of a document, ``None`` if it is empty, and problems that leave a tree.

    Args:
        text: The document.
        at: Makes the place of a line and column, both from 1.

    Raises:
        GraphError: It is not YAML.
    """
    composer = _Composer(text, at)
    try:
        return composer.document(), composer.problems
    except YAMLError as error:
        problem = _syntax_problem(error, text, at)
    except GraphError as error:
        problem = error.problems[0]
    except Exception as error:  # on some malformed texts the parser itself fails
        message = f"expected YAML, found text that its parser cannot read ({error}); mend the file"
        problem = Problem((), message, place=at(1, 1))
    raise GraphError([*composer.problems, problem])


class _Composer:
    """Makes a tree of the parser's events."""

    def __init__(self, text: str, at: At) -> None:
        self.problems: list[Problem] = []
        self._at = at
        self._anchors: dict[str, Tree] = {}
        self._events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)

    def document(self) -> Tree | None:
        tree: Tree | None = None
        documents = 0
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fail(event, "expected one document, found another one; remove ---")
            elif isinstance(
                event, ScalarEvent | AliasEvent | SequenceStartEvent | MappingStartEvent
            ):
                tree = self._tree(event, depth=0)
        return tree

    def _tree(self, event: Any, depth: int) -> Tree:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if depth == DEEPEST:
            self._fail(event, f"expected at most {DEEPEST} levels, found more; flatten it")
        if event.ctag is not None:
            tag = str(event.ctag).replace("tag:yaml.org,2002:", "!!")
            self._report(event, f"expected no tag, found {tag}; remove it")
        tree: Tree
        if isinstance(event, SequenceStartEvent):
            tree = self._items(event, depth)
        elif isinstance(event, MappingStartEvent):
            tree = self._entries(event, depth)
        else:
            if half := HALF_A_PAIR.search(event.value):
                found = f"half of a pair of surrogates, U+{ord(half[0]):04X}"
                self._fail(event, f"expected text, found {found}; remove it")
            tree = Scalar(event.value, event.style is None, self._place(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = tree
        return tree

    def _alias(self, event: Any) -> Tree:
        if event.anchor not in self._anchors:
            message = f"expected an anchor &{event.anchor} before this alias, found none; "
            self._fail(event, message + f"quote text that begins with *, or define &{event.anchor}")
        return self._anchors[event.anchor]

    def _items(self, start: Any, depth: int) -> Items:
        items: list[Tree] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._tree(event, depth + 1))
        return Items(tuple(items), self._place(start))

    def _entries(self, start: Any, depth: int) -> Entries:
        entries: dict[str, tuple[Place, Tree]] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._tree(event, depth + 1)
            value = self._tree(next(self._events), depth + 1)
            if not isinstance(key, Scalar):
                self._report(event, "expected a name as key, found a list or mapping; name it")
            elif key.text == "<<" and key.is_plain:
                message = (
                    "expected options, found a merge key; YAML 1.2 has none: repeat the options"
                )
                self._report(event, message)
            elif key.text in entries:
                first = entries[key.text][0]
                where = f" (line {first.line})" if first.line else ""
                message = f"expected each key once, found {key.text} again{where}; remove one"
                self._report(event, message)
            else:
                entries[key.text] = (self._place(event), value)
        return Entries(entries, self._place(start))

    def _place(self, event: Any) -> Place:
        return self._at(event.start_mark.line + 1, event.start_mark.column + 1)

    def _report(self, event: Any, message: str) -> None:
        self.problems.append(Problem((), message, place=self._place(event)))

    def _fail(self, event: Any, message: str) -> None:
        raise GraphError([Problem((), message, place=self._place(event))])


SYNTAX = (
    (
        r"mapping values are not allowed here",
        "expected one key and value on a line, found another colon",
        "quote text that contains ': ', or mend the indentation",
    ),
    (r"found character '\\t'.*", "expected spaces, found a tab", "indent with spaces"),
    (
        r"found character (?P<what>'.+') that cannot start any token",
        "expected a value, found {what}",
        "quote text that begins with it",
    ),
    (
        r"expected ',' or '(?P<end>.)', but got (?P<what>.*)",
        "expected , or {end} in what is opened at line {line}, found {what}",
        "close it with {end}",
    ),
    (
        r"found unexpected (end of stream|document separator)",
        "expected a closing quote, found none",
        "add it",
    ),
    (
        r"expected <block end>, but found .*|could not find expected ':'",
        "expected a key and a value, aligned with line {line}, found something else",
        "mend the indentation, or add the colon and a space behind it",
    ),
    (
        r"found unknown escape character (?P<what>'.+')",
        "expected an escape such as \\n, found {what} behind a backslash",
        "use single quotes, or double the backslash",
    ),
)
"""What the parser says, what was expected and found, and what to do."""

TOKENS = {"'<scalar>'": "text", "'<stream end>'": "the end of the file", "'<alias>'": "an alias"}
"""What the parser calls a piece of a file, in our words."""


def _syntax_problem(error: YAMLError, text: str, at: At) -> Problem:
    """Return the parser's error in our words, at the place to mend."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return _unreadable_character(error, text, at)
    said = " ".join(str(error.problem).split())
    mark, opened = error.problem_mark, error.context_mark or error.problem_mark
    for pattern, expected, cure in SYNTAX:
        if match := re.fullmatch(pattern, said):
            found = {name: TOKENS.get(text, text) for name, text in match.groupdict().items()}
            words = {**found, "line": opened.line + 1}
            message = f"{expected}; {cure}".format_map(words)
            break
    else:
        message = f"expected YAML, found an error: {said}; mend this line"
    if "closing quote" in message:
        mark = opened
    if "'{'" in said and text[: mark.index].endswith("$"):
        message = 'expected quotes around ${...} within {} or [], found none; write "${...}"'
    return Problem((), message, place=at(mark.line + 1, mark.column + 1))


def _unreadable_character(error: YAMLError, text: str, at: At) -> Problem:
    index = min(max(getattr(error, "position", 0), 0), len(text))
    line_start = text.rfind("\n", 0, index) + 1
    found = f"the character U+{ord(text[index]):04X}" if index < len(text) else "something else"
    message = f"expected text, found {found}; remove it, or write it as an escape in quotes"
    return Problem((), message, place=at(text.count("\n", 0, index) + 1, index - line_start + 1))
