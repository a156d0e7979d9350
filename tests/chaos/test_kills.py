"""A run that is killed again and again ends with the very same weights and output.

A short part runs by default; ``STREAMFLOW_TEST_KILLS=200 pytest tests/chaos`` runs a long one. The
seed is printed; ``STREAMFLOW_TEST_SEED`` repeats it.
"""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamflow.checkpoints import reading

KILLS = int(os.environ.get("STREAMFLOW_TEST_KILLS", "4"))
SEED = int(os.environ.get("STREAMFLOW_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
EVERY = 150
RECORDS = max(3000, KILLS * EVERY)

GRAPH = """
version: 1
name: chaos
checkpoint: {path: checkpoints, every: 150, keep: 2}
failure_budget: {fraction: 0.5}
sources: {readings: {type: file, path: ../readings.csv}}
operators:
  scaled: {type: standardize, inputs: [readings], fields: [a, b]}
models:
  sorter:
    inputs: [scaled]
    network: [{Linear: [3, 8]}, Tanh, {Dropout: 0.1}, {Linear: [8, 2]}]
    features: [a, b, c]
    target: kind
    loss: cross_entropy
    optimizer: {Adam: {lr: 0.01}}
    stages: ["2"]
    executor: threads
    compile: false
  forecast:
    inputs: [scaled]
    network: [{Linear: [2, 4]}, ReLU, {Linear: [4, 1]}]
    features: [a, b]
    target: c
    horizon: 3
    loss: mse
    standardize_target: true
    compile: false
sinks:
  kinds: {type: file, inputs: [sorter], path: kinds.jsonl, format: jsonl}
  packed: {type: file, inputs: [forecast], path: forecast.csv.gz, format: csv}
dead_letter: {type: file, path: dead.jsonl, format: jsonl}
"""


def write_readings(path: Path) -> None:
    chance = random.Random(SEED)
    lines = ["a,b,c,kind"]
    for n in range(RECORDS):
        a, b, c = chance.gauss(0, 1), chance.gauss(5, 2), chance.gauss(0, 1)
        third = "" if n % 17 == 3 else f"{c:.6f}"
        lines.append(f"{a:.6f},{b:.6f},{third},{int(a + c > 0)}")
    path.write_text("\n".join(lines) + "\n")


def start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "streamflow", "run", str(folder / "graph.yaml")],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def prepare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "graph.yaml").write_text(GRAPH)
    return folder


def size(folder: Path) -> int:
    path = folder / "kinds.jsonl"
    return path.stat().st_size if path.exists() else 0


def kill_after(process: subprocess.Popen[bytes], folder: Path, growth: int) -> bool:
    """Kill a run when its output has grown so much; return whether it had not ended before."""
    seen = size(folder)
    goal = None
    while process.poll() is None:
        now = size(folder)
        if goal is None and now != seen:  # it has cut its output back, or begun to write
            goal = now + growth
        if goal is not None and now >= goal:
            process.kill()
            process.wait()
            return True
        time.sleep(0.002)
    return False


def learned(folder: Path) -> dict[str, dict[str, Any]]:
    newest = reading.newest(folder / "checkpoints")
    assert newest is not None
    return {name: newest.state(name) for name in newest.manifest.states}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, np.ndarray):
        return [] if np.array_equal(one, other, equal_nan=True) else [where]
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        return [d for key in one for d in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other), where
        pairs = enumerate(zip(one, other, strict=True))
        return [d for n, (a, b) in pairs for d in differences(a, b, f"{where}[{n}]")]
    return [] if one == other or (one != one and other != other) else [where]


def letters(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "dead.jsonl").read_text().splitlines()]
    return [{key: value for key, value in letter.items() if key != "time"} for letter in found]


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * (KILLS + 3))
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    print(f"STREAMFLOW_TEST_SEED={SEED} STREAMFLOW_TEST_KILLS={KILLS}")  # noqa: T201
    chance = random.Random(SEED)
    write_readings(tmp_path / "readings.csv")
    whole, broken = prepare(tmp_path / "whole"), prepare(tmp_path / "broken")
    assert start(whole).wait() == 0, (whole / "log").read_text()
    line = size(whole) // RECORDS
    kills = 0
    while kills < KILLS:
        process = start(broken)
        if not kill_after(process, broken, chance.randrange(2 * EVERY) * line):
            assert process.returncode == 0, (broken / "log").read_text()
            break
        kills += 1
    assert start(broken).wait() == 0, (broken / "log").read_text()
    assert start(broken).wait() == 0, (broken / "log").read_text()  # once more adds nothing
    assert kills > 0
    assert (broken / "kinds.jsonl").read_bytes() == (whole / "kinds.jsonl").read_bytes()
    packed = [gzip.decompress((f / "forecast.csv.gz").read_bytes()) for f in (broken, whole)]
    assert packed[0] == packed[1]
    assert letters(broken) == letters(whole)
    assert differences(learned(broken), learned(whole)) == []
