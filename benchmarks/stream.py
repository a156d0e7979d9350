"""The whole way, from a stream to predictions: how fast, how soon, at what price?

    python benchmarks/stream.py [RECORDS] [ROUNDS] [HOST:PORT]

A 16-32-1 network learns a stream online, from a csv file to a jsonl file and from a Kafka topic to
a Kafka topic: as a graph, and in the loop that one would write by hand around csv, json, aiokafka
and an eager PyTorch step. Each job has a process of its own; they take turns, and their medians
count. Then both Kafka jobs get 500 records a second, and each prediction is timed from sending its
record to receiving it. Without HOST:PORT the broker is the embedded one, which holds 25,000 such
records.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import anyio
import orjson
import torch
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from torch import nn
from torch.nn import functional as F

from streamflow import Graph, Model
from streamflow_connectors.embedded_kafka import EmbeddedKafka
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.kafka import KafkaSink, KafkaSource

FEATURES = [f"x{index}" for index in range(16)]
LEARNING_RATE = 0.01
PACE = 500  # records a second while latencies are taken
PACED_RECORDS = 5000
LAYERS = [{"Linear": [16, 32]}, "ReLU", {"Linear": [32, 1]}]


def readings(count: int) -> Iterator[dict[str, float]]:
    """Yield records of 16 numbers, and a target that depends on them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(0, count, 1000):
        for row in torch.randn(min(count, 1000), 16, generator=generator).tolist():
            yield dict(zip(FEATURES, row, strict=True)) | {"y": sum(row) / 4}


class Step:
    """One eager step of online learning, in the fewest calls."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=LEARNING_RATE)

    def __call__(self, record: dict[str, Any]) -> float:
        """Return the prediction for a record, then learn it."""
        x = torch.tensor([[float(record[name]) for name in FEATURES]])
        self._optimizer.zero_grad()
        output = self._net(x)
        loss = F.mse_loss(output, torch.tensor([[float(record["y"])]]))
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(output.detach())


def model(**options: Any) -> Model:
    """Return the same as a node."""
    return Model(
        inputs=["in"],
        network=LAYERS,
        features=FEATURES,
        target="y",
        optimizer={"SGD": {"lr": LEARNING_RATE}},
        **options,
    )


def file_loop(source: str, sink: str, count: int) -> None:
    """Learn a csv file by hand."""
    step = Step()
    with open(source, newline="") as rows, open(sink, "w") as out:
        for record in csv.DictReader(rows):
            out.write(json.dumps({"prediction": step(record)}) + "\n")


def file_graph(source: str, sink: str, count: int) -> None:
    """Learn a csv file as a graph."""
    graph = Graph(
        name="files",
        sources={"in": FileSource(path=source)},
        models={"m": model()},
        sinks={"out": FileSink(inputs=["m"], path=sink)},
    )
    anyio.run(run_to_end, graph)


async def run_to_end(graph: Graph) -> None:
    """Run a graph until its streams end, or the process is told to stop."""
    async with graph.open() as run, anyio.create_task_group() as tasks:

        async def stop_when_told() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    await run.stop()

        tasks.start_soon(stop_when_told)
        await run.wait()
        tasks.cancel_scope.cancel()


def kafka_loop(source: str, sink: str, count: int) -> None:
    """Learn a topic by hand; ``source`` is HOST:PORT/TOPIC."""
    address, topic = source.split("/")

    async def main() -> None:
        step = Step()
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=address, auto_offset_reset="earliest", fetch_max_wait_ms=100
        )
        producer = AIOKafkaProducer(
            bootstrap_servers=address, enable_idempotence=True, max_batch_size=2**17, linger_ms=5
        )
        done = 0
        async with consumer, producer:
            while done < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        value = orjson.loads(record.value)
                        output = {"prediction": step(value), "sent": value.get("sent")}
                        await producer.send(sink, orjson.dumps(output))
                        done += 1
            await producer.flush()

    asyncio.run(main())


def kafka_graph(source: str, sink: str, count: int) -> None:
    """Learn a topic as a graph, to the end of the topic, or until told if nothing is there yet."""
    address, topic = source.split("/")
    is_live = count == PACED_RECORDS
    graph = Graph(
        name="topics",
        sources={
            "in": KafkaSource(
                bootstrap_servers=address, topics=[topic], group=topic, stop_at_end=not is_live
            )
        },
        models={"m": model(carry=["sent"] if is_live else [])},
        sinks={"out": KafkaSink(inputs=["m"], bootstrap_servers=address, topic=sink)},
    )
    anyio.run(run_to_end, graph)


JOBS: dict[str, Callable[[str, str, int], None]] = {
    job.__name__: job for job in (file_loop, file_graph, kafka_loop, kafka_graph)
}


def do(job: str, source: str, sink: str, count: int) -> None:
    """Do a job in this process, and print what it took as JSON."""
    torch.set_num_threads(1)
    started, cpu = time.perf_counter(), time.process_time()
    JOBS[job](source, sink, count)
    taken = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(taken))


def started(job: str, source: str, sink: str, count: int) -> subprocess.Popen[str]:
    """Start a job in a process of its own."""
    command = [sys.executable, __file__, "--job", job, source, sink, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a job, and return what it took."""
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(f"a job ended with {process.returncode}")
    taken: dict[str, float] = json.loads(out.splitlines()[-1])
    return taken


async def fill(address: str, topic: str, count: int) -> None:
    """Send the stream to a topic."""
    producer = AIOKafkaProducer(bootstrap_servers=address, linger_ms=5, max_batch_size=2**17)
    async with producer:
        for record in readings(count):
            await producer.send(topic, orjson.dumps(record), partition=0)


async def latencies(address: str, job: str) -> list[float]:
    """Return the seconds from sending each record of a paced stream to its prediction, sorted."""
    topic, out = f"paced-{uuid4().hex}", f"paced-{uuid4().hex}"
    await fill(address, topic, 1)  # makes the topic
    await fill(address, out, 1)
    consumer = AIOKafkaConsumer(
        out, bootstrap_servers=address, auto_offset_reset="earliest", fetch_max_wait_ms=10
    )
    producer = AIOKafkaProducer(bootstrap_servers=address)
    process = started(job, f"{address}/{topic}", out, PACED_RECORDS)
    found: list[float] = []

    async def send() -> None:
        start = time.perf_counter()
        for index, record in enumerate(readings(PACED_RECORDS)):
            await asyncio.sleep(max(0.0, start + index / PACE - time.perf_counter()))
            value = orjson.dumps(record | {"sent": time.perf_counter()})
            await producer.send(topic, value, partition=0)

    async with consumer, producer:
        ready = 0
        while not ready:  # the first record, which is not timed, shows that the job is running
            ready = sum(
                b"prediction" in record.value
                for records in (await consumer.getmany(timeout_ms=100)).values()
                for record in records
            )
        sending = asyncio.create_task(send())
        while len(found) < PACED_RECORDS - 1:
            batches = await consumer.getmany(timeout_ms=100)
            now = time.perf_counter()
            for records in batches.values():
                found += [now - orjson.loads(record.value)["sent"] for record in records]
        await sending
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait)
    return sorted(found)


def main(count: int, rounds: int, address: str | None) -> None:
    """Do all jobs in turn, and print how they compare."""
    broker: AbstractContextManager[str] = nullcontext(address) if address else embedded()
    with tempfile.TemporaryDirectory() as folder, broker as servers:
        path, out = Path(folder) / "in.csv", os.path.join(folder, "out.jsonl")
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*FEATURES, "y"])
            writer.writeheader()
            writer.writerows(readings(count))
        topic, sink = f"in-{uuid4().hex}", f"out-{uuid4().hex}"
        asyncio.run(fill(servers, topic, count))
        places = {"file": (str(path), out), "kafka": (f"{servers}/{topic}", sink)}
        taken: dict[str, list[dict[str, float]]] = {job: [] for job in JOBS}
        for _ in range(rounds):
            for job, results in taken.items():
                results.append(finished(started(job, *places[job.split("_")[0]], count)))
        print(f"{'':14}{'records/s':>12}{'CPU s per million':>20}{'MiB':>8}{'ratio':>8}")
        for job, results in taken.items():
            rate = count / median(item["seconds"] for item in results)
            by_hand = taken[f"{job.split('_')[0]}_loop"]
            ratio = median(
                loop["seconds"] / item["seconds"]
                for loop, item in zip(by_hand, results, strict=True)
            )
            cpu = median(item["cpu"] for item in results) / count * 1e6
            mib = median(item["mib"] for item in results)
            print(f"{job:14}{rate:>12,.0f}{cpu:>20,.0f}{mib:>8,.0f}{ratio:>8.2f}")
        for job in ("kafka_loop", "kafka_graph"):
            times = [seconds * 1000 for seconds in asyncio.run(latencies(servers, job))]
            middle, high = times[len(times) // 2], times[len(times) * 99 // 100]
            print(f"{job} at {PACE}/s: latency p50 {middle:.1f} ms, p99 {high:.1f} ms")


@contextmanager
def embedded() -> Iterator[str]:
    """Give the address of an embedded broker."""
    with EmbeddedKafka() as broker:
        yield broker.address


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--job"]:
        name, where_from, where_to, number = arguments[1:]
        do(name, where_from, where_to, int(number))
    else:
        main(
            int(arguments[0]) if arguments else 20_000,
            int(arguments[1]) if len(arguments) > 1 else 3,
            arguments[2] if len(arguments) > 2 else None,
        )
