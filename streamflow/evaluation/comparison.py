"""The sink that compares two models on the same records: which is better, and is that luck."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

import anyio.lowlevel
import numpy as np
from pydantic import Field

from streamflow.contracts import Context, Writer
from streamflow.evaluation.paired import PairedLosses
from streamflow.nodes.declarations import Sink
from streamflow.records import MISSING, Batch, Partition, Rejected, column_items, split_rejected

MOST_WAITING = 100_000
"""How many predictions of each model wait for the other's; beyond, the oldest is dropped."""

Loss: TypeAlias = Literal["squared", "absolute", "mistake"]
Mark: TypeAlias = tuple[str, tuple[tuple[str, str | int], ...], int]
"""Where a record stands: source, place of the partition, position."""


class Comparison(Sink):
    """Compares the predictions of two models for the same records, and reports which is better.

    Its inputs are two models with ``named: true``, or what came of their output records. Their
    losses are compared in pairs, record by record: by the test of Diebold and Mariano, with a
    variance that takes into account how losses follow each other, and mistakes also by McNemar's
    test. A difference counts as significant if no p-value exceeds ``level``. Records without a
    target, as forecasts are, cannot be compared. It writes nothing; what it says stands in the
    report and in the statistics of the run, and goes on from checkpoints.
    """

    type: Literal["comparison"] = "comparison"
    loss: Loss | None = Field(
        None,
        description="What is compared: squared or absolute errors, or mistakes (0 or 1); by "
        "default mistakes of classifiers and squared errors of all others.",
    )
    level: float = Field(
        0.05, gt=0, lt=1, description="Largest p-value of a difference that is significant."
    )

    @property
    def cuts_back(self) -> bool:
        """What was counted after a checkpoint is not counted twice."""
        return True

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Writer]:
        """Give what compares."""
        writer = ComparisonWriter(self)
        if context.resume is not None and "pairs" in (context.resume.mark or {}):
            writer.restore(context.resume.mark or {})
        yield writer


class ComparisonWriter:
    """Matches the predictions of two models by the position of their record."""

    def __init__(self, declared: Comparison) -> None:
        self._level = declared.level
        self._loss = declared.loss
        self._waiting: dict[str, OrderedDict[Mark, list[float]]] = {}
        self._pairs = PairedLosses()
        self._is_classifier: bool | None = None
        self._unlabelled = self._dropped = 0

    async def write(self, batch: Batch) -> Rejected | None:
        """Take predictions in."""
        await anyio.lowlevel.checkpoint()
        causes: dict[int, str] = {}
        pairs: list[tuple[float, float]] = []
        rows = zip(
            column_items(batch.column("model")),
            column_items(batch.column("prediction")),
            column_items(batch.column("target")),
            column_items(batch.column("scores")),
            batch.partitions,
            batch.offsets,
            strict=True,
        )
        for index, (model, prediction, target, scores, partition, offset) in enumerate(rows):
            try:
                self._check_model(model)
                if target is None or target is MISSING:
                    self._unlabelled += 1
                    continue
                loss = self._loss_of(prediction, target, is_classifier=scores is not MISSING)
            except (TypeError, ValueError) as error:
                causes[index] = str(error)
                continue
            pairs += self._matched(model, _mark(partition, offset), loss)
        if pairs:
            first, second = zip(*pairs, strict=True)
            self._pairs.absorb(np.array(first), np.array(second))
        _, rejected = split_rejected(batch, causes)
        return rejected

    async def flush(self) -> None:
        """Do nothing: what is counted is counted."""
        await anyio.lowlevel.checkpoint()

    async def mark(self) -> Mapping[str, Any]:
        """Return all that is known."""
        await anyio.lowlevel.checkpoint()
        return {
            "pairs": self._pairs.state(),
            "models": list(self._waiting),
            "waiting": [
                [
                    [[source, [list(pair) for pair in place], offset], list(losses)]
                    for (source, place, offset), losses in waiting.items()
                ]
                for waiting in self._waiting.values()
            ],
            "is_classifier": self._is_classifier,
            "unlabelled": self._unlabelled,
            "dropped": self._dropped,
        }

    def restore(self, mark: Mapping[str, Any]) -> None:
        """Go on from what `mark` returned in an earlier run."""
        self._pairs = PairedLosses.restored(mark["pairs"])
        for name, waiting in zip(mark["models"], mark["waiting"], strict=True):
            self._waiting[name] = OrderedDict(
                ((source, tuple(map(tuple, place)), offset), list(losses))
                for (source, place, offset), losses in waiting
            )
        self._is_classifier = mark["is_classifier"]
        self._unlabelled, self._dropped = mark["unlabelled"], mark["dropped"]

    def report(self) -> Mapping[str, Any]:
        """Return what can be said by now: under ``comparison`` what the report shows."""
        if len(self._waiting) < 2:
            return {"unlabelled": self._unlabelled}
        names, means = list(self._waiting), self._pairs.means
        if names[0] > names[1]:  # which of them came first is up to chance
            names, means = names[::-1], means[::-1]
        tests = self._tests()
        is_significant = bool(tests) and max(tests.values()) <= self._level
        better = min(zip(means, names, strict=True))[1] if means[0] != means[1] else None
        comparison = {
            "loss": self._compared(),
            "compared": self._pairs.count,
            "means": dict(zip(names, means, strict=True)) if self._pairs.count else {},
            "better": better if self._pairs.count else None,
            "p_values": tests,
            "level": self._level,
            "is_significant": is_significant,
        }
        waiting = sum(len(losses) for one in self._waiting.values() for losses in one.values())
        counts = {"unlabelled": self._unlabelled, "unmatched": waiting + self._dropped}
        return {"comparison": comparison, **counts}

    def _tests(self) -> dict[str, float]:
        """Return the p-values by name; none as long as there are too few pairs."""
        found = self._pairs.diebold_mariano()
        exact = self._pairs.mcnemar()
        if found is None or exact is None:
            return {}
        mistakes = {"McNemar": exact} if self._compared() == "mistake" else {}
        return {"Diebold-Mariano": found[0], **mistakes}

    def _compared(self) -> Loss:
        return self._loss or ("mistake" if self._is_classifier else "squared")

    def _check_model(self, model: Any) -> None:
        if not isinstance(model, str):
            message = "expected the field model, found none; set named: true for both models"
            raise ValueError(message)
        if model not in self._waiting:
            if len(self._waiting) == 2:
                known = " and ".join(self._waiting)
                message = f"expected predictions of {known}, found {model}; compare two models"
                raise ValueError(message)
            self._waiting[model] = OrderedDict()

    def _loss_of(self, prediction: Any, target: Any, *, is_classifier: bool) -> float:
        if self._is_classifier is None:
            self._is_classifier = is_classifier
        loss = self._loss or ("mistake" if is_classifier else "squared")
        if loss == "mistake":
            return float(prediction != target)
        errors = np.asarray(prediction, np.float64) - np.asarray(target, np.float64)
        found = float((np.abs(errors) if loss == "absolute" else errors * errors).mean())
        if not np.isfinite(found):
            message = f"expected finite numbers to compare, found {prediction!r} for {target!r}"
            raise ValueError(message)
        return found

    def _matched(self, model: str, mark: Mark, loss: float) -> list[tuple[float, float]]:
        """Return the losses of a record that both have predicted by now, in the models' order."""
        own = self._waiting[model]
        for name, waiting in self._waiting.items():
            if name != model and (losses := waiting.get(mark)):
                other = losses.pop(0)
                if not losses:
                    del waiting[mark]
                is_first = model == next(iter(self._waiting))
                return [(loss, other) if is_first else (other, loss)]
        own.setdefault(mark, []).append(loss)
        if len(own) > MOST_WAITING:
            self._dropped += len(own.popitem(last=False)[1])
        return []


def _mark(partition: Partition, offset: int) -> Mark:
    return partition.source, partition.place, offset
