"""Random graphs with random faults: nothing is committed before it is finished, all is in the end.

Every record is a number that tells where it comes from, and keeps it on all its ways. Whoever
handles a record after it was committed, or has not flushed it by then, is caught.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import anyio
import anyio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.checkpoints import Snapshot
from streamflow.contracts import Context, Processed, Processor
from streamflow.errors import CheckpointError, StreamflowError
from streamflow.graph import Graph
from streamflow.nodes import Operator
from streamflow.operators.deduplication import Deduplicate
from streamflow.operators.history import History
from streamflow.operators.joins import Join
from streamflow.operators.sampling import Sample
from streamflow.operators.step import Step
from streamflow.operators.throttling import Throttle
from streamflow.operators.windows import Window
from streamflow.records import Batch, Partition, concatenate, split_rejected
from streamflow.runtime.batch_state import load_batch, save_batch
from streamflow.runtime.run import Run, opened_run
from streamflow.runtime.starting import Checkpointing
from streamflow.testing import Gate, ListSink, ListSource

PLENTY = 20
OUTPUTS = ("even", "odd")
DOES = ("filter", "flat map", "reject", "hold", "window", "pass", "route")
FAULTS = ("source", "operator", "sink", "flush", "checkpoint", "abort", "stop")


@dataclass
class Watch:
    """Sees all that one run does, and says what is wrong with it."""

    covered: set[int] = field(default_factory=set)
    wrongs: list[str] = field(default_factory=list)
    sinks: list[ListSink] = field(default_factory=list)
    safe: Mapping[str, Mapping[Any, int]] | None = None
    held: set[int] = field(default_factory=set)
    num_handled: int = 0
    ends_at: int | None = None
    ending: str = ""
    run: Run | None = None
    tasks: Any = None

    def handled(self, node: str, number: int) -> None:
        if number in self.covered - self.held:
            self.wrongs.append(f"{node} handles {number}, which is committed")
        self.num_handled += 1
        if self.num_handled == self.ends_at and self.run is not None:
            if self.ending == "abort":
                self.run.abort()
            else:
                self.tasks.start_soon(stop, self.run)

    def is_safe(self, snapshot: Snapshot) -> None:
        """Take note of what may be committed, and of what waits at merges until later."""
        self.safe = snapshot.positions
        for name, state in snapshot.states.items():
            if name.endswith(":waiting"):
                for batches in state["waiting"].values():
                    self.held |= {
                        number for batch in batches for number in load_batch(batch).rows()
                    }

    def committed(self, name: str, numbers: list[int], positions: dict[Partition, int]) -> None:
        for partition, position in positions.items():
            [place] = [place for _, place in partition.place] or [0]
            count = 2 if partition.place else 1
            assert isinstance(place, int)
            self.covered |= set(numbers[place::count][:position])
            if self.safe is not None and self.safe[name].get(partition.place, 0) < position:
                self.wrongs.append(f"{name} commits {position}, which no checkpoint holds")
        for sink in self.sinks:
            waiting = sink.probe.records[sink.probe.num_delivered :]
            late = {number_of(record.value) for record in waiting} & (self.covered - self.held)
            if late:
                self.wrongs.append(f"{late} are committed before they are flushed")


async def stop(run: Run) -> None:
    with suppress(StreamflowError):
        await run.stop()


def number_of(value: Any) -> int:
    """Return the number of a record, or of a dead letter."""
    return int(value["original"] if isinstance(value, dict) else value)


class Commits(list[dict[Partition, int]]):
    """Tells of every commit."""

    def __init__(self, watch: Watch, name: str, numbers: list[int]) -> None:
        super().__init__()
        self._told = watch, name, numbers

    def append(self, positions: dict[Partition, int]) -> None:
        watch, name, numbers = self._told
        watch.committed(name, numbers, positions)
        super().append(positions)


class Turn(Operator):
    """Filters, multiplies, rejects, routes, keeps some records, waits, or does as a real one."""

    type: Literal["turn"] = "turn"
    does: str
    name: str
    watch: Watch
    error_at: int | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        return OUTPUTS if self.does == "route" else ()

    @contextmanager
    def open(self, context: Context) -> Iterator[Processor]:
        if self.does not in REAL:
            yield TurnStep(self)
            return
        with REAL[self.does].open(context) as step:
            yield RealStep(self, step)


REAL: Mapping[str, Operator] = {
    "deduplicate": Deduplicate(inputs=("in",), by="k", ttl=9, max_keys=3),
    "history": History(inputs=("in",), by="k", fields=("n",), length=2, current=False),
    "join": Join(inputs=("l", "r"), by="k", delay=5, ttl=8, fields=("k",), prefix="other_"),
    "sample": Sample(inputs=("in",), by="k", every=2),
    "throttle": Throttle(inputs=("in",), per=3, records=2),
    "real window": Window(inputs=("in",), by="k", size=4, delay=2, ttl=6, fields={"n": "max(n)"}),
}
"""Operators that remember, hold back and leave out, given numbers as records of their own."""


class RealStep(Step):
    """A real operator between numbers: each record is told by one that it came of.

    What does not come out at once is held, and may come when it is committed already.
    """

    def __init__(self, turn: Turn, step: Processor) -> None:
        self._turn = turn
        self._step = step
        self._held: set[int] = set()

    def process(self, batch: Batch) -> Processed:
        numbers = batch.rows()
        for number in numbers:
            self._turn.watch.handled(self._turn.name, number)
            if number == self._turn.error_at:
                message = "a fault"
                raise RuntimeError(message)
        values = [{"n": number, "k": number % 3} for number in numbers]
        times = [1000 * (number % 1000) for number in numbers]
        senders = ["r" if number % 4 == 0 else "l" for number in numbers]
        given = replace(batch, values=values, timestamps_ms=times, senders=senders)
        processed = self._plain(self._step.process(given))
        out = processed.batch.rows() if processed.batch else []
        self._hold(Counter(numbers) - Counter(out))
        return processed

    def end(self) -> Processed:
        return self._plain(self._step.end())

    def state(self) -> dict[str, Any]:
        return {"step": self._step.state(), "held": sorted(self._held)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._step.restore(state["step"])
        self._hold(state["held"])

    def _hold(self, numbers: Iterable[int]) -> None:
        self._held |= set(numbers)
        self._turn.watch.held |= self._held

    def _plain(self, processed: Processed) -> Processed:
        assert processed.rejected is None
        if processed.batch is None:
            return processed
        numbers = [row["n"] for row in processed.batch.rows()]
        return Processed(replace(processed.batch, values=numbers))


def copies(does: str, number: int) -> int:
    """Return how many records one becomes."""
    if does == "filter":
        return int(number % 3 != 0)
    return number % 3 if does == "flat map" else int(not (does == "reject" and number % 5 == 0))


class TurnStep(Step):
    def __init__(self, operator: Turn) -> None:
        self._operator = operator
        self._held = 0
        self._window: Batch | None = None

    def process(self, batch: Batch) -> Processed:
        turn, causes, kept = self._operator, {}, []
        if turn.does == "window":
            return self._wait_for_three(batch)
        for index, number in enumerate(batch.rows()):
            turn.watch.handled(turn.name, number)
            if number == turn.error_at:
                message = "a fault"
                raise RuntimeError(message)
            if turn.does == "hold" and self._held < 3:
                self._held += 1
                continue
            count = copies(turn.does, number)
            kept += [index] * count
            if turn.does == "reject" and not count:
                causes[index] = "a bad number"
        _, rejected = split_rejected(batch, causes)
        batch = batch.select(kept)
        outputs = [OUTPUTS[number % 2] for number in batch.rows()]
        return Processed(batch or None, rejected, outputs if turn.does == "route" else None)

    def _wait_for_three(self, batch: Batch) -> Processed:
        for number in batch.rows():
            self._operator.watch.handled(self._operator.name, number)
        waiting = batch if self._window is None else concatenate([self._window, batch])
        whole = len(waiting) - len(waiting) % 3
        rest = waiting.slice(whole, len(waiting))
        self._window = rest or None
        self._operator.watch.held |= set(rest.rows())
        return Processed(waiting.slice(0, whole) or None)

    def end(self) -> Processed:
        window, self._window = self._window, None  # a later run must not give it again
        return Processed(window)

    def state(self) -> dict[str, Any]:
        return {"held": self._held, "window": self._window and save_batch(self._window)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._held = state["held"]
        if state["window"] is not None:
            self._window = load_batch(state["window"])
            self._operator.watch.held |= set(self._window.rows())


class Slow(Gate):
    """Lets everybody pass, after so many others have had their turn."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self._turns = turns

    async def wait(self) -> None:
        for _ in range(self._turns):
            await anyio.lowlevel.checkpoint()


@dataclass(frozen=True)
class Plan:
    """A graph, and what goes wrong in each of its runs but the last."""

    counts: tuple[int, ...]
    batch_size: int
    num_partitions: int
    operators: tuple[tuple[str, tuple[int, ...], str, str], ...]  # does, inputs, merge, overflow
    outs: tuple[tuple[int, ...], ...]
    buffer: int
    has_letters: bool
    delays: tuple[int, ...]  # of sources, and of writing and flushing
    every: int | None
    faults: tuple[tuple[str, int, int], ...]  # which, where, when


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    num_sources = draw(st.integers(1, 2))
    nodes = num_sources
    operators: list[tuple[str, tuple[int, ...], str, str]] = []
    unread = set(range(nodes))
    origins = [{source} for source in range(nodes)]
    for _ in range(draw(st.integers(1, 4))):
        inputs = draw(st.sets(st.integers(0, nodes - 1), min_size=1, max_size=2))
        does = draw(st.sampled_from([*DOES, *REAL]))
        merge = draw(st.sampled_from(["arrival", "round_robin"]))
        origins.append(set().union(*(origins[sender] for sender in inputs)))
        is_routed = any(
            sender >= num_sources and operators[sender - num_sources][0] == "route"
            for sender in inputs
        )
        if is_routed or len(origins[-1]) < sum(len(origins[sender]) for sender in inputs):
            merge = "arrival"  # inputs of one source cannot be taken in turn
        if len(inputs) > 1 and any(
            len(others) > 1 for _, others, way, _ in operators if way == merge
        ):
            merge = "arrival"  # two merges of unequal streams in turn may wait for each other
        policies = st.sampled_from(["block"] * 6 + ["drop_oldest", "drop_newest", "latest"])
        overflow = "block" if merge == "round_robin" else draw(policies)
        operators.append((does, tuple(sorted(inputs)), merge, overflow))
        unread = (unread - inputs) | {nodes}
        nodes += 1
    outs = [tuple(sorted(unread))]
    if draw(st.booleans()):
        outs.append((draw(st.integers(0, nodes - 1)),))
    fault = st.tuples(st.sampled_from(FAULTS), st.integers(0, 9), st.integers(0, 60))
    return Plan(
        counts=tuple(draw(st.integers(0, 30)) for _ in range(num_sources)),
        batch_size=draw(st.integers(1, 7)),
        num_partitions=draw(st.integers(1, 2)),
        operators=tuple(operators),
        outs=tuple(outs),
        buffer=draw(st.integers(1, 20)),
        has_letters=draw(st.booleans()),
        delays=tuple(draw(st.lists(st.integers(0, 25), min_size=6, max_size=6))),
        every=draw(st.none() | st.integers(1, 12)),
        faults=tuple(draw(st.lists(fault, max_size=3))),
    )


def name_of(plan: Plan, node: int) -> str:
    return f"in{node}" if node < len(plan.counts) else f"turn{node}"


def inputs_of(plan: Plan, senders: tuple[int, ...]) -> tuple[str, ...]:
    """Return how a node names what it receives from: all outputs of each."""
    routes = {
        node for node, (does, *_) in enumerate(plan.operators, len(plan.counts)) if does == "route"
    }
    return tuple(
        f"{name_of(plan, sender)}{output}"
        for sender in senders
        for output in (("." + output for output in OUTPUTS) if sender in routes else ("",))
    )


def refused(watch: Watch, name: str, number: int) -> str | None:
    """Return why a sink cannot write a record, if so."""
    watch.handled(name, number)
    return None if is_writable(number) else "expected another number"


def is_writable(number: int) -> bool:
    return number % 11 != 4


def watch_letter(watch: Watch, letter: dict[str, Any]) -> None:
    watch.handled("dead_letter", number_of(letter))


def graph_of(
    plan: Plan, numbers: list[list[int]], watch: Watch, fault: tuple[str, int, int] | None
) -> Graph:
    which, where, when = fault or ("", 0, 0)
    buffer = {"records": plan.buffer, "bytes": "1MiB"}
    sources: dict[str, Any] = {}
    for index, own in enumerate(numbers):
        is_faulty = which == "source" and where % len(numbers) == index
        source = ListSource(
            values=tuple(own),
            batch_size=plan.batch_size,
            num_partitions=plan.num_partitions,
            gate=Slow(plan.delays[index] // 4),
            fail_after=when if is_faulty and when < len(own) else None,
        )
        source.probe.commits = Commits(watch, f"in{index}", own)
        sources[f"in{index}"] = source
    operators: dict[str, Any] = {}
    for place, (does, inputs, merge, overflow) in enumerate(plan.operators):
        node = len(plan.counts) + place
        is_faulty = which == "operator" and where % len(plan.operators) == place
        operators[name_of(plan, node)] = Turn(
            inputs=inputs_of(plan, inputs),
            does=does,
            name=name_of(plan, node),
            watch=watch,
            error_at=when if is_faulty else None,
            merge=merge,
            overflow=overflow,
            buffer=buffer,
        )
    for index, (sink, inputs) in enumerate(zip(watch.sinks, plan.outs, strict=False)):
        is_faulty = where % len(plan.outs) == index
        limit = len(sink.probe.records) + when
        watch.sinks[index] = sink.model_copy(
            update={
                "inputs": inputs_of(plan, inputs),
                "reject": partial(refused, watch, f"out{index}"),
                "fail_after": limit if which == "sink" and is_faulty else None,
                "gate": Slow(plan.delays[2 + index]),
                "flush_gate": Slow(plan.delays[-1 - index]),
                "fails_flush": which == "flush" and is_faulty,
            }
        )
    outs = watch.sinks[: len(plan.outs)]
    letters = {"gate": Slow(plan.delays[2]), "reject": partial(watch_letter, watch)}
    watch.sinks[-1] = watch.sinks[-1].model_copy(update=letters)
    settings: dict[str, Any] = {"path": "nowhere", "every": plan.every} if plan.every else {}
    return Graph(
        name="random",
        failure_budget="none",
        checkpoint=settings or None,
        sources=sources,
        operators=operators,
        sinks={f"out{index}": sink for index, sink in enumerate(outs)},
        dead_letter=watch.sinks[-1] if plan.has_letters else None,
    )


async def run_once(
    plan: Plan,
    numbers: list[list[int]],
    watch: Watch,
    fault: tuple[str, int, int] | None,
    taken: list[Snapshot],
) -> None:
    graph = graph_of(plan, numbers, watch, fault)
    which, _, when = fault or ("", 0, 0)
    if which in ("abort", "stop"):
        watch.ending, watch.ends_at = which, when + 1
    num_written = 0

    def write(snapshot: Snapshot) -> None:
        nonlocal num_written
        num_written += 1
        if which == "checkpoint" and num_written == when % 3 + 1:
            message = "expected room, found a full disk"
            raise CheckpointError(message)
        taken.append(snapshot)
        watch.is_safe(snapshot)

    checkpoints = None
    if plan.every:
        watch.is_safe(taken[-1])
        checkpoints = Checkpointing(taken[-1], False, write)
    with anyio.fail_after(PLENTY):
        async with anyio.create_task_group() as tasks:
            with suppress(StreamflowError):
                async with opened_run(graph, checkpoints) as run:
                    watch.run, watch.tasks = run, tasks
                    await run.wait()
                return
            assert fault is not None


def expected(plan: Plan, numbers: list[list[int]]) -> list[Counter[int]]:
    """Return what each sink is to get, the letters' last, where nothing is dropped or kept."""
    nodes = [Counter(own) for own in numbers]
    letters: Counter[int] = Counter()
    for does, inputs, _, _ in plan.operators:
        got: Counter[int] = sum((nodes[sender] for sender in inputs), Counter())
        nodes.append(Counter({n: count * copies(does, n) for n, count in got.items()}))
        letters += Counter(
            {n: count for n, count in got.items() if does == "reject" and n % 5 == 0}
        )
    outs: list[Counter[int]] = []
    for inputs in plan.outs:
        got = sum((nodes[sender] for sender in inputs), Counter())
        outs.append(+Counter({n: count for n, count in got.items() if is_writable(n)}))
        letters += Counter({n: count for n, count in got.items() if not is_writable(n)})
    return [*outs, letters if plan.has_letters else Counter()]


@given(plans())
@settings(deadline=None, max_examples=120)
def test_nothing_is_committed_before_it_is_finished_and_all_is_in_the_end(plan: Plan) -> None:
    all_numbers = [[1000 * index + n for n in range(n)] for index, n in enumerate(plan.counts)]
    sinks = [ListSink(inputs=("in0",)) for _ in plan.outs] + [ListSink()]
    start = Snapshot(
        {f"in{index}": 0 for index in range(len(plan.counts))},
        {f"in{index}": {} for index in range(len(plan.counts))},
        marks={
            **{f"out{index}": {"records": 0} for index in range(len(plan.outs))},
            "dead_letter": {"records": 0},
        },
    )
    taken = [start]
    rest = all_numbers
    done: set[int] = set()
    for fault in (*plan.faults, None):
        watch = Watch(sinks=list(sinks))
        anyio.run(run_once, plan, rest, watch, fault, taken)
        assert watch.wrongs == []
        done |= watch.covered
        if not plan.every:  # what is not committed comes again
            rest = [[number for number in own if number not in done] for own in rest]
    if plan.every:  # what was not committed before a crash the newest checkpoint knows of
        positions = taken[-1].positions
        for index, own in enumerate(all_numbers):
            for place, position in positions[f"in{index}"].items():
                first = next((number for _, number in place), 0)
                assert isinstance(first, int)
                done |= set(own[first :: 2 if place else 1][:position])
    assert done == {number for own in all_numbers for number in own}
    policies = {overflow for _, _, _, overflow in plan.operators}
    keeping = {"hold", *REAL} if plan.every else {"hold", "window", *REAL}  # and a crash takes it
    if policies == {"block"} and keeping.isdisjoint(does for does, _, _, _ in plan.operators):
        found = [Counter(map(number_of, sink.probe.values)) for sink in sinks]
        for got, wanted in zip(found, expected(plan, all_numbers), strict=True):
            assert got == wanted if plan.every else got >= wanted
