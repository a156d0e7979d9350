"""What identifies an object of Python that stands in a graph.

A function of a module goes by its name, so that it may be corrected. Many functions of one place
have the same name if they are lambdas, or defined within another one: those go by what they do,
too. Comments, line numbers and names of variables do not count; another version of Python may.

    tools:double    tools:scale(2, by=3)    tools:<lambda> 5d41402abc4b
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType
from typing import Any

PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...))


def name_of(value: object) -> str:
    """Return the name of a function or class, or of the class of another object."""
    return _Namer().name_of(value)


def unbound(value: object) -> object:
    """Return what a partial is of, if it is one."""
    return unbound(value.func) if isinstance(value, partial) else value


class _Namer:
    """Names an object, and those that it refers to; what refers to itself is named once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def name_of(self, value: object) -> str:
        if isinstance(value, partial):
            bound = [*map(self._content, value.args)]
            named_options = sorted(value.keywords.items())
            bound += [f"{name}={self._content(item)}" for name, item in named_options]
            return self.name_of(value.func) + (f"({', '.join(bound)})" if bound else "")
        named: Any = value if hasattr(value, "__qualname__") else type(value)
        name = f"{named.__module__}:{named.__qualname__}"
        if "<" not in named.__qualname__ or id(named) in self._seen:
            return name
        self._seen.add(id(named))
        digest = hashlib.sha256("\n".join(self._parts(named)).encode()).hexdigest()
        return f"{name} {digest[:12]}"

    def _parts(self, named: Any) -> Iterator[str]:
        """Yield all that says what a function does, or the functions of a class."""
        if isinstance(named, type):
            yield from (base.__qualname__ for base in named.__bases__)
            for name, member in sorted(vars(named).items()):
                function = getattr(member, "__func__", member)  # of a static or a class method
                if hasattr(function, "__code__"):
                    yield name
                    yield from self._parts(function)
                elif isinstance(member, PLAIN) and not name.startswith("__"):
                    yield f"{name}={self._content(member)}"
        elif (code := getattr(named, "__code__", None)) is not None:
            yield from self._code_parts(code)
            yield self._content(named.__defaults__)
            yield self._content(named.__kwdefaults__)
            yield from map(self._cell, named.__closure__ or ())

    def _code_parts(self, code: CodeType) -> Iterator[str]:
        yield code.co_code.hex()
        yield ",".join(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from self._code_parts(constant)
            else:
                yield self._content(constant)

    def _cell(self, cell: Any) -> str:
        try:
            return self._content(cell.cell_contents)
        except ValueError:
            return ""  # nothing is in it yet

    def _content(self, value: object) -> str:
        """Return data as text that is the same in every process; of other objects, their name."""
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, list | tuple):
            return f"({', '.join(map(self._content, value))})"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(map(self._content, value)))}}}"
        if isinstance(value, Mapping):
            pairs = (f"{self._content(key)}: {self._content(item)}" for key, item in value.items())
            return f"{{{', '.join(pairs)}}}"
        return self.name_of(value)
