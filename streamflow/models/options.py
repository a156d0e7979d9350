"""From a model's declaration to the options of its pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamflow.models.declaration import ModelOptions
from streamflow.models.network import build_loss, build_optimizer, build_scheduler

SAME = (
    "stages",
    "rate",
    "schedule",
    "backward",
    "executor",
    "devices",
    "state",
    "max_keys",
    "seed",
)
"""Options that a pipeline has under the same name."""

OF_LEARNING = ("groups", "accumulate", "clip_norm", "clip_over", "allow_nonfinite")
"""Likewise, if it learns."""


def pipeline_options(model: ModelOptions, folder: Path) -> dict[str, Any]:
    """Return what a `Pipeline` takes beside the network.

    Raises:
        GraphError: Torch does not have what is named, or it does not take these options.
        CallableError: A callable does not import.
    """
    options = {name: getattr(model, name) for name in SAME}
    options["compile"] = model.compile if model.on_drift == "report" else False
    if loss := build_loss(model, folder):
        options |= {name: getattr(model, name) for name in OF_LEARNING}
        options |= {
            "loss": loss,
            "optimizer": build_optimizer(model, folder),
            "scheduler": build_scheduler(model, folder),
        }
    return options
