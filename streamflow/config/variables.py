"""Environment variables within a scalar: ``${VAR}``, ``${VAR:-default}``, ``${VAR:?message}``."""

from __future__ import annotations

import re
from collections.abc import Mapping

REFERENCE = re.compile(
    r"\$\$\{"  # an escaped brace
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}"
    r"|\$\{(?P<wrong>[^}]*\}?)"
)


class VariableError(ValueError):
    """A reference to a variable that has no value, or that is none."""


def has_variables(text: str) -> bool:
    """Return whether any part of ``text`` stands for something else."""
    return "${" in text


def substitute(text: str, environment: Mapping[str, str]) -> str:
    """Return ``text`` with its variables replaced; what they hold is not looked at again.

    Raises:
        VariableError: With a message of every reference that cannot be replaced.
    """
    messages: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name, kind, rest = match["name"], match["kind"], match["rest"]
        if match["wrong"] is not None:
            messages.append(f"expected ${{NAME}}, found {match[0]}; write $${{ for a literal ${{")
            return ""
        if name is None:
            return "${"
        value = environment.get(name)
        if value or (value is not None and kind is None):
            return value
        if kind == "-":
            return str(rest)
        messages.append(_missing(name, value, rest))
        return ""

    replaced = REFERENCE.sub(replace, text)
    if messages:
        raise VariableError(*messages)
    return replaced


def _missing(name: str, value: str | None, advice: str | None) -> str:
    found = "none of this name" if value is None else "an empty one"
    cure = advice or f"set it, or write ${{{name}:-default}}"
    return f"expected the environment variable {name}, found {found}; {cure}"
