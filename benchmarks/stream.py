"""The whole way, from a stream to predictions: how fast, how soon, at what price?

    python benchmarks/stream.py [--records N] [--rounds N] [--broker HOST:PORT] [JOB ...]

A 16-32-1 network learns a stream online, one update per record: from a csv file to a jsonl file,
and from a Kafka topic to a Kafka topic. Each way is gone in the loop that one would write by hand
around csv, json, aiokafka and an eager PyTorch step, and as a graph that learns eagerly or by
compiled code. Each job has a process of its own; they take turns, and medians over the rounds
count; how far the rounds are apart shows how much the machine varies. What is compiled is on disk
before anything is measured, and the first quarter of a job's records is not measured: it pays for
starting up. Jobs with compiled code get `LONGER` times as many records.

Then the same jobs get 500 records a second, through pipes and through topics, and each prediction
is timed from sending its record to receiving it. Without --broker the broker is the embedded one,
which keeps 5 MB a partition, and has four.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any
from uuid import uuid4

import anyio
import orjson
import torch
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from torch import nn
from torch.nn import functional as F

from streamflow import Graph, Model
from streamflow.runtime.run import Run
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from streamflow_connectors.files import FileSink, FileSource
from streamflow_connectors.kafka import KafkaSink, KafkaSource

FEATURES = [f"x{index}" for index in range(16)]
FIELDS = [*FEATURES, "y", "sent"]
LEARNING_RATE = 0.01
LONGER = 5
PACE = 500  # records a second while latencies are taken
PACED_RECORDS = 2500
UNTIMED_RECORDS = 500  # of them, at the beginning
LOOK_SECONDS = 0.1  # a look takes a millisecond of the job
LAYERS = [{"Linear": [16, 32]}, "ReLU", {"Linear": [32, 1]}]


@dataclass(frozen=True)
class Job:
    """What a process is to do.

    Attributes:
        kind: ``file`` or ``kafka``.
        way: ``loop``, or a graph: ``eager`` or ``compiled``.
        source: A path, - for standard input, or a topic.
        sink: Likewise.
        count: Records until the end; for a stream that waits for more, 0.
        broker: HOST:PORT.
    """

    kind: str
    way: str
    source: str
    sink: str
    count: int
    broker: str


@dataclass(frozen=True)
class Moment:
    """How far a job is at a time.

    Attributes:
        done: Records that have a prediction.
        time: Seconds, of a clock.
        cpu: Seconds that its process has computed.
    """

    done: int
    time: float
    cpu: float

    @classmethod
    def now(cls, done: int) -> Moment:
        """Return this moment."""
        return cls(done, time.perf_counter(), time.process_time())


class Meter:
    """What a job takes after the first quarter of its records.

    Who looks now and then sees the end late, so that the last look before it counts.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._begin: Moment | None = None
        self._last: Moment | None = None
        self.taken: dict[str, float] = {}

    def look(self, done: int) -> None:
        """Say how many records have a prediction by now."""
        if self._begin is None and 4 * done >= self._count:
            self._begin = Moment.now(done)
        elif self._begin is not None and done < self._count:
            self._last = Moment.now(done)
        if self._begin is not None and done >= self._count and not self.taken:
            last = self._last or Moment.now(done)
            count = last.done - self._begin.done
            self.taken = {
                "rate": count / (last.time - self._begin.time),
                "cpu": (last.cpu - self._begin.cpu) / count * 1e6,
                "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }


class Step:
    """One eager step of online learning, in the fewest calls."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=LEARNING_RATE)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return what goes on for a record, then learn it."""
        x = torch.tensor([[float(record[name]) for name in FEATURES]])
        self._optimizer.zero_grad()
        output = self._net(x)
        loss = F.mse_loss(output, torch.tensor([[float(record["y"])]]))
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return {"prediction": float(output.detach()), "sent": float(record["sent"])}


def file_loop(job: Job, meter: Meter) -> None:
    """Learn a csv file by hand."""
    step = Step()
    live = job.source == "-"
    with (
        open(0 if live else job.source, newline="") as rows,
        open(1 if live else job.sink, "w", buffering=1 if live else -1) as out,
    ):
        for number, record in enumerate(csv.DictReader(rows), start=1):
            out.write(json.dumps(step(record)) + "\n")
            meter.look(number)


async def kafka_loop(job: Job, meter: Meter) -> None:
    """Learn a topic by hand."""
    step = Step()
    consumer = AIOKafkaConsumer(
        job.source,
        bootstrap_servers=job.broker,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=job.broker, enable_idempotence=True, max_batch_size=2**17, linger_ms=5
    )
    done = 0
    async with consumer, producer:
        while not job.count or done < job.count:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    output = step(orjson.loads(record.value))
                    await producer.send(job.sink, orjson.dumps(output))
                    done += 1
                    meter.look(done)
        await producer.flush()


def graph(job: Job) -> Graph:
    """Return the same as a graph."""
    source: FileSource | KafkaSource
    sink: FileSink | KafkaSink
    if job.kind == "file":
        source = FileSource(path=job.source, format="csv")
        sink = FileSink(inputs=["m"], path=job.sink, format="jsonl")
    else:
        source = KafkaSource(
            bootstrap_servers=job.broker,
            topics=[job.source],
            group=f"bench-{uuid4().hex}",
            stop_at_end=bool(job.count),
        )
        sink = KafkaSink(inputs=["m"], bootstrap_servers=job.broker, topic=job.sink)
    model = Model(
        inputs=["in"],
        network=LAYERS,
        features=FEATURES,
        target="y",
        optimizer={"SGD": {"lr": LEARNING_RATE}},
        compile=job.way == "compiled",
        carry=["sent"],
    )
    return Graph(name="bench", sources={"in": source}, models={"m": model}, sinks={"out": sink})


async def run_graph(job: Job, meter: Meter) -> None:
    """Run the graph until its stream ends, or the process is told to stop."""
    async with graph(job).open() as run, anyio.create_task_group() as tasks:
        tasks.start_soon(stop_when_told, run)
        tasks.start_soon(look_regularly, run, meter)
        await run.wait()
        meter.look(run.stats().delivered)
        tasks.cancel_scope.cancel()


async def stop_when_told(run: Run) -> None:
    """End the run at a signal."""
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            await run.stop()


async def look_regularly(run: Run, meter: Meter) -> None:
    """Tell a meter how far the run is."""
    while True:
        meter.look(run.stats().delivered)
        await anyio.sleep(LOOK_SECONDS)


def do(job: Job) -> None:
    """Do a job in this process, and print what it took as JSON if it has an end."""
    torch.set_num_threads(1)
    meter = Meter(job.count or sys.maxsize)
    if job.way != "loop":
        anyio.run(run_graph, job, meter)
    elif job.kind == "file":
        file_loop(job, meter)
    else:
        asyncio.run(kafka_loop(job, meter))
    if job.count:
        print(json.dumps(meter.taken))


def started(job: Job) -> subprocess.Popen[bytes]:
    """Start a job in a process of its own."""
    command = [sys.executable, __file__, "--do", json.dumps(asdict(job))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for a job, and return what it took."""
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(f"a job ended with {process.returncode}")
    taken: dict[str, float] = json.loads(out.splitlines()[-1])
    return taken


def readings(count: int) -> Iterator[dict[str, float]]:
    """Yield records of 16 numbers, and a target that depends on them."""
    generator = torch.Generator().manual_seed(0)
    for first in range(0, count, 1000):
        rows = torch.randn(min(count - first, 1000), 16, generator=generator).tolist()
        for row in rows:
            short = [round(value, 3) for value in row]
            yield dict(zip(FEATURES, short, strict=True)) | {"y": round(sum(row) / 4, 3), "sent": 0}


async def paced() -> AsyncIterator[dict[str, float]]:
    """Yield records at their times, with the time."""
    start = time.perf_counter()
    for number, record in enumerate(readings(PACED_RECORDS)):
        await asyncio.sleep(max(0.0, start + number / PACE - time.perf_counter()))
        yield record | {"sent": time.perf_counter()}


async def fill(broker: str, topic: str, count: int) -> None:
    """Send the stream to the four partitions of a topic in turn."""
    producer = AIOKafkaProducer(bootstrap_servers=broker, linger_ms=5, max_batch_size=2**17)
    async with producer:
        for number, record in enumerate(readings(count)):
            await producer.send(topic, orjson.dumps(record), partition=number % 4)


async def file_latencies(way: str) -> list[float]:
    """Return the seconds from writing each row into a pipe to its prediction."""
    process = started(Job("file", way, "-", "-", 0, ""))
    assert process.stdin is not None
    assert process.stdout is not None
    pipe, answers = process.stdin, process.stdout

    def receive() -> list[float]:
        return [time.perf_counter() - orjson.loads(line)["sent"] for line in answers]

    write_row(pipe, FIELDS)
    write_row(pipe, next(readings(1)).values())
    await asyncio.to_thread(answers.readline)  # the first record shows that the job is running
    receiving = asyncio.create_task(asyncio.to_thread(receive))
    async for record in paced():
        write_row(pipe, record.values())
    pipe.close()
    found = await receiving
    await asyncio.to_thread(process.wait)
    return found


def write_row(pipe: IO[bytes], cells: Iterable[object]) -> None:
    """Write a row of csv at once."""
    pipe.write((",".join(map(str, cells)) + "\n").encode())
    pipe.flush()


async def kafka_latencies(broker: str, way: str) -> list[float]:
    """Return the seconds from sending each record to receiving its prediction."""
    topic, out = f"paced-{uuid4().hex}", f"paced-{uuid4().hex}"
    await fill(broker, topic, 1)  # makes the topic
    await fill(broker, out, 1)
    consumer = AIOKafkaConsumer(
        out, bootstrap_servers=broker, auto_offset_reset="earliest", fetch_max_wait_ms=10
    )
    producer = AIOKafkaProducer(bootstrap_servers=broker)
    process = started(Job("kafka", way, topic, out, 0, broker))

    async def receive() -> list[float]:
        batches = await consumer.getmany(timeout_ms=100)
        now = time.perf_counter()
        values = [orjson.loads(item.value) for batch in batches.values() for item in batch]
        return [now - value["sent"] for value in values if "prediction" in value]

    async def send() -> None:
        async for record in paced():
            await producer.send(topic, orjson.dumps(record), partition=0)

    async with consumer, producer:
        while not await receive():  # the first record shows that the job is running
            pass
        sending = asyncio.create_task(send())
        found: list[float] = []
        while len(found) < PACED_RECORDS:
            found += await receive()
        await sending
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait)
    return found


def measure(
    names: Sequence[str], count: int, rounds: int, broker: str, folder: Path
) -> dict[str, list[dict[str, float]]]:
    """Do all jobs in turn, after one turn of what compiles."""
    path, topics = folder / "in.csv", {1: f"in-{uuid4().hex}", LONGER: f"in-{uuid4().hex}"}
    for factor, topic in topics.items():
        with path.with_suffix(f".{factor}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(readings(count * factor))
        asyncio.run(fill(broker, topic, count * factor))

    def job(name: str) -> Job:
        kind, way = name.split("-")
        factor = LONGER if way == "compiled" else 1
        places = str(path.with_suffix(f".{factor}.csv")), str(folder / "out.jsonl")
        source, sink = (topics[factor], "out") if kind == "kafka" else places
        return Job(kind, way, source, sink, count * factor, broker)

    for name in names:
        if name.endswith("compiled"):
            finished(started(job(name)))
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, results in taken.items():
            results.append(finished(started(job(name))))
    return taken


def main() -> None:
    """Do all jobs, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [f"{kind}-{way}" for kind in ("file", "kafka") for way in ("loop", "eager", "compiled")]
    parser.add_argument("jobs", nargs="*", default=names, metavar="JOB", help=", ".join(names))
    parser.add_argument("--records", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--broker")
    parser.add_argument("--do", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do:
        do(Job(**json.loads(arguments.do)))
        return
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as embedded:
        broker = arguments.broker or embedded.address
        taken = measure(arguments.jobs, arguments.records, arguments.rounds, broker, Path(folder))
        print("| | records/s | ratio | of rounds | CPU s per million | MiB | p50, ms | p99, ms |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for name, results in taken.items():
            kind, way = name.split("-")
            latency = file_latencies(way) if kind == "file" else kafka_latencies(broker, way)
            times = sorted(asyncio.run(latency)[UNTIMED_RECORDS:])
            figures = {key: median(item[key] for item in results) for key in results[0]}
            by_hand = taken.get(f"{kind}-loop", results)
            ratios = sorted(
                item["rate"] / loop["rate"] for item, loop in zip(results, by_hand, strict=True)
            )
            middle, high = (1000 * times[len(times) * part // 100] for part in (50, 99))
            print(
                f"| {name} | {figures['rate']:,.0f} | {median(ratios):.2f} | "
                f"{ratios[0]:.2f} to {ratios[-1]:.2f} | {figures['cpu']:,.1f} | "
                f"{figures['mib']:,.0f} | {middle:.2f} | {high:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
