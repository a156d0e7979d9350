"""From a model's declaration to an open node: network, weights, loss, optimizer, pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streamflow.models.declaration import Model
from streamflow.models.forecaster import Forecaster
from streamflow.models.learner import Learner
from streamflow.models.network import (
    build_loss,
    build_network,
    build_optimizer,
    load_weights,
)
from streamflow.nodes import Context, Processor
from streamflow.pipeline import Pipeline


@contextmanager
def open_model(model: Model, context: Context) -> Iterator[Processor]:
    """Build a model's network and pipeline; leaving drains the gradients in flight."""
    network = build_network(model, context.folder)
    if model.weights is not None:
        load_weights(network, context.folder / model.weights)
    loss, optimizer = build_loss(model, context.folder), build_optimizer(model, context.folder)
    with Pipeline(
        network,
        loss=loss,
        optimizer=optimizer if loss else None,
        stages=model.stages,
        schedule=model.schedule,
        backward=model.backward,
        executor=model.executor,
        compile=model.compile,
        clip_norm=model.clip_norm,
        allow_nonfinite=model.allow_nonfinite,
        seed=model.seed,
    ) as pipeline:
        yield (Forecaster if model.horizon else Learner)(model, pipeline)
