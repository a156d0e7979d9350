"""From a model's declaration to the options of its pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamflow.models.declaration import ModelOptions
from streamflow.models.network import build_loss, build_optimizer, build_scheduler


def pipeline_options(model: ModelOptions, folder: Path) -> dict[str, Any]:
    """Return what a `Pipeline` takes beside the network.

    Raises:
        GraphError: Torch does not have what is named, or it does not take these options.
        CallableError: A callable does not import.
    """
    loss = build_loss(model, folder)
    learning = {
        "loss": loss,
        "optimizer": build_optimizer(model, folder),
        "scheduler": build_scheduler(model, folder),
        "groups": model.groups,
        "accumulate": model.accumulate,
        "clip_norm": model.clip_norm,
        "clip_over": model.clip_over,
        "allow_nonfinite": model.allow_nonfinite,
    }
    return {
        "stages": model.stages,
        "rate": model.rate,
        "schedule": model.schedule,
        "backward": model.backward,
        "executor": model.executor,
        "devices": model.devices,
        "compile": model.compile if model.on_drift == "report" else False,
        "state": model.state,
        "max_keys": model.max_keys,
        "seed": model.seed,
        **(learning if loss else {}),
    }
