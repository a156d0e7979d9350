"""Streams for the tests of models, and what models make of them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from streamflow.contracts import Context, Processed
from streamflow.models.model import Model
from streamflow.records import Batch, Partition, Record, to_columns

PARTITION = Partition("readings", (("path", "a.csv"),), "line")
FEATURES = ("a", "b", "c", "d", "e")


def model(**options: Any) -> Model:
    """Return the model that most tests are about, with other options."""
    usual: dict[str, Any] = {
        "inputs": ("readings",),
        "network": ({"Linear": [5, 64]}, "ReLU", {"Linear": [64, 2]}),
        "features": FEATURES,
        "target": "class",
        "loss": "cross_entropy",
        "optimizer": {"SGD": {"lr": 0.05}},
    }
    return Model(**(usual | options))


def line(**options: Any) -> Model:
    """Return a model that predicts ``y`` from ``x`` by a line."""
    usual: dict[str, Any] = {
        "network": ({"Linear": [1, 1]},),
        "features": ("x",),
        "target": "y",
        "loss": "mse_loss",
    }
    return model(**(usual | options))


def readings(count: int = 40, *, seed: int = 1) -> list[dict[str, Any]]:
    """Return records with five features and a class that depends on them."""
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    return [
        {**dict(zip(FEATURES, row, strict=True)), "class": int(sum(row[:2]) > 0)}
        for row in inputs.tolist()
    ]


def numbers(count: int = 12) -> list[dict[str, Any]]:
    """Return records of ``x`` and a ``y`` near a line."""
    return [{"x": (step * 7 % 5) / 5, "y": 20.0 + step * 7 % 5 + step % 2} for step in range(count)]


def batch_of(rows: list[Any], start: int = 0, keys: Sequence[Any] | None = None) -> Batch:
    """Return consecutive records as a batch, in columns where that is possible."""
    size = len(rows)
    return Batch(
        to_columns(rows),
        [PARTITION] * size,
        range(start, start + size),
        keys=keys,
        timestamps_ms=[1000 + offset for offset in range(start, start + size)],
    )


class Outcome:
    """What a model made of a stream: output records, causes by offset, and its report."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.causes: dict[int, str] = {}
        self.report: dict[str, Any] = {}

    def take(self, processed: Processed) -> None:
        """Add what became of a batch."""
        if processed.batch is not None:
            self.records += processed.batch.records()
        if processed.rejected is not None:
            offsets = processed.rejected.batch.offsets
            self.causes |= dict(zip(offsets, processed.rejected.causes, strict=True))

    def each(self, field: str) -> list[Any]:
        """Return one field of all output records, ``None`` where it is absent."""
        return [record.value.get(field) for record in self.records]


def run(
    declared: Model,
    rows: list[Any],
    *,
    cuts: Iterable[int] = (),
    keys: Sequence[Any] | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Send records through a model, in batches between the cuts."""
    outcome = Outcome()
    places = sorted({0, *cuts, len(rows)})
    with declared.open(Context("model", folder or Path())) as processor:
        for start, stop in pairwise(places):
            part = None if keys is None else keys[start:stop]
            outcome.take(processor.process(batch_of(rows[start:stop], start, part)))
        outcome.take(processor.end())
        outcome.report = dict(processor.report())
    return outcome
