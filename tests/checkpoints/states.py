"""State trees and stores for the tests of checkpoints."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from streamflow.checkpoints import Identity, Snapshot, Store, open_store

IDENTITY = Identity("lines", {"sources": {}, "operators": {}, "models": {}})


def store_at(path: Path, keep: int = 3) -> AbstractContextManager[Store]:
    return open_store(path, identity=IDENTITY, keep=keep)


def snapshot(number: int, **states: Mapping[str, Any]) -> Snapshot:
    """Return a snapshot that tells its number in every part."""
    return Snapshot(
        records={"readings": number},
        positions={"readings": {(("path", "a.csv"),): number}},
        states=states or {"m": {"count": number, "weights": np.full(1000, number)}},
        marks={"out": {"bytes": number}},
    )


def number_of(found: Snapshot) -> int:
    """Return the number that every part of a snapshot tells."""
    state = found.states["m"]
    numbers = {
        *found.records.values(),
        *found.positions["readings"].values(),
        found.marks["out"]["bytes"],
        state["count"],
        *state["weights"].tolist(),
    }
    (number,) = numbers
    return int(number)
