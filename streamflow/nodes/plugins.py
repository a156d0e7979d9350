"""Node types and formats by name, found through the entry points of installed packages.

The built-in ones are registered in exactly the same way, so a package of a stranger's adds a
``type`` by declaring an entry point in one of these groups.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from streamflow.errors import MissingExtraError

SOURCES = "streamflow.sources"
OPERATORS = "streamflow.operators"
SINKS = "streamflow.sinks"
FORMATS = "streamflow.formats"
COMMANDS = "streamflow.commands"

GROUPS: Mapping[str, tuple[str, str]] = {
    "sources": ("source", SOURCES),
    "operators": ("operator", OPERATORS),
    "sinks": ("sink", SINKS),
}
"""What a node of a section of a graph is called, and its group of entry points."""


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; of a name registered twice, the first found."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        points.setdefault(point.name, point)
    return dict(sorted(points.items()))


def load(group: str, name: str) -> Any:
    """Import and return the class registered under ``name``.

    Raises:
        KeyError: Nothing is registered under this name.
    """
    return registered(group)[name].load()


def missing_packages(requires: dict[str, str]) -> list[str]:
    """Return a message for each module of ``requires`` that is not installed, importing none.

    Args:
        requires: What to install, by the module that shows whether it is there:
            ``{"aiokafka": "streamflow-online[kafka]"}``.
    """
    return [
        f"expected the package {module}, found it is not installed; run: pip install '{install}'"
        for module, install in requires.items()
        if not _is_installed(module)
    ]


def require(requires: dict[str, str], *, where: str) -> None:
    """Raise unless every module of ``requires`` is installed.

    Raises:
        MissingExtraError: One is not; the message has the command that installs it.
    """
    for message in missing_packages(requires):
        text = f"{where}: {message}"
        raise MissingExtraError(text)


def _is_installed(module: str) -> bool:
    """Return whether a module is there; looking for ``a.b`` imports ``a``."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False
