"""Runs from file to file that are killed again and again end as uninterrupted ones.

``STREAMFLOW_TEST_KILLS=200 pytest tests/chaos -rP`` runs the long form of all tests of this folder
and shows what the processes were at when they were killed. A failure shows the seed;
``STREAMFLOW_TEST_SEED`` repeats what is random in the data and in the choice of moments.
"""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from tests.chaos.outcomes import differences, letters, outcome
from tests.chaos.processes import IS_LONG, PATIENCE, SHARE, Job, chance_of, ended, kill_often

EVERY = 100
RECORDS = EVERY * (4 + 4 * SHARE)

SORTER = """
    network: [{Linear: [3, 8]}, Tanh, {Dropout: 0.1}, {Linear: [8, 2]}]
    features: [a, b, c]
    target: kind
    loss: cross_entropy
    optimizer: {Adam: {lr: 0.01}}
    stages: ["2"]
    executor: threads
    compile: false
"""

FORECAST = """
    network: [{Linear: [2, 4]}, ReLU, {Linear: [4, 1]}],
    features: [a, b], target: c, horizon: 3,
    loss: mse, standardize_target: true, compile: false
"""

ONE_SOURCE = f"""
version: 1
name: one
checkpoint: {{path: checkpoints, every: {EVERY}, keep: 2}}
failure_budget: {{fraction: 0.5}}
sources: {{readings: {{type: file, path: ../readings.csv}}}}
operators:
  scaled: {{type: standardize, inputs: [readings], fields: [a, b]}}
models:
  sorter:
    inputs: [scaled]
{SORTER}
  forecast: {{inputs: [scaled], {FORECAST}}}
sinks:
  kinds: {{type: file, inputs: [sorter], path: kinds.jsonl}}
  horizons: {{type: file, inputs: [forecast], path: horizons.csv.gz}}
dead_letter: {{type: file, path: dead.jsonl}}
"""

TWO_SOURCES = f"""
version: 1
name: two
checkpoint: {{path: checkpoints, every: {EVERY}, keep: 2}}
failure_budget: {{fraction: 0.5}}
sources:
  readings: {{type: file, path: ../readings.csv}}
  others: {{type: file, path: ../others.csv}}
operators:
  scaled: {{type: standardize, inputs: [others], fields: [a, b]}}
models:
  sorter:
    inputs: [readings, scaled]
    merge: round_robin
{SORTER}
  forecast: {{inputs: [scaled], {FORECAST}}}
sinks:
  kinds: {{type: file, inputs: [sorter], path: kinds.jsonl}}
  packed: {{type: file, inputs: [sorter], path: packed.jsonl.gz}}
  horizons: {{type: file, inputs: [forecast], path: horizons.csv.gz}}
dead_letter: {{type: file, path: dead.jsonl}}
"""

GRAPHS = [
    pytest.param(TWO_SOURCES, id="two-sources"),
    pytest.param(
        ONE_SOURCE,
        id="one-source",
        marks=pytest.mark.skipif(not IS_LONG, reason="is a part of the long form"),
    ),
]

STEP = 150 * EVERY  # bytes of output, about


def write_readings(path: Path, chance: random.Random, count: int) -> None:
    lines = ["a,b,c,kind"]
    for n in range(count):
        a, b, c = chance.gauss(0, 1), chance.gauss(5, 2), chance.gauss(0, 1)
        third = "" if n % 17 == 3 else f"{c:.6f}"  # a dead letter
        lines.append(f"{a:.6f},{b:.6f},{third},{int(a + c > 0)}")
    path.write_text("\n".join(lines) + "\n")


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def prepare(folder: Path, graph: str) -> Job:
    folder.mkdir()
    (folder / "graph.yaml").write_text(graph)
    return Job(folder / "graph.yaml", folder / "kinds.jsonl", folder / "checkpoints")


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path: Path, graph: str) -> None:
    chance = chance_of(graph)
    write_readings(tmp_path / "readings.csv", chance, RECORDS)
    write_readings(tmp_path / "others.csv", chance, RECORDS // 2 + 7)
    whole, broken = prepare(tmp_path / "whole", graph), prepare(tmp_path / "broken", graph)
    uninterrupted = whole.start()
    kill_often(broken, chance, STEP)
    assert ended(uninterrupted) == 0, whole.log
    broken.run()
    broken.run()  # which adds nothing
    assert broken.progress.read_bytes() == whole.progress.read_bytes()
    for path in whole.folder.glob("*.gz"):
        assert unpacked(broken.folder / path.name) == unpacked(path)
    assert letters(broken.folder / "dead.jsonl") == letters(whole.folder / "dead.jsonl")
    assert differences(outcome(broken), outcome(whole)) == []
