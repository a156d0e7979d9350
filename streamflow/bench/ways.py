"""The ways to learn that a bench compares, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from streamflow.errors import StreamflowError

# Of more stages only powers of two are measured without being asked for.
_FEW_STAGES = 4


class SelectionError(StreamflowError, ValueError):
    """A pattern that no way to learn matches."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to learn.

    Attributes:
        name: What it is called in tables.
        executor: ``loop`` for the plain loop of PyTorch, else what runs the stages of a pipeline.
        num_stages: Stages of the pipeline.
        is_compiled: Whether the pipeline is to compile what it can.
        num_threads: Intra-op threads of a loop; pipelines take those of the faster loop.
    """

    name: str
    executor: Literal["loop", "inline", "threads"]
    num_stages: int = 1
    is_compiled: bool = True
    num_threads: int | None = None

    @property
    def is_loop(self) -> bool:
        """Whether it is a plain loop, which the others are compared with."""
        return self.executor == "loop"

    def threads(self, available: int) -> int:
        """Return how many intra-op threads it gets of those that are available."""
        if self.num_threads is not None:
            return self.num_threads
        return max(available // self.num_stages, 1) if self.executor == "threads" else available


def all_ways(num_cores: int, num_layers: int) -> list[Way]:
    """List every way, with up to as many stages as there are cores and layers to cut before.

    Two stages are a way on one core, too: they cost what they cost.
    """
    return list(_ways(num_cores, min(max(num_cores, 2), num_layers)))


def _ways(num_cores: int, most_stages: int) -> Iterator[Way]:
    for count in dict.fromkeys((1, num_cores)):
        yield Way(f"loop-{count}", "loop", is_compiled=False, num_threads=count)
    yield Way("eager", "inline", is_compiled=False)
    yield Way("compiled", "inline")
    for stages in range(2, most_stages + 1):
        yield Way(f"inline-{stages}", "inline", stages)
        yield Way(f"threads-{stages}", "threads", stages)


def chosen(ways: Sequence[Way], patterns: Sequence[str]) -> list[Way]:
    """Return the ways that match a pattern, and always the loops.

    Without patterns those with up to four stages, or 8, 16, 32 ...

    Raises:
        SelectionError: A pattern matches none.
    """
    if not patterns:
        return [way for way in ways if _is_usual(way.num_stages)]
    for pattern in patterns:
        if not any(fnmatchcase(way.name, pattern) for way in ways):
            known = ", ".join(way.name for way in ways)
            message = f"--ways: expected a name or pattern of {known}, got {pattern}; correct it"
            raise SelectionError(message)
    return [
        way
        for way in ways
        if way.is_loop or any(fnmatchcase(way.name, pattern) for pattern in patterns)
    ]


def _is_usual(num_stages: int) -> bool:
    return num_stages <= _FEW_STAGES or num_stages & (num_stages - 1) == 0
