"""The main job through a real topic: in, learned, out, stopped half-way and continued.

STREAMFLOW_TEST_CSV=elec.csv runs it on the whole of a file instead of made-up readings.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kafka.clients import Cluster, committed, consume

pytestmark = pytest.mark.kafka

FIELDS = ["nswprice", "nswdemand", "vicprice", "vicdemand", "transfer", "class"]

LEARNING = """
  direction:
    inputs: [readings]
    network: [{Linear: [5, 64]}, ReLU, {Linear: [64, 2]}]
    features: [nswprice, nswdemand, vicprice, vicdemand, transfer]
    target: class
    loss: cross_entropy
    optimizer: {SGD: {lr: 0.05}}
    compile: false
"""


def readings() -> Iterator[dict[str, Any]]:
    if path := os.environ.get("STREAMFLOW_TEST_CSV"):
        with Path(path).open(newline="") as file:
            for row in csv.DictReader(file):
                yield {name: row[name] for name in FIELDS}
        return
    rng = random.Random(0)
    for _ in range(8000):  # more than what is in flight at once
        values = [rng.random() for _ in FIELDS[:-1]]
        yield dict(zip(FIELDS, [*values, int(sum(values) > 2.5)], strict=True))


def write_graphs(folder: Path, broker: str, topic_in: str, topic_out: str) -> int:
    """Write the data, a graph from file to file, one into the topic, one from topic to topic."""
    count = 0
    with (folder / "readings.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in readings():
            writer.writerow(row)
            count += 1
    kafka = f"type: kafka, bootstrap_servers: '{broker}'"
    source = "  readings: {type: file, path: readings.csv}"
    (folder / "file.yaml").write_text(
        f"name: file\nsources:\n{source}\nmodels:{LEARNING}"
        "sinks:\n  out: {type: file, inputs: [direction], path: predictions.jsonl}\n"
    )
    (folder / "fill.yaml").write_text(
        f"name: fill\nsources:\n{source}\n"
        f"sinks:\n  topic: {{{kafka}, inputs: [readings], topic: {topic_in}}}\n"
    )
    (folder / "kafka.yaml").write_text(
        f"name: kafka\nsources:\n"
        f"  readings: {{{kafka}, topics: [{topic_in}], group: learners, stop_at_end: true}}\n"
        f"models:{LEARNING}"
        f"sinks:\n  out: {{{kafka}, inputs: [direction], topic: {topic_out}}}\n"
    )
    return count


def start(graph: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "streamflow", "run", str(graph), "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], str]:
    """Return the report and the log of a run that must end with ``code``."""
    output, log = process.communicate(timeout=600)
    assert process.returncode == code, log
    report: dict[str, Any] = json.loads(output)
    return report, log


@pytest.mark.asyncio
@pytest.mark.timeout(900)
async def test_topic_to_topic_equals_file_to_file_and_continues_after_a_signal(
    tmp_path: Path, cluster: Cluster
) -> None:
    topic_in, topic_out = await cluster.create_topic(), await cluster.create_topic()
    count = write_graphs(tmp_path, cluster.address, topic_in, topic_out)
    finish(start(tmp_path / "file.yaml"))
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in lines]
    assert [record["source"]["line"] for record in expected] == list(range(1, count + 1))
    finish(start(tmp_path / "fill.yaml"))

    report, log = finish(start(tmp_path / "kafka.yaml"))
    assert report["received"] == report["delivered"] == count
    assert log.count("fresh weights") == 1
    found = [
        json.loads(record.value) for record in await consume(cluster.address, topic_out, count)
    ]
    assert [record["scores"] for record in found] == [record["scores"] for record in expected]
    assert [record["source"]["offset"] for record in found] == list(range(count))
    assert await committed(cluster.address, "learners", topic_in) == count

    second_out = await cluster.create_topic()
    options = (
        "--set",
        "sources.readings.group=stopped",
        "--set",
        f"sinks.out.topic={second_out}",
    )
    process = start(tmp_path / "kafka.yaml", *options)
    await consume(cluster.address, second_out, count // 10)
    process.send_signal(signal.SIGTERM)
    stopped, _ = finish(process, 128 + signal.SIGTERM)
    assert count // 10 <= stopped["delivered"] < count
    assert await committed(cluster.address, "stopped", topic_in) == stopped["delivered"]
    continued, _ = finish(start(tmp_path / "kafka.yaml", *options))
    assert stopped["delivered"] + continued["delivered"] == count
    found = [
        json.loads(record.value) for record in await consume(cluster.address, second_out, count)
    ]
    assert [record["source"]["offset"] for record in found] == list(range(count))
