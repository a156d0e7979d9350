"""What runs leave behind, to be compared bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.chaos.processes import Job


def outcome(job: Job) -> dict[str, Any]:
    """Return all state of a job's newest checkpoint, and where its sources stand."""
    newest = job.newest()
    states = {name: newest.state(name) for name in newest.manifest.states}
    return {"records": dict(newest.manifest.records), **states}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return where two trees differ."""
    if type(one) is not type(other):
        return [where]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, np.ndarray):
        return [] if np.array_equal(one, other, equal_nan=True) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [where]
        return [d for key in one for d in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [where]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for n, (a, b) in pairs for d in differences(a, b, f"{where}[{n}]")]
    return [] if one == other or (one != one and other != other) else [where]


def letters(path: Path) -> list[dict[str, Any]]:
    """Return dead letters without the time at which each was written."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in letter.items() if key != "time"} for letter in found]
