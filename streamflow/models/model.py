"""The model node as it stands in a graph; torch is imported where it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from streamflow.contracts import Context, Processor
from streamflow.errors import Problem
from streamflow.models.declaration import ModelOptions


class Model(ModelOptions):
    """Predicts every record the moment it arrives, then learns from it, and passes on predictions.

    An output record holds ``prediction`` (a number, a list of numbers, or a class label),
    ``scores`` of classifiers (probabilities in class order), ``target`` where it was known,
    ``step`` (updates the first stage had made before), ``source`` (position of the input
    record) and the fields named by ``carry``.
    """

    def deep_problems(self, folder: Path, *, only_scalars: bool = False) -> Iterator[Problem]:
        """Yield what is only found by building the network, on the meta device."""
        from streamflow.models.deep import model_problems  # imports torch

        return model_problems(self, folder, only_scalars=only_scalars)

    def open(self, context: Context) -> AbstractContextManager[Processor]:
        """Build the network and its pipeline, until the context is left."""
        from streamflow.models.opening import open_model  # imports torch

        return open_model(self, context)
