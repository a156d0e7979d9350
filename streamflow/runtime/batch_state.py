"""Records that wait for a turn that has not come, as plain data for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from streamflow.records import Batch, Partition


def save_batch(batch: Batch) -> dict[str, Any]:
    """Return a batch as a state tree."""
    partitions = list(dict.fromkeys(batch.partitions))
    places = {partition: index for index, partition in enumerate(partitions)}
    return {
        "values": batch.values,
        "partitions": [astuple(partition) for partition in partitions],
        "of": [places[partition] for partition in batch.partitions],
        "offsets": list(batch.offsets),
        "keys": _listed(batch.keys),
        "timestamps_ms": _listed(batch.timestamps_ms),
        "headers": _listed(batch.headers),
        "originals": _listed(batch.originals),
        "size_bytes": batch.size_bytes,
    }


def load_batch(state: Mapping[str, Any]) -> Batch:
    """Return the batch that `save_batch` was given."""
    partitions = [Partition(*fields) for fields in state["partitions"]]
    return Batch(
        state["values"],
        [partitions[index] for index in state["of"]],
        state["offsets"],
        state["keys"],
        state["timestamps_ms"],
        state["headers"],
        state["originals"],
        state["size_bytes"],
    )


def _listed(column: Any) -> list[Any] | None:
    return None if column is None else list(column)
