"""What a bench has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from streamflow.bench.clock import Round
from streamflow.bench.ways import Way


@dataclass(slots=True)
class Row:
    """A way and its rounds so far.

    Attributes:
        way: The way.
        num_threads: Intra-op threads it has.
        cuts: Modules before which the network is cut.
        rounds: What was measured, in order.
        failure: Why it could not be measured, or not to the end; empty if it could.
    """

    way: Way
    num_threads: int = 1
    cuts: tuple[str, ...] = ()
    rounds: list[Round] = field(default_factory=list)
    failure: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether there is something to compare."""
        return bool(self.rounds) and not self.failure

    @property
    def rate(self) -> float:
        """Samples per second, the median of the rounds."""
        return median(self.rates)

    @property
    def rates(self) -> list[float]:
        """Samples per second of each round."""
        return [found.rate for found in self.rounds]

    @property
    def spread(self) -> float:
        """How far the fastest and the slowest round are apart, as a part of the median."""
        return (max(self.rates) - min(self.rates)) / self.rate

    @property
    def latency_p50(self) -> float:
        """Seconds of a call with one sample."""
        return median(found.latency_p50 for found in self.rounds)

    @property
    def latency_p99(self) -> float:
        """Seconds that 99 of 100 calls with one sample do not exceed."""
        return median(found.latency_p99 for found in self.rounds)

    @property
    def memory_bytes(self) -> int:
        """Growth of the most memory that the process had."""
        return max(found.memory_bytes for found in self.rounds)

    @property
    def learning(self) -> str:
        """How samples were learned in the last round."""
        return self.rounds[-1].learning


@dataclass(frozen=True, slots=True)
class Result:
    """All ways of a model.

    Attributes:
        shape: Of one input.
        num_parameters: Of the network.
        num_layers: Before which it can be cut, and the first.
        samples_per_call: Samples that waited for each call of a rate.
        rows: One for each way, loops first.
    """

    shape: tuple[int, ...]
    num_parameters: int
    num_layers: int
    samples_per_call: int
    rows: Sequence[Row]

    @property
    def best_loop(self) -> Row | None:
        """The faster of the plain loops, if one could be measured."""
        loops = [row for row in self.rows if row.way.is_loop and row.is_measured]
        return max(loops, key=lambda row: row.rate, default=None)

    def ratio(self, row: Row) -> float | None:
        """Return how many times as fast a way is as the best loop."""
        best = self.best_loop
        return row.rate / best.rate if best is not None and row.is_measured else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, ready for JSON."""
        best = self.best_loop
        return {
            "shape": list(self.shape),
            "parameters": self.num_parameters,
            "layers": self.num_layers,
            "samples_per_call": self.samples_per_call,
            "best_loop": best.way.name if best is not None else None,
            "ways": [_row_dict(row, self.ratio(row)) for row in self.rows],
        }


def _row_dict(row: Row, ratio: float | None) -> dict[str, Any]:
    figures = None
    if row.is_measured:
        figures = {
            "rate": row.rate,
            "lowest_rate": min(row.rates),
            "highest_rate": max(row.rates),
            "ratio": ratio,
            "latency_p50": row.latency_p50,
            "latency_p99": row.latency_p99,
            "memory_bytes": row.memory_bytes,
            "learning": row.learning,
        }
    return {
        "name": row.way.name,
        "executor": row.way.executor,
        "stages": row.way.num_stages,
        "compile": row.way.is_compiled,
        "threads": row.num_threads,
        "cuts": list(row.cuts),
        "failure": row.failure or None,
        "figures": figures,
        "rounds": [asdict(found) for found in row.rounds],
    }
