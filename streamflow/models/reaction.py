"""What a model does where a drift is found: begin anew, or learn at other rates for a while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from streamflow.errors import GraphError, Problem
from streamflow.models.declaration import ModelOptions
from streamflow.models.feature import Rate
from streamflow.models.portable import original, portable
from streamflow.pipeline import Pipeline


def first_weights(model: ModelOptions, network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights and buffers that a reset goes back to; else nothing.

    Raises:
        GraphError: They are not known before the first record.
    """
    if model.on_drift != "reset":
        return {}
    state = network.state_dict()
    if lazy := [name for name, tensor in state.items() if is_lazy(tensor)]:
        message = f"expected layers of known sizes to reset, found {lazy[0]} without; give its size"
        raise GraphError([Problem(("on_drift",), message)])
    return {name: tensor.detach().clone() for name, tensor in state.items()}


class Reaction:
    """Acts on a pipeline between two records.

    Args:
        model: With `ModelOptions.on_drift` that acts.
        pipeline: To act on.
        first: Weights and buffers to go back to.
    """

    def __init__(self, model: ModelOptions, pipeline: Pipeline, first: dict[str, Tensor]) -> None:
        self._action = model.on_drift
        self._pipeline = pipeline
        self._first = first
        self._left = 0
        self._rates: dict[str, tuple[Any, Any]] = {}

    def update(self, *, is_learned: bool, is_drift: bool) -> None:
        """Take note of one record, after it was learned, and act before the next."""
        if self._left and is_learned:
            self._left -= 1
            if not self._left and not is_drift:
                self._end()
        if is_drift:
            self._act()

    def state(self) -> dict[str, Any]:
        """Return what later records need."""
        state: dict[str, Any] = portable(
            {"first": self._first, "left": self._left, "rates": self._rates}
        )
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; another action than that one's ends it."""
        found = original(dict(state))
        self._rates = {name: tuple(pair) for name, pair in found["rates"].items()}
        self._left = found["left"]
        if self._first and found["first"]:
            self._first = {name: tensor.clone() for name, tensor in found["first"].items()}
        if self._left and not isinstance(self._action, Rate):
            self._end()

    def _act(self) -> None:
        if not isinstance(self._action, Rate):
            self._reset()
            return
        if not self._rates:
            state = self._pipeline.state_dict()
            factor = self._action.rate
            for name, settings in state["optimizer"]["settings"].items():
                self._rates[name] = (settings["lr"], settings["lr"] * factor)
                settings["lr"] = settings["lr"] * factor
            self._pipeline.load_state_dict(state)
        self._left = self._action.records

    def _end(self) -> None:
        """Go back to the rates from before, but where they were declared anew since."""
        state = self._pipeline.state_dict()
        for name, settings in state["optimizer"]["settings"].items():
            before, raised = self._rates.get(name, (None, None))
            if settings["lr"] == raised:
                settings["lr"] = before
        self._pipeline.load_state_dict(state)
        self._left, self._rates = 0, {}

    def _reset(self) -> None:
        state = self._pipeline.state_dict()
        state["module"] = self._first
        optimizer = state["optimizer"]
        optimizer["state"] = {}
        optimizer["settings"] = optimizer["declared"]
        state["accumulated"] = {}
        recurrent = state["recurrent"]
        recurrent["keys"], recurrent["values"] = [], {name: [] for name in recurrent["values"]}
        self._pipeline.load_state_dict(state)
