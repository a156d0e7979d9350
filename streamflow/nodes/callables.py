"""The user's callables, named ``package.module:callable`` in YAML, given as they are in Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer

from streamflow.errors import StreamflowError


class CallableError(StreamflowError, ImportError):
    """A callable that cannot be found under its name."""


def resolve(named: Callable[..., Any] | str, folder: Path) -> Callable[..., Any]:
    """Return the callable, importing it from ``folder`` or the Python path if it is a name.

    Raises:
        CallableError: Its module does not import, or has no such callable.
    """
    if not isinstance(named, str):
        return named
    module_name, _, path = named.partition(":")
    try:
        found: Any = _import_from(module_name, folder)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        message = f"expected {named} to import, found {type(error).__name__}: {error}; "
        message += (
            f"the module must lie beside the graph's file ({os.fspath(folder)}) or be installed"
        )
        raise CallableError(message) from error
    if not callable(found):
        message = f"expected {named} to be callable, found {type(found).__name__}; name a function"
        raise CallableError(message)
    return found  # type: ignore[no-any-return]  # it is callable, and that is all that is known


def _import_from(module_name: str, folder: Path) -> Any:
    """Import a module with ``folder`` at the end of the path, so that it shadows nothing."""
    entry = os.fspath(folder.resolve())
    if entry not in sys.path:
        sys.path.append(entry)
    return import_module(module_name)


def _check_name(value: object) -> object:
    if isinstance(value, str):
        module, colon, path = value.partition(":")
        parts = [*module.split("."), *path.split(".")]
        if not colon or not all(part.isidentifier() for part in parts):
            message = "expected package.module:callable"
            raise ValueError(message)
    elif not callable(value):
        message = "expected package.module:callable"
        raise ValueError(message)
    return value


def _name(value: Callable[..., Any] | str) -> str:
    if isinstance(value, str):
        return value
    name = getattr(value, "__qualname__", "<")
    if "<" in name:
        message = (
            f"expected a callable that a name leads to, found {value!r}; define it in a module"
        )
        raise ValueError(message)
    return f"{value.__module__}:{name}"


Named: TypeAlias = Annotated[
    Callable[..., Any] | str, BeforeValidator(_check_name), PlainSerializer(_name)
]
"""A field that holds a callable, or its name."""
