"""A model's weights alone, as every PyTorch program takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamflow.checkpoints import tensors
from streamflow.checkpoints.disk import explained, sync_file, sync_folder
from streamflow.errors import CheckpointError


def weights_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's part of a model's state, by its own names; empty of other nodes."""
    pipeline = state.get("pipeline")
    module = pipeline.get("module") if isinstance(pipeline, dict) else None
    return module if isinstance(module, dict) else {}


def save_weights(weights: Mapping[str, Any], path: Path) -> None:
    """Write a ``state_dict`` to a file in safetensors, whole or not at all.

    Raises:
        CheckpointError: It cannot be written, or holds something else than tensors.
    """
    for name, value in weights.items():
        if tensors.kind_of(value) != "tensor":
            message = (
                f"{name}: expected a tensor in the network's state, found a "
                f"{type(value).__name__}, which safetensors cannot hold; load the checkpoint itself"
            )
            raise CheckpointError(message)
    passing = path.with_name(f".{path.name}.new")
    with explained(path, "to write weights"):
        try:
            tensors.write(passing, weights)
            sync_file(passing)
            passing.replace(path)
        except BaseException:
            passing.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
