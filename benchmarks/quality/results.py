"""What the benchmark found, as plain data that can be kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.quality.loads import Costs, StageCosts

ALL, HELD, FRESH = "all", "held", "fresh"


@dataclass(frozen=True, slots=True)
class Cell:
    """One contestant at its best learning rate.

    Attributes:
        stream: Name of the stream.
        contestant: Name of the scheme or of what chose it.
        stages: How many it has.
        load: Rate of arrivals in units of one sequential loop's; None where time does not matter.
        way: How skipped samples are answered: ``held``, ``fresh``; ``all`` where none is skipped.
        rate: The learning rate with the least mean loss.
        is_on_edge: Whether that rate is the grid's least or greatest.
        losses: Mean loss of each seed.
        accuracies: Share of right classes of each seed, for streams of classes.
        taken: Share of scored samples that were learned.
    """

    stream: str
    contestant: str
    stages: int
    load: float | None
    way: str
    rate: float
    is_on_edge: bool
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None
    taken: float

    @property
    def loss(self) -> float:
        """Mean loss over the seeds."""
        return mean(self.losses)

    def relative_to(self, other: Cell) -> tuple[float, float, float]:
        """Return mean, least and greatest over the seeds of this loss by the other's."""
        ratios = [own / its for own, its in zip(self.losses, other.losses, strict=True)]
        return mean(ratios), min(ratios), max(ratios)


@dataclass(slots=True)
class Results:
    """Everything that tables and plots are made from.

    Attributes:
        cells: All contestants.
        baselines: Of every stream the loss of predicting zero, or the accuracy of predicting the
            class before.
        costs: What the stages' actions were measured to take.
    """

    cells: list[Cell] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    costs: Costs = field(default_factory=dict)

    def find(self, stream: str, way: str) -> list[Cell]:
        """Return the cells of a stream whose skipped samples were answered in one way."""
        return [cell for cell in self.cells if cell.stream == stream and cell.way == way]

    def streams(self, way: str) -> list[str]:
        """Name the streams whose skipped samples were answered in one way."""
        return list(dict.fromkeys(cell.stream for cell in self.cells if cell.way == way))

    def save(self, path: Path) -> None:
        """Write everything to a JSON file."""
        path.write_text(json.dumps(asdict(self), indent=1))


def load(path: Path) -> Results:
    """Read what :meth:`Results.save` wrote."""
    data = json.loads(path.read_text())
    for cell in data["cells"]:
        cell["losses"] = tuple(cell["losses"])
        cell["accuracies"] = cell["accuracies"] and tuple(cell["accuracies"])
    return Results(
        [Cell(**cell) for cell in data["cells"]],
        data["baselines"],
        {int(n): [StageCosts(**stage) for stage in s] for n, s in data["costs"].items()},
    )


def mean(values: tuple[float, ...] | list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)
