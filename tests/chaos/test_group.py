"""Three processes in a group, killed at random: no record is lost, no model learns one twice.

Every model counts in its own state how often it has learned each record (`tests.chaos.tally`).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]

from streamflow.checkpoints import reading
from tests.chaos.processes import PATIENCE, SHARE, Job, Traces, chance_of, ended, kill
from tests.chaos.tally import RATE
from tests.kafka.clients import Cluster
from tests.kafka.server import Server

pytestmark = pytest.mark.kafka

INSTANCES = ("a", "b", "c")
PARTITIONS = 4
EVERY = 50
BURST = 50  # records sent to each partition before each kill
SIZE = BURST * (SHARE + 1)
"""Records of a partition; the n-th record of partition p has the number p * SIZE + n."""

STEP = 100 * EVERY  # bytes of output, about
LEFT_DEAD = 0.3
GIVEN_UP = re.compile(r"gives up partitions with (\d+) positions in flight")

Counts = npt.NDArray[np.float32]

GRAPH = """
version: 1
name: members
checkpoint: {{path: "state/{{instance}}", every: {every}, keep: 1000000}}
sources:
  readings:
    type: kafka
    bootstrap_servers: "{broker}"
    topics: [{topic_in}]
    group: {topic_out}
    session_timeout: 3
    max_poll_records: 20
models:
  learner:
    inputs: [readings]
    network: tests.chaos.tally:network
    features: [number, a, b]
    target: wanted
    task: regression
    loss: tests.chaos.tally:loss
    optimizer: {{SGD: {{lr: {rate}}}}}
    stages: ["1"]
    executor: threads
    compile: false
sinks:
  predictions:
    type: kafka
    inputs: [learner]
    bootstrap_servers: "{broker}"
    topic: {topic_out}
  history: {{type: file, inputs: [learner], path: "${{STREAMFLOW_INSTANCE}}.jsonl"}}
"""


@dataclass
class Member:
    """One of the processes.

    Attributes:
        job: What it runs.
        process: The run, which may be dead.
        before: What it found when it started.
    """

    job: Job
    process: ForkServerProcess
    before: Traces

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def restart(self) -> None:
        self.before = Traces.of(self.job)
        self.process = self.job.start()

    def stop(self) -> None:
        """Ask it to finish, and check that it does; if it has hardly begun, it ends at once."""
        self.process.terminate()
        assert ended(self.process) in (128 + signal.SIGTERM, -signal.SIGTERM), self.job.log


def member_job(graph: Path, name: str) -> Job:
    folder = graph.parent
    variables = {
        "STREAMFLOW_INSTANCE": name,
        "STREAMFLOW_TEST_TALLY": str(PARTITIONS * SIZE),
    }
    return Job(graph, folder / f"{name}.jsonl", folder / "state" / name, name, variables)


@contextmanager
def members(jobs: Sequence[Job]) -> Iterator[list[Member]]:
    """Start all processes; none is left when the block is."""
    started: list[Member] = []
    try:
        started.extend(Member(job, job.start(), Traces.of(job)) for job in jobs)
        yield started
    finally:
        for member in started:
            member.process.kill()
            member.process.join()


async def send(broker: str, topic: str, first: int, chance: random.Random) -> None:
    """Send a burst to each partition."""
    async with AIOKafkaProducer(bootstrap_servers=broker, linger_ms=20) as producer:
        sent = []
        for n in range(first, first + BURST):
            for part in range(PARTITIONS):
                a, b = chance.gauss(0, 1), chance.gauss(0, 1)
                record = {"number": part * SIZE + n, "a": a, "b": b, "wanted": [a - b, 0]}
                value = json.dumps(record).encode()
                sent.append(await producer.send(topic, value, partition=part))
        await asyncio.gather(*sent)


async def wait_for_all(broker: str, topic: str, group: Sequence[Member]) -> Counter[int]:
    """Wait until each record has been predicted; return how often each has been."""
    found: Counter[int] = Counter()
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=broker, auto_offset_reset="earliest", fetch_max_wait_ms=50
    ) as consumer:
        while len(found) < PARTITIONS * SIZE:
            for member in group:
                assert member.is_alive, member.job.log
            for records in (await consumer.getmany(timeout_ms=100)).values():
                found.update(number_of(json.loads(record.value)) for record in records)
    return found


def number_of(output: dict[str, Any]) -> int:
    source = output["source"]
    return int(source["partition"]) * SIZE + int(source["offset"])


def kill_members(
    group: list[Member], chance: random.Random, broker: str, topic: str
) -> Counter[str]:
    """Kill members and start them again, while records come; return what they were at."""
    phases: Counter[str] = Counter()
    for burst in range(SHARE):
        asyncio.run(send(broker, topic, burst * BURST, chance))
        victim = chance.choice([member for member in group if member.is_alive])
        assert kill(victim.job, victim.process, chance, STEP, patience=chance.uniform(0, 6))
        phases[Traces.of(victim.job).phase_since(victim.before)] += 1
        for member in group:
            if not member.is_alive and chance.random() >= LEFT_DEAD:
                member.restart()
        if not any(member.is_alive for member in group):
            victim.restart()
    asyncio.run(send(broker, topic, SHARE * BURST, chance))
    for member in group:
        if not member.is_alive:
            member.restart()
    return phases


def counts(checkpoint: reading.Checkpoint) -> tuple[Counts, Counts]:
    """Return how often a model has predicted each record, and how often it has learned it."""
    state = checkpoint.state("learner")["pipeline"]["module"]
    return state["0.seen"].numpy(), state["0.learned"].numpy() / RATE


def check_history(job: Job) -> tuple[Counts, list[set[int]]]:
    """Check that a model has never learned a record twice, by each of its checkpoints.

    Returns:
        What its last checkpoint has learned, and for each partition where checkpoints stood.
    """
    stood: list[set[int]] = [{0} for _ in range(PARTITIONS)]
    before: Counts = np.zeros(PARTITIONS * SIZE, np.float32)
    mark = 0
    for name in job.saved():
        checkpoint = reading.read(job.checkpoints / name)
        seen, learned = counts(checkpoint)
        assert set(np.unique(learned)) <= {0, 1}, name
        assert np.array_equal(seen, learned), name
        assert np.all(before <= learned), name
        assert checkpoint.manifest.records["readings"] == learned.sum(), name
        for place, position in checkpoint.manifest.positions["readings"].items():
            part = int(dict(place)["partition"])
            stood[part].add(position)
            assert not learned[part * SIZE + position : (part + 1) * SIZE].any(), name
        before = learned
        mark = checkpoint.manifest.marks["history"]["bytes"]
    # What lies behind it is cut off by the next run, which may not have lived to do so.
    lines = job.progress.read_bytes()[:mark].splitlines() if mark else []
    written = Counter(number_of(json.loads(line)) for line in lines)
    assert [written[number] for number in range(len(before))] == before.tolist()
    return before, stood


def starts_of(learned: Counts, part: int) -> set[int]:
    """Return the positions in a partition at which a model has begun to learn."""
    steps = np.diff(learned[part * SIZE : (part + 1) * SIZE], prepend=0)
    return set(np.flatnonzero(steps > 0).tolist())


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
def test_no_record_is_lost_and_none_learned_twice_by_a_model(
    tmp_path: Path, server: Server
) -> None:
    chance = chance_of("group")
    cluster = Cluster(server.address)
    topic_in = asyncio.run(cluster.create_topic(PARTITIONS))
    topic_out = asyncio.run(cluster.create_topic())
    places = {"broker": server.address, "topic_in": topic_in, "topic_out": topic_out}
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH.format(every=EVERY, rate=RATE, **places))
    jobs = [member_job(graph, name) for name in INSTANCES]
    with members(jobs) as group:
        phases = kill_members(group, chance, server.address, topic_in)
        predicted = asyncio.run(wait_for_all(server.address, topic_out, group))
        for member in group:
            member.stop()

    histories = [check_history(job) for job in jobs]
    models = np.sum([learned for learned, _ in histories], axis=0)
    given_up = sum(int(count) for job in jobs for count in GIVEN_UP.findall(job.log))
    by_models = {int(n): int(np.sum(models == n)) for n in np.unique(models)}
    print(f"killed {SHARE} times: {dict(phases)}")  # noqa: T201
    print(f"records by how many models have learned them: {by_models}")  # noqa: T201
    print(f"given up before a checkpoint: {given_up}")  # noqa: T201
    assert set(predicted) == set(range(PARTITIONS * SIZE))
    assert 0 not in by_models
    for part in range(PARTITIONS):
        stood = set.union(*(places[part] for _, places in histories))
        for learned, _ in histories:  # else it began where nobody had committed
            assert starts_of(learned, part) <= stood
    # A member that ends may have saved what it has not committed yet: two checkpoints' worth.
    ends = SHARE + len(group)
    assert models.sum() - len(models) <= given_up + 2 * EVERY * ends
