"""Every error streamflow raises on purpose: one root, each child also the nearest built-in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

MOST_SHOWN = 50
"""Problems of a graph that its error tells; one mistake may be behind all of them."""


class StreamflowError(Exception):
    """Root of all errors of this package."""


class StageError(StreamflowError, RuntimeError):
    """An exception inside a pipeline stage; the original is its ``__cause__``."""


class SampleError(StreamflowError, ValueError):
    """A sample that cannot enter the pipeline: shape, dtype, class index or a non-finite value.

    Attributes:
        index: Place of the first such sample in the call's inputs, from zero.
    """

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class PartitionError(StreamflowError, ValueError):
    """A network that cannot be cut into stages as asked."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is written.

    Attributes:
        file: A file's path, or the option of the command line.
        line: From 1; 0 for what does not stand in a file.
        column: Likewise, in characters.
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a graph.

    Attributes:
        location: The way to it through the declaration: ``("models", "m", "optimizer", "SGD")``.
        message: ``expected X, found Y; what to do``.
        is_about_key: Whether the last name of the location is wrong itself, not what it holds.
        place: Where it is written, if the graph was read from a file.
    """

    location: tuple[str | int, ...]
    message: str
    is_about_key: bool = False
    place: Place | None = None

    def __str__(self) -> str:
        where = ".".join(map(str, self.location)) if self.place is None else str(self.place)
        return f"{where}: {self.message}" if where else self.message

    def within(self, *location: str | int) -> "Problem":
        """Return the same problem as part of what lies at ``location``."""
        return replace(self, location=(*location, *self.location))


class GraphError(StreamflowError, ValueError):
    """A graph that cannot run as declared; carries every problem found, not only the first.

    The message tells the first `MOST_SHOWN` of them, a line each, and how many more there are.

    Args:
        problems: All of them, located within what was declared.
        subject: What that is, if it is less than a graph: begins every line of the message.
    """

    def __init__(self, problems: Sequence[Problem], *, subject: str = "") -> None:
        most = problems[:MOST_SHOWN]
        shown = [str(problem.within(subject) if subject else problem) for problem in most]
        if left := len(problems) - len(most):
            shown.append(f"and {left:,} more")
        super().__init__("\n".join(shown))
        self.problems = tuple(problems)


class MissingExtraError(StreamflowError, ImportError):
    """A package that a node needs is not installed; the message has the command that cures it."""


class NodeError(StreamflowError, RuntimeError):
    """A node of a running graph failed; the message names it, the original is its ``__cause__``."""


class ConnectorError(StreamflowError, OSError):
    """An outside system refused, or does not hold what was asked of it."""


class CheckpointError(StreamflowError, OSError):
    """A checkpoint cannot be written, read, or used for this graph."""


class FailureBudgetError(StreamflowError, RuntimeError):
    """More records were rejected than a run may reject."""


class RunStoppedError(StreamflowError, RuntimeError):
    """The run no longer takes records: it has been stopped, has ended, or has failed."""


class OptionError(StreamflowError, ValueError):
    """An option or argument of a pipeline that cannot work."""


class ClosedError(StreamflowError, RuntimeError):
    """A pipeline that was closed and takes no more samples."""


def suggestion(name: str, known: list[str]) -> str:
    """Return what to do about an unknown name: the nearest known one, or all of them."""
    folded = {other.casefold(): other for other in known}
    if near := get_close_matches(name.casefold(), folded, n=1):
        return f"did you mean {folded[near[0]]}?"
    return f"choose one of: {', '.join(known)}" if known else "there is none to choose"
