"""From a model's declaration to an open node: network, weights, loss, optimizer, pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streamflow.contracts import Context, Processor
from streamflow.models.declaration import ModelOptions
from streamflow.models.forecaster import Forecaster
from streamflow.models.learner import Learner
from streamflow.models.network import build_network, load_weights
from streamflow.models.options import pipeline_options
from streamflow.models.reaction import Reaction, first_weights
from streamflow.pipeline import Pipeline


@contextmanager
def open_model(model: ModelOptions, context: Context) -> Iterator[Processor]:
    """Build a model's network and pipeline; leaving drains the gradients in flight.

    Raises:
        StreamflowError: Torch, or what the user names, does not give what is declared; or the file
            of weights cannot be read, or is another network's.
    """
    network = build_network(model, context.folder)
    if model.weights is not None:
        load_weights(network, context.folder / model.weights)
    first = first_weights(model, network)
    with Pipeline(network, **pipeline_options(model, context.folder)) as pipeline:
        reaction = None if model.on_drift == "report" else Reaction(model, pipeline, first)
        kind = Forecaster if model.horizon else Learner
        yield kind(model, pipeline, context.name, reaction)
