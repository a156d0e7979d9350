"""How models would learn on this machine, as far as it can be said before they run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from streamflow.bench.samples import Waiting, draw
from streamflow.models.model import Model
from streamflow.models.network import build_network
from streamflow.models.options import pipeline_options
from streamflow.pipeline import Pipeline

# A pipeline looks at how to compile its network when it has learned for a second.
_SECONDS = 1.3
_CALL_SECONDS = 0.05
_FEWEST_CALLS = 3


TO_BE_COMPILED = "to be compiled: own kernels, or library calls where it needs them"
"""How a network learns for which there is no code on disk so far."""


def learning_of(model: Model, folder: Path) -> str:
    """Return how a model would learn: ``compiled: ...`` with the code, or ``eager: ...`` with why.

    Its network learns random records for about a second, and nothing is compiled.

    Raises:
        StreamflowError: Nothing tells the shape of a record, or the network does not learn one.
    """
    if model.on_drift != "report":
        return "eager: on_drift acts between one record and the next"
    network = build_network(model, folder)
    options = pipeline_options(model, folder)
    if options["compile"] is True:
        options["compile"] = "auto"  # which does not wait for the compiler
    with _quiet(), Pipeline(network, **options) as pipeline:
        if not _is_decided(pipeline):
            _learn(pipeline, model, draw(model, network, folder, None))
        return pipeline.learning if _is_decided(pipeline) else TO_BE_COMPILED


def _is_decided(pipeline: Pipeline) -> bool:
    return pipeline.learning.startswith(("eager: ", "compiled"))


def _learn(pipeline: Pipeline, model: Model, waiting: Waiting) -> None:
    """Learn samples, again and again, until it is decided how, or nothing speaks against code."""
    inputs = torch.from_numpy(waiting.inputs)
    targets = None if waiting.targets is None else torch.from_numpy(waiting.targets)
    weights = None if model.class_weights is None else torch.ones(len(waiting))

    def call(count: int) -> None:
        labels, factors = (
            None if column is None else column[:count] for column in (targets, weights)
        )
        pipeline.process(inputs[:count], labels, weights=factors)

    call(1)  # the stages are cut, where that is left to measuring
    started = time.monotonic()
    call(1)
    per_sample = time.monotonic() - started
    count = max(1, min(len(waiting), int(_CALL_SECONDS / per_sample)))
    calls = 0
    while not _is_decided(pipeline):
        call(count)
        calls += 1
        if calls >= _FEWEST_CALLS and time.monotonic() - started > _SECONDS:
            break


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings of what the answer tells."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
